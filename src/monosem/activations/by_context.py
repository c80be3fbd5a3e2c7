"""Activations context by context, and where each row stands: for a loss that has the model read on from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.activations.source import Place
from monosem.activations.views import HookSource
from monosem.data import Batch
from monosem.sae import SAEMetadata


class Part(NamedTuple):
    """Some contexts, and what was read of them."""

    start: int
    """Number of the first."""
    batch: Batch
    rows: Float[Tensor, "rows columns"]
    """Hook points side by side."""
    kept: Bool[Tensor, "contexts pos"]
    """Where the rows stand."""


class ContextReader(HookSource):
    """A source that can read its text context by context."""

    @abstractmethod
    def read_mixed(self, block: int) -> Iterator[Part]:
        """The contexts of a block in random order, a few at a time; the number of a part is that of no context."""


class Standing(NamedTuple):
    """Some contexts, and where in them rows stand, in the order of the rows."""

    batch: Batch
    where: Bool[Tensor, "contexts pos"]


class ContextActivations(HookSource):
    """The rows of a live source, of which those of a context follow one another; contexts come in random order.

    A pool has the contexts of one block of the live source, shuffled. With every batch it can be said where in the text
    its rows stand (`standing`).
    """

    def __init__(self, live: ContextReader) -> None:
        self.live = live
        self.widths, self.n_models, self.n_sources, self.d_in = live.widths, live.n_models, live.n_sources, live.d_in
        self._pools: dict[int, list[Standing]] = {}

    @property
    def device(self) -> torch.device | None:
        return self.live.device

    @property
    def metadata(self) -> SAEMetadata:
        return self.live.metadata

    @property
    def words(self) -> str:
        return self.live.words

    def by_context(self) -> ContextActivations:
        return self

    def canonical(self, hook: str) -> str:
        return self.live.canonical(hook)

    def split(self, rows: Float[Tensor, "batch columns"]) -> tuple[Tensor, Tensor | None]:
        return self.live.split(rows)

    def make_pool(self, number: int) -> Float[Tensor, "rows columns"]:
        parts = list(self.live.read_mixed(number))
        self._pools[number] = [Standing(part.batch, part.kept) for part in parts]
        return torch.cat([part.rows for part in parts]) if parts else torch.zeros(0, sum(self.widths.values()))

    def standing(self, place: Place, first: int, last: int) -> list[Standing]:
        """Where the rows first to last from a place on stand, in order, a few contexts at a time.

        Pools before that place are forgotten.
        """
        self._pools = {number: parts for number, parts in self._pools.items() if number >= place.pool}
        found, number, start = list[Standing](), place.pool, -place.row
        while start < last:
            if number not in self._pools:
                self.make_pool(number)
            for batch, kept in self._pools[number]:
                stop = start + int(kept.sum())
                if start < last and stop > first:
                    within, order = kept.clone(), torch.arange(start, stop)
                    within[kept] = (order >= first) & (order < last)
                    some = within.any(1).nonzero()[:, 0].tolist()
                    contexts = slice(some[0], some[-1] + 1)
                    found.append(Standing(batch[contexts], within[contexts]))
                start = stop
            number += 1
        return found

    def identity(self) -> dict[str, Any]:
        return {**self.live.identity(), "order": "by context"}

    def state(self) -> dict[str, Any]:
        return self.live.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.live.load_state(state)

    def to_read(self, rows: int) -> float:
        return self.live.to_read(rows)

    def probe(self) -> dict[str, Tensor]:
        return self.live.probe()

    def probe_activations(self, probe: dict[str, Tensor]) -> Float[Tensor, "rows columns"]:
        return self.live.probe_activations(probe)
