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
from torch import Tensor

from monosem.kernels import matmul, reaching
from monosem.kernels.buffers import done_with, empty
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
SMALLEST_TILE = 64
KEPT = 24 * 2**20
"""Bytes that an allocator gives again and caches hold in part; larger ones come from the system, page by page."""
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

    def product(self, x: Rounded, out: Tensor | None = None) -> Float[Tensor, "rows n"]:
        """The matmul of few bits, without scales and bias; eight bits make their own memory."""
        if self.precision == "int8":
            return matmul.integer_product(x.values, x.zero, self._product, len(self.bias))
        return torch.mm(x.values, self._product.T, out=out)

    def products(self, x: Rounded) -> Iterator[tuple[slice, Rounded, Float[Tensor, "rows n"]]]:
        """Tile after tile: which rows, what they are, and their matmul, which is gone when the next is asked for."""
        rows, n, at_once, held = len(x.values), len(self.bias), TILE_ROWS, None
        if self.precision == "int8":
            fit = KEPT // (matmul.integer_output().itemsize * n)
            at_once = min(TILE_ROWS, max(1, fit // SMALLEST_TILE) * SMALLEST_TILE)
        else:
            held = empty(min(rows, TILE_ROWS), n, dtype=x.values.dtype)
        try:
            for start in range(0, rows, at_once):
                tile = slice(start, min(start + at_once, rows))
                yield tile, x[tile], self.product(x[tile], None if held is None else held[: tile.stop - start])
        finally:
            if held is not None:
                done_with(held)

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
        return tuple(self._sizes(n_groups).max(1))

    def blocks(self, size: int) -> tuple[np.ndarray, ...]:
        """Likewise of every so many latents that follow one another."""
        return tuple(self._sizes(size).max(2))

    def _sizes(self, columns: int) -> np.ndarray:
        """(3, latents / columns, columns), with zeros at the end."""
        sizes = np.stack([np.abs(latent) for latent in self.latents()[1:]])
        padded = np.zeros((len(sizes), -(-sizes.shape[1] // columns) * columns), np.float32)
        padded[:, : sizes.shape[1]] = sizes
        return padded.reshape(len(sizes), -1, columns)

    def rows(self, x: Rounded, d: int) -> tuple[np.ndarray, ...]:
        """Of every row: scale, and what its errors are of a latent's norm and of a latent's rounding error."""
        own = (d + 8) * 2.0**-23 * x.norm + TINY
        return x.scale.numpy(), (1.001 * x.error + own).numpy(), (1.001 * x.rounded_norm + TINY).numpy()


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
    for tile, part, product in screen.products(rounded):
        held = counts[1:][tile]
        rows = len(held)
        bits, peaks, edges = _bits(product), torch.empty(rows, n_groups), torch.empty(rows)
        scales, row_errors, row_norms = screen.rows(part, d)
        own = np.float32(OUTPUT if product.dtype == torch.bfloat16 else 0)
        given = (bits, scales, row_errors, row_norms, latents, own)
        tops, found_here = (peaks.numpy(), edges.numpy()), (places.numpy(), held.numpy())
        if evaluate and first_known:
            reaching.peaks(*given, count, *tops, firsts[tile].numpy())
            known[tile] = evaluate(x[tile], firsts[tile])
            torch.maximum(edges, known[tile].amin(1), out=edges)
            reaching.reach(*given, groups, *tops, firsts[tile].numpy(), *found_here, False)
        else:
            reaching.peaks_and_reach(*given, groups, count, *tops, firsts[tile].numpy(), *found_here, evaluate is None)
        unsure[tile] = (held > width) | (held + known.shape[1] < k) | ~edges.isfinite()
        held[unsure[tile]] = 0
        found.append(_joined(places[:rows], held))
        if int(unsure[: tile.stop].sum()) > tile.stop // 2:  # of this text a screen is no help
            unsure[tile.stop :] = True
            break
    indices = torch.cat(found) if found else torch.zeros(0, dtype=torch.int32)
    return Candidates(known, firsts[:, : known.shape[1]], indices, counts.cumsum(0), unsure)


def _joined(places: Int32[Tensor, "rows width"], held: Int[Tensor, " rows"]) -> Int32[Tensor, " entries"]:
    """The first so many of every row, one row after the other."""
    ends = held.cumsum(0)
    joined = torch.empty(int(ends[-1]), dtype=torch.int32)
    reaching.gathered(places.numpy(), held.numpy(), (ends - held).numpy(), joined.numpy())
    return joined


def above(
    x: Float[Tensor, "rows d"], screen: Screen, limits: Float[Tensor, " n"]
) -> tuple[Int32[Tensor, " entries"], Int[Tensor, " rows_plus_1"]]:
    """All entries that can exceed their latent's limit."""
    counts, found = torch.zeros(len(x) + 1, dtype=torch.int64), list[Tensor]()
    rounded, latents, d = screen.rounded(x), screen.latents(), x.shape[1]
    edges = limits.detach().to(torch.float32).contiguous().numpy()
    blocks, width = screen.blocks(reaching.BLOCK), max(reaching.BLOCK, len(screen.bias) // WIDEST)
    for tile, part, product in screen.products(rounded):
        own = np.float32(OUTPUT if product.dtype == torch.bfloat16 else 0)
        given = (_bits(product), *screen.rows(part, d), latents, own, blocks, edges)
        held, places = counts[1:][tile], torch.empty(len(product), width, dtype=torch.int32)
        reaching.reach_limits(*given, places.numpy(), held.numpy())
        if int(held.max()) > width:
            width = int(held.max())
            places = torch.empty(len(product), width, dtype=torch.int32)
            reaching.reach_limits(*given, places.numpy(), held.numpy())
        found.append(_joined(places, held))
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
    reaching.best(*known, *others, largest.numpy(), places.numpy())
    return largest, places
