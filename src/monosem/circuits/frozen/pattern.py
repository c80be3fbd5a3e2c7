"""An attention's pattern that is held still: laid up whole while there is room, made again in parts where not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.models.attention import Looked

HELD_BYTES = 2**28
"""Patterns of so many bytes are laid up, of the lowest layers, through which all rows pass; others are made again."""
BLOCK_NUMBERS = 2**22
"""Numbers of a pattern that are worked on at a time."""
BLOCK = 512
"""Queries at a time at most: none looks at later keys, so that of many blocks half the keys are left out."""


@dataclass
class Pattern:
    """How the queries of one layer look at keys, in one pass over one text."""

    attended: Looked = field(repr=False)
    dtype: torch.dtype
    held: Float[Tensor, "heads query key"] | None = field(default=None, repr=False)

    @property
    def heads(self) -> int:
        return self.attended.heads

    @property
    def length(self) -> int:
        return self.attended.length

    @property
    def size(self) -> int:
        """Bytes of it as a whole."""
        return self.heads * self.length**2 * self.dtype.itemsize

    def hold(self) -> None:
        """Lay it up."""
        self.held = torch.cat([_filled(part, self.length) for _, part in self.blocks(self.length)], dim=1)

    def rows(self, queries: Int[Tensor, " n"], n_keys: int) -> Float[Tensor, "heads n keys"]:
        """Some queries, by the first keys."""
        if self.held is not None:
            return self.held[:, queries, :n_keys]
        return self.attended.pattern(queries, n_keys)[0].to(self.dtype)

    def blocks(self, n: int) -> Iterator[tuple[slice, Float[Tensor, "heads n keys"]]]:
        """The first n queries in blocks, each by the keys up to its last query."""
        every = torch.arange(n, device=self.attended.device)
        size = min(BLOCK, max(1, BLOCK_NUMBERS // (self.heads * n)))
        for queries in every.split(size):
            first, end = int(queries[0]), int(queries[-1]) + 1
            held = None if self.held is None else self.held[:, first:end, :end]
            yield slice(first, end), self.rows(queries, end) if held is None else held

    def square(self, n: int) -> Float[Tensor, "heads n n"]:
        """The first n queries by the first n keys."""
        if self.held is not None:
            return self.held[:, :n, :n]
        return torch.cat([_filled(part, n) for _, part in self.blocks(n)], dim=1)

    def sums(self) -> Float[Tensor, "heads query"]:
        """Of each query how much it takes in all."""
        return torch.cat([part.sum(-1) for _, part in self.blocks(self.length)], dim=1)


def _filled(part: Float[Tensor, "heads n keys"], n: int) -> Float[Tensor, "heads n n"]:
    return torch.nn.functional.pad(part, (0, n - part.shape[2]))
