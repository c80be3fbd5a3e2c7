"""From which share of latents on are dense matmuls faster than the sparse kernels? It sets kernels.sparse.DENSE_ABOVE.

    python benchmarks/crossover.py [--d 768] [--n 4096] [--batch 2048]

Times what follows the selection in a training step (squared error, gradients of values and of both weights) with every
share, dense and sparse in turn. Prints a table and the crossing.
"""

import argparse
import statistics
import time

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from monosem import kernels
from monosem.kernels import Selection, sparse

SHARES = (0.01, 0.03, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)


def seconds(share: float, d: int, n: int, batch: int, dense: bool) -> float:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, d, generator=generator)
    W_enc, W_dec = (torch.randn(n, d, generator=generator).requires_grad_() for _ in range(2))
    b_enc, b_dec = torch.zeros(n, requires_grad=True), torch.zeros(d, requires_grad=True)
    k = max(1, round(share * n))
    on = torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(batch)]).to(torch.int32).reshape(-1)
    offsets = torch.arange(batch + 1) * k
    values = torch.rand(len(on), generator=generator)
    sparse.DENSE_ABOVE = -1.0 if dense else 2.0
    buffers, times = kernels.Buffers(), list[float]()
    for _ in range(5):
        selection = Selection(on, offsets, n)
        start = time.perf_counter()
        with buffers.in_use():
            activations = kernels.encode(x, W_enc, b_enc, b_dec, selection, values).relu()
            loss, _ = kernels.squared_error(activations, W_dec, b_dec, selection, x)
            loss.backward()
            for parameter in (W_enc, W_dec, b_enc, b_dec):
                grad, parameter.grad = parameter.grad, None
                if grad is not None:
                    kernels.done_with(grad)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=2048)
    options = parser.parse_args()
    table = Table(title=f"d={options.d}, n={options.n}, batch {options.batch}", box=box.SIMPLE_HEAD)
    for column in ("share on", "sparse, ms", "dense, ms", "sparse / dense"):
        table.add_column(column, justify="right")
    crossing = None
    for share in SHARES:
        few, many = (seconds(share, options.d, options.n, options.batch, dense) for dense in (False, True))
        table.add_row(f"{share:.0%}", f"{1e3 * few:.1f}", f"{1e3 * many:.1f}", f"{few / many:.2f}")
        if few > many and crossing is None:
            crossing = share
    Console().print(table)
    print(f"dense is faster from {crossing:.0%} on" if crossing else "sparse is faster throughout")


if __name__ == "__main__":
    main()
