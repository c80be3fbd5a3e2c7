"""Columns of numbers, one row a text: dense, or sparse where most of them are 0. And which of them tell sides apart."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from monosem.evaluation.probing.logistic import Logistic, fit_logistic, side_weights

Choose = Literal["greedy", "difference"]


class Columns:
    """Numbers of texts; rows can be taken, columns weighed, and a few of them read."""

    def __init__(self, values: Float[np.ndarray, "texts n"] | sparse.csr_array) -> None:
        self.values: Any = values

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape

    def rows(self, rows: Int[np.ndarray, " some"]) -> Columns:
        return Columns(self.values[rows])

    def weighed(self, weights: Float[np.ndarray, " texts"]) -> Float[np.ndarray, " n"]:
        """The weighted sum of each column."""
        return np.asarray(self.values.T @ weights, dtype=np.float64)

    @cached_property
    def moments(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Mean and standard deviation of each column."""
        if not sparse.issparse(self.values):
            return self.values.mean(0, dtype=np.float64), self.values.std(0, dtype=np.float64)
        n, m = self.shape
        entries, columns = self._by_column.data, np.repeat(np.arange(m), np.diff(self._by_column.indptr))
        mean, second = (np.bincount(columns, entries**power, m) / max(1, n) for power in (1, 2))
        return mean, np.sqrt(np.maximum(second - mean**2, 0))

    def read(self, columns: Int[np.ndarray, " k"]) -> Float[np.ndarray, "texts k"]:
        """A few columns, dense."""
        if not sparse.issparse(self.values):
            return np.asarray(self.values[:, columns], dtype=np.float64)
        return np.asarray(self._by_column[:, columns].todense(), dtype=np.float64)

    @cached_property
    def _by_column(self) -> sparse.csc_array:
        return self.values.tocsc()


def chosen(
    train: Columns, positive: Bool[np.ndarray, " texts"], k: int, how: Choose, speaks_for: bool = False
) -> Int[np.ndarray, " k"]:
    """The k columns that tell the sides apart, the best first; fewer where fewer are not constant.

    "greedy": one after the other, that which most reduces the loss of the logistic regression on those before (the
    largest gradient by a standardised column): the first is that of the largest correlation with the label.
    "difference": by the difference of the two sides' means, as Gurnee et al. (2023) and SAEBench choose them.

    With `speaks_for`, only columns of which more speaks for the positive side.
    """
    mean, scale = train.moments
    share = side_weights(positive)
    usable = scale > 1e-7 * np.abs(mean).clip(1e-12)
    if how == "difference":
        apart = train.weighed(np.where(positive, 2 * share, -2 * share))
        apart = apart if speaks_for else np.abs(apart)
        order = np.argsort(-np.where(usable, apart, -np.inf), kind="stable")
        return order[: min(k, int(usable.sum()))]
    found: list[int] = []
    p = np.full(len(positive), 0.5)
    start = None
    while len(found) < min(k, int(usable.sum())):
        gradient = share * (positive - p)
        gain = train.weighed(gradient) - gradient.sum() * mean
        gain = gain if speaks_for else np.abs(gain)
        gain = np.where(usable, gain / np.where(usable, scale, 1.0), -np.inf)
        gain[found] = -np.inf
        found.append(int(gain.argmax()))
        if len(found) < k:
            x = train.read(np.array(found))
            fitted = fit_logistic(x, positive, start=start)
            start = np.concatenate([fitted.weights, [0.0, fitted.bias]])
            p = 0.5 * (1 + np.tanh(fitted(x) / 2))
    return np.array(found, np.int64)


def fit_columns(train: Columns, positive: Bool[np.ndarray, " texts"], columns: Int[np.ndarray, " k"]) -> Logistic:
    """A logistic regression on a few columns."""
    return fit_logistic(train.read(columns), positive)
