# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""Screens on CPU: which entries of `x @ weight.T + bias` can be among the wanted, found by a matmul of few bits.

    s       of rounded rows, with float32 scales and bias
    e       |s - exact| <= e, of the true norms of what rounding took away (`rounding`), and of float32's own rounding

Of the k largest none is missed whose upper bound s + e reaches the k-th largest lower bound s - e; above a limit none
whose upper bound is. What is found is evaluated in float32. A step of training may do with less: see `ROUGH`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32
from numba import njit, prange
from torch import Tensor

from monosem.kernels import matmul
from monosem.kernels.buffers import done_with
from monosem.kernels.rounding import WEIGHT_LEVELS, Precision, Rounded, to_bfloat16, to_integers, unrounded

TILE_ROWS = 512
GROUP = 16
"""A row's maxima are first taken over this many entries, a stride apart."""
WIDEST = 16
"""Of more than n / WIDEST candidates a row is rather evaluated whole."""
ROUGH = {"float32": (0, 8), "bfloat16": (8, 4), "int8": (16, 1), "float8": (16, 1)}
"""Candidates beyond k of a rough screen: at least so many, or k divided by so many."""
OUTPUT = 2**-8 * 1.01
"""Relative error of a matmul's output in bfloat16."""


def n_rough(k: int, precision: Precision) -> int:
    """How many of the largest a rough screen evaluates, for k of them."""
    least, share = ROUGH[precision]
    return k + max(least, k // share)


@dataclass
class Screen:
    """Weights rounded once, and what stands beside each latent in the sums of a screen."""

    precision: Precision
    weight: Rounded
    bias: Float[Tensor, " n"]
    _product: Tensor

    @staticmethod
    def of(weight: Float[Tensor, "n d"], bias: Float[Tensor, " n"], precision: Precision) -> Screen:
        """Round weights."""
        if precision == "int8":
            rounded = to_integers(weight, WEIGHT_LEVELS, signed=True)
            return Screen(precision, rounded, bias, matmul.packed(rounded.values))
        rounded = to_bfloat16(weight) if precision == "bfloat16" else unrounded(weight)
        return Screen(precision, rounded, bias, rounded.values)

    def rounded(self, x: Float[Tensor, "rows d"]) -> Rounded:
        """Activations, as the weights want them."""
        if self.precision == "int8":
            return to_integers(x, matmul.integer_levels(), signed=False)
        return to_bfloat16(x) if self.precision == "bfloat16" else unrounded(x)

    def product(self, x: Rounded) -> Float[Tensor, "rows n"]:
        """The matmul of few bits, without scales and bias."""
        n = len(self.bias)
        if self.precision == "int8":
            return matmul.integer_product(x.values, x.zero, self._product, n)
        return matmul.linear(x.values, self._product, torch.zeros(n, dtype=x.values.dtype))

    def done(self) -> None:
        """Nobody needs it any more: its memory is used again."""
        if self.precision != "float32":
            done_with(self.weight.values)

    def latents(self) -> tuple[np.ndarray, ...]:
        """Of every latent: scale, bias, and the norms that errors follow from."""
        sizes = (self.weight.scale, self.bias, self.weight.norm, self.weight.error)
        return tuple(t.detach().contiguous().numpy() for t in sizes)

    def rows(self, x: Rounded, exact: bool, d: int) -> tuple[np.ndarray, ...]:
        """Of every row: scale, and what its errors are of a latent's norm and of a latent's rounding error."""
        if not exact:
            return x.scale.numpy(), np.zeros(len(x.scale), np.float32), np.zeros(len(x.scale), np.float32)
        own = (d + 8) * 2.0**-23 * x.norm
        return x.scale.numpy(), (1.001 * x.error + own).numpy(), (1.001 * x.rounded_norm).numpy()


def _tiles(x: Tensor) -> Iterator[slice]:
    for start in range(0, len(x), TILE_ROWS):
        yield slice(start, min(start + TILE_ROWS, len(x)))


def largest(
    x: Float[Tensor, "rows d"], screen: Screen, k: int, *, exact: bool
) -> tuple[Int32[Tensor, " entries"], Int[Tensor, " rows_plus_1"], Bool[Tensor, " rows"]]:
    """Candidates for the k largest of every row, and which rows have too many to say (they have none).

    Exact, the k largest are among them; rough, the largest few of the screen are.
    """
    n, d = len(screen.bias), x.shape[1]
    count = k if exact else n_rough(k, screen.precision)
    width = max(2 * GROUP * count, n // WIDEST)
    counts, found = torch.zeros(len(x) + 1, dtype=torch.int64), list[Tensor]()
    rounded, latents = screen.rounded(x), screen.latents()
    unsure = torch.zeros(len(x), dtype=torch.bool)
    places = torch.empty(min(len(x), TILE_ROWS), width, dtype=torch.int32)
    for tile in _tiles(x):
        if int(unsure[: tile.start].sum()) > tile.start // 2:  # of this text a screen is no help
            unsure[tile.start :] = True
            break
        part = rounded[tile]
        product = screen.product(part)
        own = np.float32(OUTPUT if exact and product.dtype == torch.bfloat16 else 0)
        held = counts[1:][tile]
        _reach(_bits(product), *screen.rows(part, exact, d), *latents, own, exact, count, places.numpy(), held.numpy())
        unsure[tile] = (held > width) | (held < k)
        held[unsure[tile]] = 0
        ends = held.cumsum(0)
        indices = torch.empty(int(ends[-1]), dtype=torch.int32)
        _gathered(places[: len(held)].numpy(), held.numpy(), (ends - held).numpy(), indices.numpy())
        found.append(indices)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int32), counts.cumsum(0), unsure


def above(
    x: Float[Tensor, "rows d"], screen: Screen, limits: Float[Tensor, " n"]
) -> tuple[Int32[Tensor, " entries"], Int[Tensor, " rows_plus_1"]]:
    """All entries that can exceed their latent's limit."""
    counts, found = torch.zeros(len(x) + 1, dtype=torch.int64), list[Tensor]()
    rounded, latents, d = screen.rounded(x), screen.latents(), x.shape[1]
    edges = limits.detach().to(torch.float32).contiguous().numpy()
    for tile in _tiles(x):
        part = rounded[tile]
        product = screen.product(part)
        own = np.float32(OUTPUT if product.dtype == torch.bfloat16 else 0)
        given = (_bits(product), *screen.rows(part, True, d), *latents, own, edges)
        held = counts[1:][tile]
        _count_reaching(*given, held.numpy())
        ends = held.cumsum(0)
        places = torch.empty(int(ends[-1]), dtype=torch.int32)
        _write_reaching(*given, (ends - held).numpy(), ends.numpy(), places.numpy())
        found.append(places)
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int32), counts.cumsum(0)


