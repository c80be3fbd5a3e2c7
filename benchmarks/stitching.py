"""Stitching 1,024 latents to 4,096: one pass over 100,000 rows, and the whole path. The bar: 120 s on two cores.

python benchmarks/stitching.py [--rows 100000] [--d 256] [--small 1024] [--large 4096] [--k 24]

The dictionaries are BatchTopK ones as they are drawn, half of the large one's latents near to one of the small one's,
on planted rows: time depends on how many latents are on, not on which.
"""

import argparse
import time

import torch

import monosem as ms

BAR = 120.0

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name, value in (("rows", 100_000), ("d", 256), ("small", 1024), ("large", 4096), ("k", 24)):
    parser.add_argument(f"--{name}", type=int, default=value)
options = parser.parse_args()
x = ms.PlantedDictionary(2 * options.small, options.d, l0=20, noise=0.1, seed=1).sample(options.rows, seed=2).x
small, large = (ms.BatchTopKSAE(options.d, n, k=options.k, seed=n) for n in (options.small, options.large))
with torch.no_grad():
    near = torch.arange(options.large // 2)
    mixed = small.W_dec[near % options.small] + 0.5 * large.W_dec[near]
    large.W_dec[near] = mixed / mixed.norm(dim=-1, keepdim=True)
    large.W_enc[near] = large.W_dec[near]
for sae in (small, large):
    sae.initialise(x[:8192])
small.encode(x[:256])  # compiles
start = time.perf_counter()
found = ms.stitch(small, large, x, rows=options.rows, progress=False)
read = time.perf_counter() - start
paths = [found.path(order) for order in ("steady", "published", "greedy")]
seconds = time.perf_counter() - start
print(found)
print(paths[0])
same = torch.equal(found.at(paths[0], -1)(x[:4096]).reconstruction, large(x[:4096]).reconstruction)
print(f"its end gives the large dictionary's bits: {'yes' if same else 'NO'}")
met = "met" if seconds <= BAR else "missed"
print(f"one pass {read:.1f} s, three paths {seconds - read:.1f} s: {seconds:.1f} s (bar {BAR:.0f} s: {met})")
