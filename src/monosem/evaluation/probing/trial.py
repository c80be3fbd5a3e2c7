"""One probe after another: chosen and fitted on some texts, tried on others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from monosem.evaluation.probing.columns import Choose, Columns, chosen, fit_columns
from monosem.evaluation.probing.logistic import fit_dense
from monosem.evaluation.probing.scores import Draws, drawn_accuracy, drawn_auroc

ALL = "all"
"""In the place of k: every column."""


class Trial(NamedTuple):
    """What one probe came to on the test texts."""

    k: int | str
    auroc: Draws
    accuracy: Draws
    columns: list[int]
    """Those it reads, in the order in which they were chosen."""
    weights: list[float]
    """Of each standardised column."""


class Sides(NamedTuple):
    """The two sides of a probe, and how often each test text is drawn."""

    train: Bool[np.ndarray, " train"]
    test: Bool[np.ndarray, " test"]
    weights: Float[np.ndarray, "test draws"]


def sparse_trials(train: Columns, test: Columns, sides: Sides, ks: Sequence[int], how: Choose) -> Iterator[Trial]:
    """Probes of the best k columns, for every k. The test texts are looked at once all is fitted."""
    order = chosen(train, sides.train, max(ks), how)
    for k in ks:
        columns = order[:k]
        if len(columns):
            probe = fit_columns(train, sides.train, columns)
            scores, weights = probe(test.read(columns)), probe.weights.tolist()
        else:
            scores, weights = np.zeros(test.shape[0]), []
        yield _tried(k, scores, sides, columns.tolist(), weights)


def dense_trial(train: Columns, test: Columns, sides: Sides) -> Trial:
    """A logistic regression on all columns."""
    every = np.arange(train.shape[1])
    probe = fit_dense(train.read(every), sides.train)
    return _tried(ALL, probe(test.read(every)), sides, [], [])


def principal(train: Columns, both: Columns) -> Columns:
    """All texts along the principal directions of those to learn from."""
    x = train.read(np.arange(train.shape[1]))
    mean = x.mean(0)
    _, directions = np.linalg.eigh((x - mean).T @ (x - mean))
    return Columns((both.read(np.arange(both.shape[1])) - mean) @ directions[:, ::-1])


def _tried(k: int | str, scores: np.ndarray, sides: Sides, columns: list[int], weights: list[float]) -> Trial:
    return Trial(
        k,
        drawn_auroc(scores, sides.test, sides.weights),
        drawn_accuracy(scores, sides.test, sides.weights),
        columns,
        weights,
    )


def shuffled(labels: np.ndarray, rows: Int[np.ndarray, " some"], seed: int) -> np.ndarray:
    """Labels with those of some rows among each other in random order."""
    mixed = labels.copy()
    mixed[rows] = labels[np.random.default_rng(seed).permutation(rows)]
    return mixed
