"""Which texts a probe learns from and which it is tried on; no text is ever in both."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from monosem.errors import DataError
from monosem.evaluation.probing.labelled import Labelled

LEAST = 5
"""Texts of a label without which there is no probe, and no test of it."""


class Split(NamedTuple):
    """Rows to learn from and rows to be tried on."""

    name: str
    train: Int[np.ndarray, " some"]
    test: Int[np.ndarray, " others"]


def drawn_split(data: Labelled, test_share: float) -> Split:
    """Of every label (and source) the first texts, in the order of their keys, are for the test.

    Raises:
        DataError: of a label there are too few.
    """
    kinds = np.array([f"{label}\0{source}" for label, source in zip(data.labels, data.sources, strict=True)])
    test = np.zeros(len(data), bool)
    for kind in np.unique(kinds):
        rows = np.flatnonzero(kinds == kind)
        test[rows[: int(np.floor(test_share * len(rows) + 0.5))]] = True
    split = Split("", np.flatnonzero(~test), np.flatnonzero(test))
    require_enough(data, split)
    return split


def without_source(data: Labelled, split: Split, source: str) -> tuple[Split, Split] | str:
    """Tried on the test texts of a source: learned from the other sources, and from all.

    Where the source is of some labels only, the test texts of the other labels stand beside them. Returns in words why
    there is no such split.
    """
    own = data.sources == source
    in_test = np.isin(np.arange(len(data)), split.test)
    labels = np.unique(data.labels[in_test & own])
    others = ~np.isin(data.labels, labels)
    test = np.flatnonzero(in_test & (own | others))
    train = split.train[~own[split.train]]
    left = Split(f"without {source}", train, test)
    try:
        require_enough(data, left)
    except DataError as error:
        return str(error)
    return left, Split(f"with {source}", split.train, test)


def require_enough(data: Labelled, split: Split) -> None:
    """Refuse a split in which a label has too few texts.

    Raises:
        DataError: it has.
    """
    for what, rows in (("learn from", split.train), ("be tried on", split.test)):
        counts = Counter(data.labels[rows].tolist())
        for label in np.unique(data.labels).tolist():
            if counts[label] < LEAST:
                raise DataError(
                    f"{data.name}: of label {label!r} there are {counts[label]} texts to {what}{_of(split)}, fewer "
                    f"than {LEAST}: give more texts of it, or leave the label out"
                )


def _of(split: Split) -> str:
    return f" ({split.name})" if split.name else ""
