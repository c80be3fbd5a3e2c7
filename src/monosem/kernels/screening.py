# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""Screens on CPU: which entries of `x @ weight.T + bias` can be among the wanted, found by a matmul of few bits.

    s       of rounded rows, with float32 scales and bias
    e       |s - exact| <= e, of the true norms of what rounding took away (`rounding`), and of float32's own rounding

Of the k largest none is missed whose upper bound s + e reaches the k-th largest lower bound s - e; above a limit none
whose upper bound is. What is found is evaluated in float32. A step of training may do with less: see `ROUGH`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32
from numba import njit, prange
from torch import Tensor

from monosem.kernels import matmul
from monosem.kernels.buffers import done_with
from monosem.kernels.rounding import (
    TINY,
    WEIGHT_LEVELS,
    Precision,
    Rounded,
    column_factors,
    to_bfloat16,
    to_integers,
    unrounded,
)

TILE_ROWS = 1024
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
    _factors: Float[Tensor, " d"]

    @staticmethod
    def of(
        weight: Float[Tensor, "n d"], bias: Float[Tensor, " n"], precision: Precision, x: Float[Tensor, "rows d"]
    ) -> Screen:
        """Round weights, for rows such as x."""
        if precision == "int8":
            factors = column_factors(x, weight)
            rounded = to_integers(weight, WEIGHT_LEVELS, factors, signed=True)
            return Screen(precision, rounded, bias, matmul.packed(rounded.values), factors.reciprocal())
        rounded = to_bfloat16(weight) if precision == "bfloat16" else unrounded(weight)
        return Screen(precision, rounded, bias, rounded.values, torch.ones(0))

    def rounded(self, x: Float[Tensor, "rows d"]) -> Rounded:
        """Activations, as the weights want them."""
        if self.precision == "int8":
            return to_integers(x, matmul.integer_levels(), self._factors, signed=False)
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
        sizes = (self.weight.scale, self.bias, self.weight.norm + TINY, self.weight.error + TINY)
        return tuple(t.detach().contiguous().numpy() for t in sizes)

    def groups(self, n_groups: int) -> tuple[np.ndarray, ...]:
        """Of every group of latents, `n_groups` apart, the largest size of a bias, norm, and norm of an error."""
        sizes = np.stack([np.abs(latent) for latent in self.latents()[1:]])
        padded = np.pad(sizes, ((0, 0), (0, -sizes.shape[1] % n_groups)))
        return tuple(padded.reshape(len(sizes), -1, n_groups).max(1))

    def rows(self, x: Rounded, d: int) -> tuple[np.ndarray, ...]:
        """Of every row: scale, and what its errors are of a latent's norm and of a latent's rounding error."""
        own = (d + 8) * 2.0**-23 * x.norm + TINY
        return x.scale.numpy(), (1.001 * x.error + own).numpy(), (1.001 * x.rounded_norm + TINY).numpy()


def _tiles(x: Tensor) -> Iterator[slice]:
    for start in range(0, len(x), TILE_ROWS):
        yield slice(start, min(start + TILE_ROWS, len(x)))


class Candidates(NamedTuple):
    """Some entries of every row with their values, the others, and which rows have too many (they have no others)."""

    known: Float[Tensor, "rows known"]
    places: Int32[Tensor, "rows known"]
    others: Int32[Tensor, " entries"]
    offsets: Int[Tensor, " rows_plus_1"]
    unsure: Bool[Tensor, " rows"]


