"""What one pass shows to every metric, and what a metric is: a small accumulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.data import Batch
from monosem.evaluation.predictions import Predictions
from monosem.evaluation.tables import DataTable
from monosem.intervals import DocumentSums, Interval
from monosem.ranks import Group
from monosem.sae import SAE


class Column(Protocol):
    """What is measured: a dictionary or a control. Each has a column in the report."""

    def codes(self, x: Float[Tensor, "rows ..."], target: Float[Tensor, "rows d"]) -> SparseCodes | None:
        """Which latents are on; None for what has none."""
        ...

    def rebuild(
        self, x: Float[Tensor, "rows ..."], target: Float[Tensor, "rows d"], codes: SparseCodes | None
    ) -> Float[Tensor, "rows d"]:
        """What it predicts of the target."""
        ...


class Dictionary:
    """An SAE as a column: several sources side by side count as one long row."""

    def __init__(self, sae: SAE) -> None:
        self.sae = sae

    def codes(self, x: Float[Tensor, "rows ..."], target: Float[Tensor, "rows d"]) -> SparseCodes:
        return self.sae.encode(x.to(self.sae.W_enc.device))

    def rebuild(
        self, x: Float[Tensor, "rows ..."], target: Float[Tensor, "rows d"], codes: SparseCodes | None
    ) -> Float[Tensor, "rows d"]:
        assert codes is not None
        return self.sae.decode(codes, x.to(self.sae.W_enc.device)).flatten(1).to(target)


class Seen:
    """What a batch is to every metric: made once, shared. Codes and reconstructions are made when first asked for."""

    def __init__(
        self,
        x: Float[Tensor, "rows ..."],
        target: Float[Tensor, "rows d"],
        documents: Int[Tensor, " rows"],
        columns: Mapping[str, Column],
        *,
        batch: Batch | None = None,
        kept: Bool[Tensor, "contexts pos"] | None = None,
        start: int = 0,
        predict: Callable[[Seen], dict[str, Predictions]] | None = None,
    ) -> None:
        """Put together what is known of a batch.

        Args:
            x: what the dictionaries read, in float32; (rows, source, d) for those that read several sources.
            target: what they must predict, flat; x itself for an autoencoder of one source.
            documents: of which document (or image, or row) each row is.
            columns: the dictionaries and controls, by name.
            batch: the contexts; None for ready rows.
            kept: which positions of them the rows are, in order.
            start: number of the first context (or row).
            predict: runs the model with the reconstructions put in; None where no losses are wanted.
        """
        self.x, self.target, self.documents, self.columns = x, target, documents, columns
        self.batch, self.kept, self.start = batch, kept, start
        self._predict = predict
        self._predictions: dict[str, Predictions] | None = None
        self._codes: dict[str, SparseCodes | None] = {}
        self._rebuilt: dict[str, Tensor] = {}

    @staticmethod
    def of(
        target: Float[Tensor, "rows d"],
        rebuilt: Mapping[str, Float[Tensor, "rows d"]],
        documents: Int[Tensor, " rows"],
        codes: Mapping[str, SparseCodes] | None = None,
    ) -> Seen:
        """Rows whose reconstructions, and codes, are known already."""
        seen = Seen(target, target, documents, {})
        seen._rebuilt, seen._codes = dict(rebuilt), {name: (codes or {}).get(name) for name in rebuilt}
        return seen

    def __len__(self) -> int:
        return len(self.target)

    def codes(self, name: str) -> SparseCodes | None:
        """Of the dictionary or control of that name; None for a control without latents."""
        if name not in self._codes:
            self._codes[name] = self.columns[name].codes(self.x, self.target)
        return self._codes[name]

    def reconstruction(self, name: str) -> Float[Tensor, "rows d"]:
        """Likewise."""
        if name not in self._rebuilt:
            self._rebuilt[name] = self.columns[name].rebuild(self.x, self.target, self.codes(name))
        return self._rebuilt[name]

    def predictions(self) -> dict[str, Predictions]:
        """What the model predicts with the reconstructions put in, by the source that is replaced.

        Of the first contexts alone; later there are none.
        """
        if self._predictions is None:
            self._predictions = {} if self._predict is None else self._predict(self)
        return self._predictions


class Metric(ABC):
    """An accumulator: takes in batches, adds up with what other passes or processes have, and then says its results.

    All that it knows is in `sums`, by document, and in `counts`, arrays of any kind that add up (a shorter one is
    filled up with zeros): so it merges, is saved and goes on without a line of its own.
    """

    def __init__(self) -> None:
        self.sums = DocumentSums()
        self.counts: dict[str, np.ndarray] = {}

    @abstractmethod
    def add(self, seen: Seen) -> None:
        """Take in one batch."""

    @abstractmethod
    def result(self, name: str) -> dict[str, Interval]:
        """By metric key, of the dictionary or control of that name."""

    def notes(self) -> dict[str, str]:
        """By metric key, why it has no interval, or what else to know of it."""
        return {}

    def tables(self, name: str) -> dict[str, DataTable]:
        """Curves and tables of that column, by key."""
        return {}

    def facts(self) -> dict[str, str | int | float]:
        """What belongs to no column."""
        return {}

    def count(self, key: str, values: np.ndarray) -> None:
        """Add to one of the `counts`."""
        self.counts[key] = _added(self.counts[key], values) if key in self.counts else values.copy()

    def merge(self, other: Metric) -> None:
        """Take in what another pass has."""
        self.sums.merge(other.sums)
        for key, values in other.counts.items():
            self.count(key, values)

    def add_up(self, every: Group) -> None:
        """Take in what other processes have, of which each takes in all."""
        if every.size > 1:
            self.load_state(added_up(self.state(), every))

    def state(self) -> dict[str, np.ndarray]:
        """All that it knows, to go on from."""
        return {f"sums {key}": v for key, v in self.sums.arrays.items()} | {
            f"counts {key}": v for key, v in self.counts.items()
        }

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from what `state` gave."""
        for key, values in state.items():
            kind, _, name = key.partition(" ")
            (self.sums.arrays if kind == "sums" else self.counts)[name] = values.copy()


def added_up(state: Mapping[str, np.ndarray], every: Group) -> dict[str, np.ndarray]:
    """The sums of all processes, each array filled up with zeros to the longest."""
    if every.size == 1:
        return dict(state)
    said = every.words({key: [str(values.dtype), list(values.shape)] for key, values in state.items()})
    found: dict[str, np.ndarray] = {}
    for key, kind in sorted({key: one[key][0] for one in said for key in one}.items()):
        shapes = [one[key][1] for one in said if key in one]
        whole = np.zeros([max(sizes) for sizes in zip(*shapes, strict=True)], kind)
        if key in state:
            whole[tuple(slice(n) for n in state[key].shape)] = state[key]
        found[key] = every.sum_(torch.from_numpy(whole)).numpy()
    return found


def _added(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum of two arrays of as many dimensions, each filled up with zeros."""
    if a.shape == b.shape:
        return a + b
    whole = np.zeros([max(sizes) for sizes in zip(a.shape, b.shape, strict=True)], np.result_type(a, b))
    for part in (a, b):
        whole[tuple(slice(n) for n in part.shape)] += part
    return whole
