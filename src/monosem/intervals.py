"""Intervals: every metric here is a function of sums over documents, and the bootstrap draws documents anew."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from monosem.ranks import Group

N_RESAMPLES = 1000
MAX_GROUPS = 2048
"""More documents than these are put together in groups, which are then drawn."""


COUNTS = ("rows", "predictions", "count")
"""Names of sums that say how much a document has."""

Metric = Callable[[dict[str, np.ndarray]], np.ndarray]
"""From sums, each (...) or (..., width), to a value (...)."""


class Interval(NamedTuple):
    """A value (NaN where there is none, as of a division by nothing) and its 95 % interval, or None for one."""

    value: float
    low: float | None = None
    high: float | None = None


class Drawn(Interval):
    """An interval that still has its draws: that of a difference between two of the same documents is paired."""

    draws: np.ndarray
    """(N_RESAMPLES,) the value for each resample of the documents; NaN where it has none."""
    documents: str
    """A fingerprint of the documents: the same one where the same are drawn, each with as many rows."""


class DocumentSums:
    """Sums of named quantities per document (or group of documents)."""

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        """(MAX_GROUPS,) or (MAX_GROUPS, width), by name."""

    def add(self, name: str, documents: np.ndarray, values: np.ndarray) -> None:
        """Add values (rows,) or (rows, width) to the sums of their documents (rows,)."""
        groups = documents % MAX_GROUPS
        values = np.asarray(values, dtype=np.float64)
        if name not in self.arrays:
            self.arrays[name] = np.zeros((MAX_GROUPS, *values.shape[1:]))
        if values.ndim == 1:
            self.arrays[name] += np.bincount(groups, weights=values, minlength=MAX_GROUPS)
            return
        order = np.argsort(groups, kind="stable")
        present, starts = np.unique(groups[order], return_index=True)
        self.arrays[name][present] += np.add.reduceat(values[order], starts, axis=0)

    def add_binned(self, name: str, documents: np.ndarray, bins: np.ndarray, values: np.ndarray, n_bins: int) -> None:
        """Add values (rows,) to the sums (n_bins,) of their documents, each in its bin (rows,)."""
        places = (documents % MAX_GROUPS) * n_bins + bins
        found = np.bincount(places, weights=values, minlength=MAX_GROUPS * n_bins).reshape(MAX_GROUPS, n_bins)
        self.arrays[name] = self.arrays[name] + found if name in self.arrays else found

    def add_up(self, every: Group) -> None:
        """Take in what other processes have, of which each takes in all."""
        if every.size == 1:
            return
        said = every.words({name: sums.shape for name, sums in self.arrays.items()})
        for name, shape in {name: shape for one in said for name, shape in one.items()}.items():
            every.sum_(torch.from_numpy(self.arrays.setdefault(name, np.zeros(shape))))

    def merge(self, other: DocumentSums) -> None:
        """Take in what another has."""
        for name, values in other.arrays.items():
            self.arrays[name] = self.arrays[name] + values if name in self.arrays else values.copy()

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def total(self, name: str) -> np.ndarray:
        return self.arrays[name].sum(0)

    def totals(self) -> dict[str, np.ndarray]:
        return _WhenAsked(self.total)

    def drawn(self, weights: np.ndarray, groups: np.ndarray) -> dict[str, np.ndarray]:
        """The sums of documents drawn anew: how often (draws, groups) each of the groups is drawn."""
        return _WhenAsked(lambda name: weights @ self.arrays[name][groups])

    def sizes(self) -> np.ndarray:
        """(MAX_GROUPS, ...) how much each group of documents has; 0 for those that are not there."""
        known = next((self.arrays[name] for name in COUNTS if name in self.arrays), None)
        return np.any([s != 0 for s in self.arrays.values() if s.ndim == 1], axis=0) if known is None else known

    def fingerprint(self) -> str:
        """A short hash of what was added first, by document: of counts it tells whether two are of the same rows."""
        first = next(iter(self.arrays.values()), np.zeros(0))
        return hashlib.sha256(first.tobytes()).hexdigest()[:16]

    def interval(self, metric: Metric, seed: int = 0) -> Interval:
        """A metric and its 95 % percentile bootstrap interval over documents; the seed is that of the resampling."""
        return mean_interval([(self, metric)], seed)

    def curve(self, metric: Metric, seed: int = 0) -> list[Interval]:
        """A metric of binned sums, bin by bin, with the intervals of `interval`."""
        used = _present([self])
        with np.errstate(divide="ignore", invalid="ignore"):  # a bin may be empty
            values = metric(self.totals())
            resampled = metric(self.drawn(draws(len(used), seed), used))
        found: list[Interval] = []
        for value, drawn in zip(values.tolist(), resampled.T, strict=True):
            drawn = drawn[np.isfinite(drawn)]
            if not np.isfinite(value) or len(used) < 2 or not len(drawn):
                found.append(Interval(value if np.isfinite(value) else float("nan")))
            else:
                found.append(Interval(value, *np.quantile(drawn, [0.025, 0.975]).tolist()))
        return found


class _WhenAsked(dict[str, np.ndarray]):
    """Sums that are made when a metric asks for them: few ask for the wide ones, which take long."""

    def __init__(self, make: Callable[[str], np.ndarray]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, name: str) -> np.ndarray:
        return self.setdefault(name, self._make(name))


def mean_interval(parts: Sequence[tuple[DocumentSums, Metric]], seed: int = 0) -> Interval:
    """The mean of several metrics of the same documents, as `DocumentSums.interval` gives one; all drawn together."""
    used = _present([sums for sums, _ in parts])
    weights = draws(len(used), seed)
    with np.errstate(divide="ignore", invalid="ignore"):  # of few documents, a draw may have no variance
        value = float(np.mean([metric(sums.totals()) for sums, metric in parts]))
        resampled = np.mean([metric(sums.drawn(weights, used)) for sums, metric in parts], axis=0)
    value = value if np.isfinite(value) else float("nan")
    finite = np.isfinite(resampled)
    if len(used) < 2 or np.isnan(value) or not finite.any():
        return Interval(value)
    low, high = np.quantile(resampled[finite], [0.025, 0.975])
    found = Drawn(value, float(low), float(high))
    found.draws, found.documents = np.where(finite, resampled, np.nan), parts[0][0].fingerprint()
    return found


def _present(sums: Sequence[DocumentSums]) -> np.ndarray:
    """The numbers of the groups that have documents."""
    return np.flatnonzero(np.any([one.sizes().reshape(MAX_GROUPS, -1).any(1) for one in sums], axis=0))


@lru_cache(maxsize=2)  # all metrics of a pass are of the same documents
def draws(n: int, seed: int) -> np.ndarray:
    """(N_RESAMPLES, n) how often each of n documents is drawn in each resample."""
    if not n:
        return np.zeros((N_RESAMPLES, 0))
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=N_RESAMPLES).astype(np.float64)
