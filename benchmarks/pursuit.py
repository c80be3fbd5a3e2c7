"""Gradient pursuit: 10,000 vectors of width 576 among 4,096 atoms, 32 steps each. The bar: 10 s on two cores.

python benchmarks/pursuit.py [--rows 10000] [--d 576] [--n 4096] [--k 32]
"""

import argparse
import time

import torch

import monosem as ms

BAR = 10.0

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, value in (("rows", 10_000), ("d", 576), ("n", 4096), ("k", 32)):
    parser.add_argument(f"--{name}", type=int, default=value)
options = parser.parse_args()
sae = ms.TopKSAE(options.d, options.n, k=options.k)
x = torch.randn(options.rows, options.d, generator=torch.Generator().manual_seed(1))
ms.pursue(sae, x[:256], k=options.k, method="gradient")  # compiles
start = time.perf_counter()
codes = ms.pursue(sae, x, k=options.k, method="gradient")
seconds = time.perf_counter() - start
left = (x - sae.decode(codes)).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
print(f"{options.rows:,} vectors: {seconds:.1f} s (bar {BAR:.0f} s: {'met' if seconds <= BAR else 'missed'})")
print(f"{codes.l0().float().mean():.1f} latents each, {left:.3f} of the variance unexplained")
