# pyright: basic
"""Gradient pursuit among atoms whose products with one another are known, compiled by numba: the CPU's fast path.

What is left of a row is never formed: a step needs only its products with all atoms, which are those of the row less
those of the atoms chosen, and these are rows of the table. Of a row's k atoms they stay in a core's own cache, so that
a step costs k x n sums, in place of a product with all atoms.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from monosem.kernels.cpu import FAST
from monosem.kernels.parallel import parallel

TABLE_BYTES = 2**29
"""The largest table of products that is made."""


def worth_while(rows: int, k: int, atoms: Tensor) -> bool:
    """Whether to make the table: it costs a product of every atom, and saves one of every row's steps."""
    fits = len(atoms) ** 2 * atoms.element_size() <= TABLE_BYTES
    return (
        atoms.device.type == "cpu" and atoms.dtype in (torch.float32, torch.float64) and fits and rows * k > len(atoms)
    )


def gradient_pursuit(
    products: Tensor, table: Tensor, nothing: Tensor, k: int, nonnegative: bool
) -> tuple[Tensor, Tensor]:
    """The atoms that each row chose in k steps, (rows, k), -1 where there are fewer, and their coefficients.

    Args:
        products: (rows, n), of each row with every atom.
        table: (n, n), of every atom with every atom.
        nothing: (rows,) the product that counts as none.
        k: steps.
        nonnegative: whether negative coefficients become 0, and atoms that point away are not chosen.
    """
    slots = torch.full((len(products), k), -1, dtype=torch.int64)
    w = products.new_zeros(len(products), k)
    _search(products.numpy(), table.numpy(), nothing.numpy(), nonnegative, slots.numpy(), w.numpy())
    return slots, w


@parallel(fastmath=FAST)
def _search(products, table, nothing, nonnegative, slots, w):
    k = slots.shape[1]
    for row in prange(len(products)):
        left, slope = products[row].copy(), np.zeros(k, products.dtype)
        mine, weights = slots[row], w[row]
        used = 0
        for _ in range(k):
            pick = _largest(left, nonnegative)
            entering = -1
            if (left[pick] if nonnegative else abs(left[pick])) > nothing[row]:
                for j in range(used):
                    if mine[j] == pick:
                        entering = j
                if entering < 0:
                    mine[used], entering = pick, used
                    used += 1
            towards = products.dtype.type(0)
            for j in range(used):
                slope[j] = left[mine[j]] if weights[j] != 0 or j == entering else 0
                towards += slope[j] * slope[j]
            change = products.dtype.type(0)
            for i in range(used):
                for j in range(used):
                    change += slope[i] * slope[j] * table[mine[i], mine[j]]
            if change <= 0:
                break
            for j in range(used):
                weights[j] += towards / change * slope[j]
                if nonnegative and weights[j] < 0:
                    weights[j] = 0
            left[:] = products[row]
            for j in range(used):
                if weights[j] != 0:
                    _subtract(left, weights[j], table[mine[j]])


@njit(cache=True, fastmath=FAST)
def _subtract(left, weight, products):
    for i in range(len(left)):
        left[i] -= weight * products[i]


@njit(cache=True)
def _largest(scores, nonnegative):
    best = 0
    top = scores[0] if nonnegative else abs(scores[0])
    for i in range(1, len(scores)):
        score = scores[i] if nonnegative else abs(scores[i])
        if score > top:
            best, top = i, score
    return best
