"""Losses by the position from which is predicted, and by how frequent the token is that follows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from monosem.evaluation.metric import Metric, Seen
from monosem.evaluation.predictions import Predictions
from monosem.evaluation.tables import DataTable
from monosem.intervals import Interval

MOST_BINS = 32
FREQUENCIES = (1e-2, 1e-3, 1e-4)
"""Shares of all tokens that part frequent from rare ones."""


class LossCurve(Metric):
    """Clean loss, and loss and KL with each column put in, over bins."""

    key: str
    title: str

    def __init__(self, columns: Sequence[str], n_bins: int) -> None:
        super().__init__()
        self.columns, self.n_bins = columns, n_bins

    @abstractmethod
    def bins(self, found: Predictions) -> np.ndarray:
        """(predictions,) the number of the bin of each."""

    @abstractmethod
    def scale(self) -> dict[str, list[Any]]:
        """The columns of the table that say what the bins are."""

    def add(self, seen: Seen) -> None:
        for found in seen.predictions().values():
            documents, bins = found.documents.numpy(), self.bins(found)

            def add(name: str, values: np.ndarray, documents: np.ndarray = documents, bins: np.ndarray = bins) -> None:
                self.sums.add_binned(name, documents, bins, values, self.n_bins)

            add("predictions", np.ones(len(found)))
            add("clean", found.loss["clean"])
            for name in self.columns:
                add(f"loss {name}", found.loss[name])
                add(f"kl {name}", found.kl[name])

    def result(self, name: str) -> dict[str, Interval]:
        return {}

    def tables(self, name: str) -> dict[str, DataTable]:
        if "predictions" not in self.sums:
            return {}
        met = self.sums.total("predictions") > 0
        columns = {key: _of(values, met) for key, values in self.scale().items()}
        columns["predictions"] = _of(self.sums.total("predictions").astype(int).tolist(), met)
        columns["clean loss"] = _of((self.sums.total("clean")[met.nonzero()[0]]).tolist(), None)
        columns["clean loss"] = [
            total / n for total, n in zip(columns["clean loss"], columns["predictions"], strict=True)
        ]
        shown = [("loss", f"loss {name}", "predictions"), ("KL", f"kl {name}", "predictions")]
        for label, own, base in shown:
            curve = self.sums.curve(lambda s, own=own, base=base: s[own] / s[base])
            for end, values in zip(("", " low", " high"), zip(*curve, strict=True), strict=True):
                columns[f"{label}{end}"] = [None if v is None or np.isnan(v) else v for v in _of(list(values), met)]
        units = {key: "nats" for key in columns if key.startswith(("clean loss", "loss", "KL"))}
        return {self.key: DataTable(self.title, columns, units)}


def _of(values: list[Any], met: np.ndarray | None) -> list[Any]:
    return values if met is None else [value for value, shown in zip(values, met, strict=True) if shown]


class ByPosition(LossCurve):
    """Over positions of the context from which is predicted."""

    key, title = "loss_by_position", "Loss by position in the context"

    def __init__(self, columns: Sequence[str], context_length: int) -> None:
        self.width = -(-context_length // MOST_BINS)
        super().__init__(columns, -(-context_length // self.width))

    def bins(self, found: Predictions) -> np.ndarray:
        return found.places.numpy() // self.width

    def scale(self) -> dict[str, list[Any]]:
        return {"position": [number * self.width for number in range(self.n_bins)]}


class ByFrequency(LossCurve):
    """Over how frequent the token is that is to be predicted, in text of the same kind."""

    key, title = "loss_by_frequency", "Loss by how frequent the next token is"

    def __init__(self, columns: Sequence[str], counts: np.ndarray) -> None:
        """`counts`, by token, of a sample of the text; the last is that of all tokens beyond."""
        super().__init__(columns, len(FREQUENCIES) + 1)
        shares = counts / max(counts.sum(), 1)
        self._bins = np.sum([shares < limit for limit in FREQUENCIES], axis=0)

    def bins(self, found: Predictions) -> np.ndarray:
        assert found.targets is not None
        return self._bins[np.minimum(found.targets.numpy(), len(self._bins) - 1)]

    def scale(self) -> dict[str, list[Any]]:
        words = [f"{limit:.2%} or more".replace(".00%", "%") for limit in FREQUENCIES]
        return {"share of all tokens": [*words, f"less than {FREQUENCIES[-1]:.2%}"]}
