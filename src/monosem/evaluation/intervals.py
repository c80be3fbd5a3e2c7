"""Intervals: every metric here is a function of sums over documents, and the bootstrap draws documents anew."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

N_RESAMPLES = 1000
MAX_GROUPS = 2048
"""More documents than these are put together in groups, which are then drawn."""


class Interval(NamedTuple):
    """A value and its 95 % interval (None where an interval has no meaning)."""

    value: float
    low: float | None = None
    high: float | None = None


class DocumentSums:
    """Sums of named quantities per document (or group of documents)."""

    def __init__(self) -> None:
        self._sums: dict[str, np.ndarray] = {}

    def add(self, name: str, documents: np.ndarray, values: np.ndarray) -> None:
        """Add values (rows,) or (rows, width) to the sums of their documents (rows,)."""
        groups = documents % MAX_GROUPS
        values = np.asarray(values, dtype=np.float64)
        if name not in self._sums:
            self._sums[name] = np.zeros((MAX_GROUPS, *values.shape[1:]))
        if values.ndim == 1:
            self._sums[name] += np.bincount(groups, weights=values, minlength=MAX_GROUPS)
            return
        order = np.argsort(groups, kind="stable")
        present, starts = np.unique(groups[order], return_index=True)
        self._sums[name][present] += np.add.reduceat(values[order], starts, axis=0)

    def __contains__(self, name: str) -> bool:
        return name in self._sums

    def total(self, name: str) -> np.ndarray:
        return self._sums[name].sum(0)

    def interval(self, metric: Callable[[dict[str, np.ndarray]], np.ndarray], seed: int = 0) -> Interval:
        """A metric and its 95 % percentile bootstrap interval over documents.

        Args:
            metric: from sums, each (..., or ..., width), to the metric (...).
            seed: of the resampling.
        """
        names = list(self._sums)
        used = np.flatnonzero(self._sums[names[0]])
        weights = _draws(len(used), seed)
        with np.errstate(divide="ignore", invalid="ignore"):  # of few documents, a draw may have no variance
            value = float(metric({name: self._sums[name].sum(0) for name in names}))
            resampled = metric({name: weights @ self._sums[name][used] for name in names})
        resampled = resampled[np.isfinite(resampled)]
        if len(used) < 2 or not len(resampled):
            return Interval(value)
        low, high = np.quantile(resampled, [0.025, 0.975])
        return Interval(value, float(low), float(high))


@lru_cache(maxsize=2)  # all metrics of a pass are of the same documents
def _draws(n: int, seed: int) -> np.ndarray:
    """(N_RESAMPLES, n) how often each of n documents is drawn in each resample."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(np.float64)
