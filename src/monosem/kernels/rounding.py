# pyright: basic, reportAttributeAccessIssue=false
"""Rows rounded to few bits, with the true norms of what rounding took away: what a screen multiplies and is sure of.

The product of rounded rows differs from that of the true ones by at most

    |x . w - x_q . w_q| = |(x - x_q) . w + x_q . (w - w_q)| <= ||x - x_q|| ||w|| + ||x_q|| ||w - w_q||
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numba import prange
from torch import Tensor

from monosem.kernels.buffers import empty
from monosem.kernels.parallel import parallel

Precision = Literal["float32", "bfloat16", "int8", "float8"]
"""What a screen multiplies; float32 is no screen. Float8 is e4m3: a sign, four bits of exponent, three of fraction."""
WEIGHT_LEVELS = 127
TINY = 1e-15
"""Norms below which squares are lost in float32: it is added to every norm of a bound."""
SOME = 512
"""Rows by which the sizes of columns are told."""
WIDEST = 8
"""Powers of two, either way, by which a column may differ from the others."""
FAST = {"reassoc", "contract", "nsz"}


@dataclass
class Rounded:
    """Rows of a matrix, rounded; a row is `scale x (values - zero)`."""

    values: Tensor
    """(rows, d) bfloat16, or integers."""
    scale: Float[Tensor, " rows"]
    zero: int
    norm: Float[Tensor, " rows"]
    """Of the true rows."""
    rounded_norm: Float[Tensor, " rows"]
    error: Float[Tensor, " rows"]
    """The norm of what rounding took away."""

    def __getitem__(self, rows: slice) -> Rounded:
        parts = (self.norm[rows], self.rounded_norm[rows], self.error[rows])
        return Rounded(self.values[rows], self.scale[rows], self.zero, *parts)


def unrounded(x: Float[Tensor, "rows d"]) -> Rounded:
    """As it is."""
    norm = x.detach().norm(dim=1)
    return Rounded(x.detach(), torch.ones(len(x)), 0, norm, norm, torch.zeros(len(x)))


def to_bfloat16(x: Float[Tensor, "rows d"]) -> Rounded:
    """Rounded to the nearest number of eight bits, whatever its size."""
    values = empty(*x.shape, dtype=torch.bfloat16)
    norms = torch.empty(3, len(x))
    _to_bfloat16(_array(x), values.view(torch.int16).numpy(), norms.numpy())
    return Rounded(values, torch.ones(len(x)), 0, *norms)


def to_integers(x: Float[Tensor, "rows d"], levels: int, factors: Float[Tensor, " d"], *, signed: bool) -> Rounded:
    """Of `x * factors`, rounded to `levels` steps each way of a row's largest number; unsigned ones have their zero at
    levels + 1. The factors are powers of two, so that nothing is lost by them.
    """
    dtype, zero = (torch.int8, 0) if signed else (torch.uint8, levels + 1)
    values = empty(*x.shape, dtype=dtype)
    norms, scale = torch.empty(3, len(x)), torch.empty(len(x))
    _to_integers(_array(x), factors.numpy(), levels, zero, values.numpy(), scale.numpy(), norms.numpy())
    return Rounded(values, scale, zero, *norms)


def column_factors(x: Float[Tensor, "rows d"], weight: Float[Tensor, "n d"]) -> Float[Tensor, " d"]:
    """What to divide columns of x by, and multiply those of the weights by: powers of two by which both are even.

    Where a few coordinates of a model are many times as large as all others, a row's few levels are lost on them. The
    root of the ratio of sizes shares the cost between the two; sizes are those of some of the rows.
    """
    some, others = (m.detach()[:: max(1, len(m) // SOME)].pow(2).mean(0).sqrt() for m in (x, weight))
    steps = 0.5 * torch.log2(some.clamp_min(TINY) / others.clamp_min(TINY))
    steps = torch.nan_to_num(steps - steps.median()).round().clamp(-WIDEST, WIDEST)
    return torch.exp2(steps)


def _array(x: Tensor) -> np.ndarray:
    return x.detach().contiguous().numpy()


@parallel(fastmath=FAST)
def _to_bfloat16(x, bits, norms):
    for r in prange(x.shape[0]):
        row, own = x[r].view(np.uint32), bits[r]
        norm = rounded_norm = error = np.float32(0)
        for c in range(row.shape[0]):
            rounded = np.uint32(row[c] + np.uint32(0x7FFF) + ((row[c] >> np.uint32(16)) & np.uint32(1)))
            own[c] = np.int16(rounded >> np.uint32(16))
            value = np.uint32(rounded & np.uint32(0xFFFF0000)).view(np.float32)
            lost = x[r, c] - value
            norm += x[r, c] * x[r, c]
            rounded_norm += value * value
            error += lost * lost
        norms[0, r], norms[1, r], norms[2, r] = np.sqrt(norm), np.sqrt(rounded_norm), np.sqrt(error)


@parallel(fastmath=FAST)
def _to_integers(x, factors, levels, zero, values, scales, norms):
    for r in prange(x.shape[0]):
        row, own = x[r] * factors, values[r]
        sizes, greatest = row.view(np.int32), np.int32(0)
        for c in range(row.shape[0]):  # of numbers that are not negative the order is that of their bits
            size = sizes[c] & np.int32(0x7FFFFFFF)
            greatest = size if size > greatest else greatest
        largest = np.int32(greatest).view(np.float32)
        scale = largest / np.float32(levels) if largest > np.float32(1e-30) else np.float32(1)
        inverse = np.float32(1) / scale
        norm = rounded_norm = error = np.float32(0)
        for c in range(row.shape[0]):
            step = np.rint(row[c] * inverse)
            own[c] = np.int32(step) + zero
            value = step * scale
            lost = row[c] - value
            norm += row[c] * row[c]
            rounded_norm += value * value
            error += lost * lost
        scales[r] = scale
        norms[0, r], norms[1, r], norms[2, r] = np.sqrt(norm), np.sqrt(rounded_norm), np.sqrt(error)