def _bits(product: Tensor) -> np.ndarray:
    return product.view(torch.int16).numpy().view(np.uint16) if product.dtype == torch.bfloat16 else product.numpy()


def best(
    values: Float[Tensor, " entries"], indices: Int32[Tensor, " entries"], offsets: Int[Tensor, " rows_plus_1"], k: int
) -> tuple[Float[Tensor, "rows k"], Int32[Tensor, "rows k"]]:
    """The k largest of every row's entries, of which it has k at least."""
    rows = len(offsets) - 1
    largest, places = torch.empty(rows, k, dtype=values.dtype), torch.empty(rows, k, dtype=torch.int32)
    _best(values.numpy(), indices.numpy(), offsets.numpy(), largest.numpy(), places.numpy())
    return largest, places


@njit(inline="always")
def _wide(value, half):
    """A number of a matmul's output."""
    if half:
        return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return np.float32(value)


@njit(inline="always")
def _bound(product, bias, row_error, row_norm, norm, error, own):
    """How far an entry may be from what a screen says."""
    return row_error * norm + row_norm * error + own * abs(product) + np.float32(2.4e-7) * abs(bias)


@njit(cache=True)
def _nth_largest(values, count):
    """By a heap of so many, the smallest on top: most values are below it."""
    heap = np.sort(values[:count])
    for value in values[count:]:
        if value > heap[0]:
            at, child = 0, 1
            while child < count:
                if child + 1 < count and heap[child + 1] < heap[child]:
                    child += 1
                if heap[child] >= value:
                    break
                heap[at] = heap[child]
                at, child = child, 2 * child + 1
            heap[at] = value
    return heap[0]


@njit(cache=True, parallel=True)
def _gathered(places, counts, starts, out):
    for r in prange(places.shape[0]):
        out[starts[r] : starts[r] + counts[r]] = places[r, : counts[r]]


