"""The matmuls of the engine, in any precision on any processor, and which of them are fast: asked by trying.

On a CPU oneDNN does them where it can: well ahead of MKL on other makers' processors, level on Intel's. And its sums do
not depend on the number of threads (in float32), which MKL's do: that cuts a matrix by the threads, and rounds
otherwise at the edges.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

FAST = 1.2
"""Times the speed of float32 from which a precision is worth the use of it."""
SLOW = 0.5
"""Times the speed of float32 below which one is worth a warning."""
TRIALS = 8
SMALL = {"cpu": (128, 256, 512), "cuda": (512, 1024, 4096)}
"""Rows, width and latents of the matmul that is timed: below a millisecond."""


SUMMED = 2048
"""Terms of a sum that oneDNN is given at once: longer ones it would cut by the threads."""


def linear(x: Float[Tensor, "rows d"], weight: Float[Tensor, "n d"], bias: Float[Tensor, " n"]) -> Tensor:
    """`x @ weight.T + bias`."""
    if x.device.type == "cpu" and _onednn_knows(x.dtype):
        return _onednn(x, weight, bias)
    return torch.addmm(bias, x, weight.T)


def product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    """`a @ b`."""
    if a.device.type != "cpu" or a.dtype != torch.float32 or not a.numel() or not _onednn_knows(a.dtype):
        return a @ b
    rows, columns = a.shape[0], b.shape[1]
    if rows == 1 < columns or (min(rows, columns) > 1 and a.T.is_contiguous()):
        # of one row it cuts the sums, a transposed matrix it copies
        return _in_parts(b.T, a.T).T.contiguous()
    return _in_parts(a, b)


def _in_parts(a: Tensor, b: Tensor) -> Tensor:
    out = _onednn(a[:, :SUMMED], b[:SUMMED].T, None)
    for start in range(SUMMED, a.shape[1], SUMMED):
        out += _onednn(a[:, start : start + SUMMED], b[start : start + SUMMED].T, None)
    return out


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def _onednn_knows(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype), torch.ones(4, dtype=dtype)
    try:
        return bool((_onednn(x, weight, bias) == 4).all())
    except RuntimeError:
        return False


@cache
def speed(dtype: torch.dtype, device: torch.device) -> float:
    """How many times as fast as in float32 a matmul is, tried once on a small one; 0 where there is none.

    On one thread, so that what else runs on the machine changes little.
    """
    if device.type not in SMALL:
        return 1.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        halves, singles = _matmul(dtype, device), _matmul(torch.float32, device)
        times = [(_seconds(singles, device), _seconds(halves, device)) for _ in range(1 + TRIALS)][1:]
    except RuntimeError:
        return 0.0
    finally:
        torch.set_num_threads(threads)
    single, half = (min(column) for column in zip(*times, strict=True))
    return single / half


def fast_bfloat16(device: torch.device) -> bool:
    """Whether matmuls are faster in bfloat16 there."""
    return speed(torch.bfloat16, device) > FAST


def _matmul(dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    rows, d, n = SMALL[device.type]
    x, weight = (torch.ones(size, d, dtype=dtype, device=device) for size in (rows, n))
    return lambda: linear(x, weight, weight[:, 0].contiguous())


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