def largest(
    x: Float[Tensor, "rows d"],
    screen: Screen,
    k: int,
    evaluate: Callable[[Tensor, Tensor], Float[Tensor, "rows k"]] | None = None,
) -> Candidates:
    """Candidates for the k largest of every row.

    `evaluate` says what k entries of each row are in float32. The smallest of any k is an edge that none of the k
    largest lies below: all that can reach it are candidates. Where bounds are narrow, what a screen says of the k is
    edge enough. Without `evaluate` those are candidates that are largest in few bits.
    """
    n, d = len(screen.bias), x.shape[1]
    count = k if evaluate else n_rough(k, screen.precision)
    width, n_groups = max(2 * GROUP * count, n // WIDEST), max(-(-n // GROUP), min(n, 2 * count))
    counts, found = torch.zeros(len(x) + 1, dtype=torch.int64), list[Tensor]()
    rounded, latents = screen.rounded(x), screen.latents()
    groups = screen.groups(n_groups)
    unsure = torch.zeros(len(x), dtype=torch.bool)
    places = torch.empty(min(len(x), TILE_ROWS), width, dtype=torch.int32)
    firsts = torch.empty(len(x), k if evaluate else 0, dtype=torch.int32)
    first_known = screen.precision == "int8" and evaluate is not None
    known = torch.empty(len(x), k if first_known else 0)
    for tile in _tiles(x):
        if int(unsure[: tile.start].sum()) > tile.start // 2:  # of this text a screen is no help
            unsure[tile.start :] = True
            break
        part, held = rounded[tile], counts[1:][tile]
        product, rows = screen.product(part), len(held)
        bits, peaks, edges = _bits(product), torch.empty(rows, n_groups), torch.empty(rows)
        scales, row_errors, row_norms = screen.rows(part, d)
        own = np.float32(OUTPUT if product.dtype == torch.bfloat16 else 0)
        if not evaluate:
            row_errors, row_norms, own = np.zeros_like(row_errors), np.zeros_like(row_norms), np.float32(0)
        given = (bits, scales, row_errors, row_norms, *latents, own)
        _peaks(*given, count, peaks.numpy(), edges.numpy(), firsts[tile].numpy())
        if evaluate and first_known:
            known[tile] = evaluate(x[tile], firsts[tile])
            edges = torch.maximum(edges, known[tile].amin(1))
        beside = firsts[tile] if first_known else firsts[tile, :0]
        _reach(*given, *groups, peaks.numpy(), edges.numpy(), beside.numpy(), places.numpy(), held.numpy())
        unsure[tile] = (held > width) | (held + known.shape[1] < k) | ~edges.isfinite()
        held[unsure[tile]] = 0
        ends = held.cumsum(0)
        indices = torch.empty(int(ends[-1]), dtype=torch.int32)
        _gathered(places[:rows].numpy(), held.numpy(), (ends - held).numpy(), indices.numpy())
        found.append(indices)
    indices = torch.cat(found) if found else torch.zeros(0, dtype=torch.int32)
    return Candidates(known, firsts[:, : known.shape[1]], indices, counts.cumsum(0), unsure)


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
        given = (_bits(product), *screen.rows(part, d), *latents, own, edges)
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
    candidates: Candidates, values: Float[Tensor, " entries"], k: int
) -> tuple[Float[Tensor, "rows k"], Int32[Tensor, "rows k"]]:
    """The k largest of every row's entries, of which it has k at least; `values` are those of the others."""
    rows = len(candidates.unsure)
    largest, places = torch.empty(rows, k, dtype=values.dtype), torch.empty(rows, k, dtype=torch.int32)
    known = (candidates.known.numpy(), candidates.places.numpy())
    others = (values.numpy(), candidates.others.numpy(), candidates.offsets.numpy())
    _best(*known, *others, largest.numpy(), places.numpy())
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
    """Bit by bit from the top, of numbers as integers of the same order, until so many are left above."""
    keys = values.view(np.int32).copy()
    for i in range(keys.shape[0]):
        keys[i] ^= (keys[i] >> 31) & 0x7FFFFFFF
    edge, found = -(1 << 31), 0
    for bit in range(31, -1, -1):
        higher = np.int32(edge + (1 << bit))
        found = 0
        for i in range(keys.shape[0]):
            found += keys[i] >= higher
        if found >= count:
            edge = higher
        if found == count:
            break
    least = np.float32(np.inf)
    for i in range(keys.shape[0]):
        if keys[i] >= edge:
            least = min(least, values[i])
    return least


