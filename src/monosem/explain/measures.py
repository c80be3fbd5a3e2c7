"""From answers to a score: rates, areas and correlations with closed 95 % intervals that few examples do not fool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monosem.features.explanations import Score

Z = 1.959964


class Rate(NamedTuple):
    """A share and its 95 % interval; NaN where there is nothing to count."""

    value: float
    low: float
    high: float
    n: int


def rate(right: np.ndarray, weights: np.ndarray | None = None) -> Rate:
    """The weighted share of what is right, each 0 to 1, with Wilson's interval for as many as the weights amount to."""
    n = len(right)
    weights = np.ones(n) if weights is None else weights
    if n == 0 or not weights.sum():
        return Rate(math.nan, math.nan, math.nan, 0)
    share = float((weights * right).sum() / weights.sum())
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    middle = (share + Z * Z / (2 * effective)) / (1 + Z * Z / effective)
    half = Z / (1 + Z * Z / effective) * math.sqrt(share * (1 - share) / effective + (Z / (2 * effective)) ** 2)
    return Rate(share, max(0.0, middle - half), min(1.0, middle + half), n)


def mean_of_rates(a: Rate, b: Rate) -> Rate:
    """The mean of two independent shares; its interval is made of theirs (Newcombe, 1998)."""
    value = (a.value + b.value) / 2
    below = math.hypot(a.value - a.low, b.value - b.low) / 2
    above = math.hypot(a.high - a.value, b.high - b.value) / 2
    return Rate(value, value - below, value + above, a.n + b.n)


def area(positive: np.ndarray, negative: np.ndarray, weights: np.ndarray | None = None) -> Rate:
    """How often a positive value stands above a negative one (area under the ROC curve); equal ones count half.

    The interval holds all areas that are not rejected at 5 %, with the variance of Hanley and McNeil (Newcombe, 2006).
    """
    m, n = len(positive), len(negative)
    if not m or not n:
        return Rate(math.nan, math.nan, math.nan, 0)
    weights = np.ones(m) if weights is None else weights
    above = (positive[:, None] > negative).mean(1) + 0.5 * (positive[:, None] == negative).mean(1)
    value = float((weights * above).sum() / weights.sum())
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    areas = np.linspace(0, 1, 2001)
    extra = ((effective + n) / 2 - 1) * ((1 - areas) / (2 - areas) + areas / (1 + areas))
    kept = areas[(value - areas) ** 2 <= Z * Z * areas * (1 - areas) * (1 + np.maximum(0, extra)) / (effective * n)]
    return Rate(value, min(value, float(kept.min(initial=value))), max(value, float(kept.max(initial=value))), m + n)


def correlation(predicted: Sequence[np.ndarray], true: Sequence[np.ndarray]) -> Rate:
    """Pearson's r over all tokens of some windows; the interval is a bootstrap over windows. NaN if one is constant."""
    n = len(predicted)
    if not n:
        return Rate(math.nan, math.nan, math.nan, 0)
    pairs = zip(predicted, true, strict=True)
    sums = np.array([(len(p), p.sum(), t.sum(), (p * p).sum(), (t * t).sum(), (p * t).sum()) for p, t in pairs])
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), 1000)
    values = _pearson(draws @ sums)
    values = values[np.isfinite(values)]
    value = float(_pearson(sums.sum(0)))
    if math.isnan(value) or not len(values):
        return Rate(math.nan, math.nan, math.nan, n)
    low, high = np.quantile(values, [0.025, 0.975])
    return Rate(value, float(low), float(high), n)


def _pearson(sums: np.ndarray) -> np.ndarray:
    n, p, t, pp, tt, pt = np.moveaxis(sums, -1, 0)
    spread = np.maximum(0, pp - p * p / n) * np.maximum(0, tt - t * t / n)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(spread > 1e-12, (pt - p * t / n) / np.sqrt(spread), np.nan)


def by_level(right: np.ndarray, levels: np.ndarray) -> dict[str, float]:
    """The share of what is right at every level that was tested."""
    return {f"level {level}": float(right[levels == level].mean()) for level in np.unique(levels).tolist()}


def scored(value: Rate, judge: str | None, details: dict[str, float]) -> Score | None:
    """A score; None where nothing could be measured. Details that are no numbers are left out."""
    if math.isnan(value.value):
        return None
    known = {name: float(number) for name, number in details.items() if math.isfinite(number)}
    return Score(value=value.value, low=value.low, high=value.high, n=value.n, judge=judge, details=known)
