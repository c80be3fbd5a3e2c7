"""How well scores tell two sides apart, on rows drawn anew: AUROC and accuracy with their intervals."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from monosem.evaluation.paired import SHOWN, Difference
from monosem.intervals import Interval, draws

Draws = Float[np.ndarray, " one_and_draws"]
"""A metric of the rows as they are, then of each draw of them."""


def weights_of(n: int, seed: int = 0) -> Float[np.ndarray, "rows one_and_draws"]:
    """How often each of n rows counts: once, then as often as it is drawn."""
    return np.concatenate([np.ones((n, 1), np.float32), draws(n, seed).T.astype(np.float32)], axis=1)


def auroc(scores: Float[np.ndarray, " rows"], positive: Bool[np.ndarray, " rows"]) -> float:
    """The chance that a positive row scores above a negative one; ties are half."""
    return float(drawn_auroc(scores, positive, np.ones((len(scores), 1), np.float32))[0])


def drawn_auroc(
    scores: Float[np.ndarray, " rows"],
    positive: Bool[np.ndarray, " rows"],
    weights: Float[np.ndarray, "rows draws"],
) -> Float[np.ndarray, " draws"]:
    """AUROC of weighted rows; NaN where a draw has one side alone."""
    order = np.argsort(scores[~positive], kind="stable")
    below = np.zeros((len(order) + 1, weights.shape[1]), np.float32)
    np.cumsum(weights[~positive][order], axis=0, out=below[1:])
    low, high = scores[~positive][order], scores[positive]
    first, last = (np.searchsorted(low, high, side) for side in ("left", "right"))
    drawn = weights[positive]
    beaten = np.einsum("rd,rd->d", drawn, below[first] + below[last], dtype=np.float64) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return beaten / (drawn.sum(0, dtype=np.float64) * below[-1])


def drawn_accuracy(
    scores: Float[np.ndarray, " rows"],
    positive: Bool[np.ndarray, " rows"],
    weights: Float[np.ndarray, "rows draws"],
) -> Float[np.ndarray, " draws"]:
    """Balanced accuracy of weighted rows at the threshold 0: the mean of what is right on either side."""
    right = (scores > 0) == positive
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = [
            (weights.T @ (right & side)) / (weights.T @ side.astype(np.float32)) for side in (positive, ~positive)
        ]
    return np.mean(np.stack(shares), axis=0, dtype=np.float64).reshape(-1)


def interval_of(drawn: Draws) -> Interval:
    """The value and its 95 % percentile interval over the draws."""
    value, resampled = float(drawn[0]), drawn[1:][np.isfinite(drawn[1:])]
    if not np.isfinite(value) or not len(resampled):
        return Interval(value if np.isfinite(value) else float("nan"))
    low, high = np.quantile(resampled, [0.025, 0.975])
    return Interval(value, float(low), float(high))


def difference_of(drawn: Draws) -> Difference:
    """A difference that was drawn in pairs, and the smallest that these rows could have shown."""
    value, low, high = interval_of(drawn)
    if low is None or high is None:
        low = high = float("nan")
    resampled = drawn[1:][np.isfinite(drawn[1:])]
    return Difference(value, low, high, SHOWN * float(resampled.std()) if len(resampled) else float("nan"))