@njit(cache=True, parallel=True)
def _gathered(places, counts, starts, out):
    for r in prange(places.shape[0]):
        out[starts[r] : starts[r] + counts[r]] = places[r, : counts[r]]


@njit(cache=True, parallel=True)
def _peaks(
    products,
    scales,
    row_errors,
    row_norms,
    latent_scales,
    biases,
    norms,
    errors,
    own,
    count,
    peaks,
    edges,
    firsts,
):
    """The largest of every group, the `count`-th largest of these, and the entries of the first groups.

    Where these are asked for, the edge is the smallest that one of them can be.
    """
    n, n_groups = products.shape[1], peaks.shape[1]
    half = products.itemsize == 2
    for r in prange(products.shape[0]):
        row, scale, tops = products[r], scales[r], peaks[r]
        tops[:] = -np.inf
        for start in range(0, n, n_groups):
            size = min(n_groups, n - start)
            part = row[start : start + size]
            part_scales, part_biases = latent_scales[start : start + size], biases[start : start + size]
            for i in range(size):
                value = _wide(part[i], half) * (scale * part_scales[i]) + part_biases[i]
                tops[i] = value if value > tops[i] else tops[i]
        edge = _nth_largest(tops, count)
        edges[r] = edge
        filled = 0
        for g in range(n_groups):
            if filled < firsts.shape[1] and tops[g] >= edge:
                best, at = np.float32(-np.inf), g
                for i in range(g, n, n_groups):
                    value = _wide(row[i], half) * (scale * latent_scales[i]) + biases[i]
                    if value > best:
                        best, at = value, i
                firsts[r, filled] = at
                filled += 1
                product = _wide(row[at], half) * (scale * latent_scales[at])
                bound = _bound(product, biases[at], row_errors[r], row_norms[r], norms[at], errors[at], own)
                edges[r] = min(edges[r], product + biases[at] - bound)


@njit(cache=True, parallel=True)
def _reach(
    products,
    scales,
    row_errors,
    row_norms,
    latent_scales,
    biases,
    norms,
    errors,
    own,
    group_biases,
    group_norms,
    group_errors,
    peaks,
    edges,
    firsts,
    places,
    counts,
):
    """The entries beside the first that can reach a row's edge: a group's peak and largest error tell if any can."""
    n, width, n_groups = products.shape[1], places.shape[1], peaks.shape[1]
    half = products.itemsize == 2
    for r in prange(products.shape[0]):
        row, scale, row_error, row_norm, edge = products[r], scales[r], row_errors[r], row_norms[r], edges[r]
        filled = 0
        for g in range(n_groups):
            size = abs(peaks[r, g]) + group_biases[g]
            bound = _bound(size, group_biases[g], row_error, row_norm, group_norms[g], group_errors[g], own)
            if not peaks[r, g] + np.float32(1.0001) * bound < edge:
                for i in range(g, n, n_groups):
                    product = _wide(row[i], half) * (scale * latent_scales[i])
                    bound = _bound(product, biases[i], row_error, row_norm, norms[i], errors[i], own)
                    if product + biases[i] + bound >= edge:
                        known = False
                        for f in range(firsts.shape[1]):
                            known |= firsts[r, f] == i
                        if not known:
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
def _best(known, known_places, values, indices, offsets, largest, places):
    """In falling order, of equal ones those of the first latents."""
    k, n_known = largest.shape[1], known.shape[1]
    for r in prange(largest.shape[0]):
        held, which, filled, first = largest[r], places[r], 0, offsets[r] - n_known
        for e in range(first, offsets[r + 1]):
            if e < offsets[r]:
                value, index = known[r, e - first], known_places[r, e - first]
            else:
                value, index = values[e], indices[e]
            if filled == k and (value < held[k - 1] or (value == held[k - 1] and index > which[k - 1])):
                continue
            at = filled if filled < k else k - 1
            filled = min(filled + 1, k)
            while at > 0 and (value > held[at - 1] or (value == held[at - 1] and index < which[at - 1])):
                held[at], which[at] = held[at - 1], which[at - 1]
                at -= 1
            held[at], which[at] = value, index
