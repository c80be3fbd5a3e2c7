"""Logistic regression by Newton's method: to the minimum, so that the same rows in another order give the same."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

RIDGE = 1e-3
RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
"""Among which one is chosen for all directions at once."""
STEPS, CLOSE = 50, 1e-9


@dataclass(frozen=True)
class Logistic:
    """A direction and a threshold: above 0 is the positive side."""

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    weights: Float[np.ndarray, " d"]
    """Of standardised columns."""
    bias: float

    def __call__(self, x: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, " rows"]:
        """The log odds of rows."""
        return (x - self.mean) @ (self.weights / self.scale) + self.bias


def side_weights(positive: Bool[np.ndarray, " rows"]) -> Float[np.ndarray, " rows"]:
    """What each row counts: both sides half, so that 0 is a fair threshold however many rows a side has."""
    n = positive.sum()
    return np.where(positive, 0.5 / max(1, n), 0.5 / max(1, len(positive) - n))


def fit_logistic(
    x: Float[np.ndarray, "rows d"],
    positive: Bool[np.ndarray, " rows"],
    ridge: float = RIDGE,
    start: Float[np.ndarray, " d_plus_1"] | None = None,
) -> Logistic:
    """Minimise mean loss (both sides of equal weight) + ridge / 2 |w|^2, w of columns that are standardised.

    Args:
        x: columns; one that is constant gets no weight.
        positive: which rows are of the positive side.
        ridge: the penalty.
        start: weights and bias to begin with.
    """
    mean, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-12 * np.abs(mean).clip(1e-30), scale, np.inf)
    rows = np.concatenate([(x - mean) / scale, np.ones((len(x), 1))], axis=1)
    sign, share = np.where(positive, 1.0, -1.0), side_weights(positive)
    penalty = np.append(np.full(x.shape[1], ridge), 0.0)
    w = np.zeros(rows.shape[1]) if start is None else start.copy()

    def loss(w: np.ndarray) -> float:
        return float(share @ np.logaddexp(0, -sign * (rows @ w)) + penalty @ w**2 / 2)

    now = loss(w)
    for _ in range(STEPS):
        p = 0.5 * (1 + np.tanh(rows @ w / 2))
        gradient = rows.T @ (share * (p - positive)) + penalty * w
        if np.abs(gradient).max() < CLOSE:
            break
        curved = (rows.T * (share * p * (1 - p))) @ rows
        curved[np.diag_indices_from(curved)] += penalty + 1e-12
        step, length = np.linalg.solve(curved, gradient), 1.0
        while (after := loss(w - length * step)) > now and length > 1e-6:
            length /= 2
        if after > now:
            break
        w, now = w - length * step, after
    return Logistic(mean, scale, w[:-1], float(w[-1]))


def fit_dense(x: Float[np.ndarray, "rows d"], positive: Bool[np.ndarray, " rows"]) -> Logistic:
    """With the ridge that does best on every fourth of the rows, when it is fitted to the others."""
    from monosem.evaluation.probing.scores import auroc

    held = np.zeros(len(x), bool)
    for side in (positive, ~positive):
        held[np.flatnonzero(side)[::4]] = True
    best, ridge, start = -1.0, RIDGES[0], None
    for candidate in RIDGES:
        fitted = fit_logistic(x[~held], positive[~held], candidate, start)
        start = np.append(fitted.weights, fitted.bias)
        found = auroc(fitted(x[held]), positive[held])
        if found > best:
            best, ridge = found, candidate
    return fit_logistic(x, positive, ridge)