@njit(cache=True, parallel=True)
def _reach(
    products, scales, row_errors, row_norms, latent_scales, biases, norms, errors, own, exact, count, places, counts
):
    n, width = products.shape[1], places.shape[1]
    half = products.itemsize == 2
    n_groups = max((n + GROUP - 1) // GROUP, min(n, 2 * count))
    for r in prange(products.shape[0]):
        row, scale, row_error, row_norm = products[r], scales[r], row_errors[r], row_norms[r]
        lows = np.full(n_groups, -np.inf, np.float32)
        highs = np.full(n_groups, -np.inf, np.float32) if exact else lows
        for start in range(0, n, n_groups):
            size = min(n_groups, n - start)
            part = row[start : start + size]
            part_scales, part_biases = latent_scales[start : start + size], biases[start : start + size]
            part_norms, part_errors = norms[start : start + size], errors[start : start + size]
            if not exact:
                for i in range(size):
                    value = _wide(part[i], half) * (scale * part_scales[i]) + part_biases[i]
                    lows[i] = value if value > lows[i] else lows[i]
                continue
            for i in range(size):
                product = _wide(part[i], half) * (scale * part_scales[i])
                value = product + part_biases[i]
                bound = _bound(product, part_biases[i], row_error, row_norm, part_norms[i], part_errors[i], own)
                low, high = value - bound, value + bound
                lows[i] = low if low > lows[i] else lows[i]
                highs[i] = high if high > highs[i] else highs[i]
        edge = _nth_largest(lows, count)
        filled = 0
        for g in range(n_groups):
            if highs[g] >= edge:
                for i in range(g, n, n_groups):
                    product = _wide(row[i], half) * (scale * latent_scales[i])
                    bound = _bound(product, biases[i], row_error, row_norm, norms[i], errors[i], own)
                    if product + biases[i] + bound >= edge:
                        if filled < width:
                            places[r, filled] = i
                        filled += 1
        counts[r] = filled


BLOCK = 64


@njit(cache=True, parallel=True)
def _count_reaching(products, scales, row_errors, row_norms, latent_scales, biases, norms, errors, own, limits, counts):
    half = products.itemsize == 2
    for r in prange(products.shape[0]):
        row, scale, row_error, row_norm = products[r], scales[r], row_errors[r], row_norms[r]
        total = 0
        for i in range(row.shape[0]):
            product = _wide(row[i], half) * (scale * latent_scales[i])
            bound = _bound(product, biases[i], row_error, row_norm, norms[i], errors[i], own)
            total += not product + biases[i] + bound <= limits[i]
        counts[r] = total


@njit(cache=True, parallel=True)
def _write_reaching(
    products, scales, row_errors, row_norms, latent_scales, biases, norms, errors, own, limits, starts, ends, places
):
    half = products.itemsize == 2
    n = products.shape[1]
    for r in prange(products.shape[0]):
        row, scale, row_error, row_norm = products[r], scales[r], row_errors[r], row_norms[r]
        at, end = starts[r], ends[r]
        for start in range(0, n, BLOCK):
            if at == end:
                break
            stop = min(start + BLOCK, n)
            here = 0
            for i in range(start, stop):
                product = _wide(row[i], half) * (scale * latent_scales[i])
                bound = _bound(product, biases[i], row_error, row_norm, norms[i], errors[i], own)
                here += not product + biases[i] + bound <= limits[i]
            if here:
                for i in range(start, stop):
                    product = _wide(row[i], half) * (scale * latent_scales[i])
                    bound = _bound(product, biases[i], row_error, row_norm, norms[i], errors[i], own)
                    if not product + biases[i] + bound <= limits[i]:
                        if at < end:
                            places[at] = i
                        at += 1


@njit(cache=True, parallel=True)
def _best(values, indices, offsets, largest, places):
    """In falling order, of equal ones those of the first latents."""
    k = largest.shape[1]
    for r in prange(largest.shape[0]):
        held, which, filled = largest[r], places[r], 0
        for e in range(offsets[r], offsets[r + 1]):
            value, index = values[e], indices[e]
            if filled == k and (value < held[k - 1] or (value == held[k - 1] and index > which[k - 1])):
                continue
            at = filled if filled < k else k - 1
            filled = min(filled + 1, k)
            while at > 0 and (value > held[at - 1] or (value == held[at - 1] and index < which[at - 1])):
                held[at], which[at] = held[at - 1], which[at - 1]
                at -= 1
            held[at], which[at] = value, index
