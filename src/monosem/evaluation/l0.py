"""How many latents are on: its distribution, where it peaks, and what the beginning of a text does to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from monosem.evaluation.metric import Metric, Seen
from monosem.evaluation.tables import DataTable
from monosem.intervals import Interval

BEGINNING = 4
"""Tokens of a document, or positions of a context, that count as its beginning."""
MOST_ROWS = 64


class L0(Metric):
    """Latents on per token, with and without the first tokens of documents and contexts."""

    def __init__(self, saes: Sequence[str]) -> None:
        super().__init__()
        self.saes = saes

    def add(self, seen: Seen) -> None:
        documents, begins = seen.documents.cpu().numpy(), np.zeros(len(seen), bool)
        if seen.batch is not None and seen.kept is not None:
            places = seen.kept.nonzero()[:, 1].numpy()
            begins = (seen.batch.position[seen.kept].numpy() < BEGINNING) | (places < BEGINNING)
        self.sums.add("rows", documents, np.ones(len(begins)))
        self.sums.add("begins", documents, begins)
        for name in self.saes:
            codes = seen.codes(name)
            assert codes is not None
            l0 = codes.l0().reshape(-1).cpu().numpy()
            self.sums.add(f"all {name}", documents, l0)
            self.sums.add(f"begins {name}", documents, np.where(begins, l0, 0))
            self.count(f"all {name}", np.bincount(l0))
            self.count(f"begins {name}", np.bincount(l0[begins]))

    def result(self, name: str) -> dict[str, Interval]:
        if name not in self.saes:
            return {}
        counts = self.counts[f"all {name}"]
        found = {"l0_mode": Interval(float(counts.argmax()))}
        if self.sums.total("begins"):
            found["l0_beginning"] = self.sums.interval(lambda s: s[f"begins {name}"] / s["begins"])
            found["l0_later"] = self.sums.interval(
                lambda s: (s[f"all {name}"] - s[f"begins {name}"]) / (s["rows"] - s["begins"])
            )
        return found

    def notes(self) -> dict[str, str]:
        return {"l0_mode": "no interval: the most frequent value, not a mean"}

    def tables(self, name: str) -> dict[str, DataTable]:
        if name not in self.saes:
            return {}
        whole = self.counts[f"all {name}"]
        begins = np.zeros_like(whole)
        own = self.counts[f"begins {name}"]
        begins[: len(own)] = own
        width = -(-len(whole) // MOST_ROWS)
        edges = np.arange(0, len(whole), width)
        later = whole - begins
        columns: dict[str, list[Any]] = {"L0": edges.tolist()}
        for label, counts in (("share", whole), ("share at the beginning", begins), ("share later", later)):
            if counts.sum():
                columns[label] = (np.add.reduceat(counts, edges) / counts.sum()).tolist()
        title = f"Distribution of L0{f', in steps of {width}' if width > 1 else ''}"
        return {"l0": DataTable(title, columns, {"L0": "latents on per token"})}
