"""The least-squares fit of loss = floor + a (N / N0)^-alpha + b (D / D0)^-beta, of many sets of losses at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from monosem.errors import DataError

EXPONENTS = (0.01, 3.0)
"""Between which they are looked for; one at an edge has not been found."""
STARTS = np.geomspace(0.03, 2.0, 9)
KEPT = 5
"""Of the starting points, which are tried to the end."""
STEPS = 200

Parameters = Float[np.ndarray, "sets 5"]
"""floor, a, alpha, b, beta; a and b are the losses due to width and tokens at N0 and D0."""


class Axes(NamedTuple):
    """What was swept, in units of its own middle: so that a and b are losses, and no exponent moves them."""

    log_n: Float[np.ndarray, " points"]
    log_d: Float[np.ndarray, " points"]


def predicted(
    parameters: Float[np.ndarray, "... 5"], log_n: np.ndarray, log_d: np.ndarray
) -> Float[np.ndarray, "... points"]:
    """The loss at log(N / N0), log(D / D0)."""
    floor, a, alpha, b, beta = np.moveaxis(parameters, -1, 0)[..., None]
    return floor + a * np.exp(-alpha * log_n) + b * np.exp(-beta * log_d)


def fitted(axes: Axes, losses: Float[np.ndarray, " points"]) -> Float[np.ndarray, 5]:
    """The parameters with the least squared error of log loss.

    For given exponents the other three follow from a linear problem with no negative solutions: that finds where to
    start from.

    Raises:
        DataError: the losses are not positive.
    """
    from scipy.optimize import nnls

    if not (losses > 0).all():
        raise DataError("a loss of 0 or less has no logarithm to fit: measure what falls towards a floor above 0")
    starts: list[tuple[float, np.ndarray]] = []
    for alpha in STARTS:
        for beta in STARTS:
            columns = np.stack([np.ones_like(losses), np.exp(-alpha * axes.log_n), np.exp(-beta * axes.log_d)], 1)
            (floor, a, b), error = nnls(columns / losses[:, None], np.ones_like(losses))
            starts.append((float(error), np.array([floor, a, alpha, b, beta])))
    best = np.stack([one for _, one in sorted(starts, key=lambda pair: pair[0])[:KEPT]])
    found = refitted(axes, np.tile(losses, (KEPT, 1)), best)
    return found[np.square(_errors(axes, found, np.log(losses))).sum(1).argmin()]


def refitted(axes: Axes, losses: Float[np.ndarray, "sets points"], start: Parameters) -> Parameters:
    """As `fitted`, of several sets of losses, each from a start: Levenberg-Marquardt steps within bounds."""
    logs, top = np.log(losses), 10 * losses.max(1)
    tiny = 1e-9 * top
    low = np.stack([0 * top, tiny, 0 * top + EXPONENTS[0], tiny, 0 * top + EXPONENTS[0]], 1)
    high = np.stack([losses.min(1), top, 0 * top + EXPONENTS[1], top, 0 * top + EXPONENTS[1]], 1)
    x = np.clip(start, low, high)
    errors = _errors(axes, x, logs)
    cost, damping = np.square(errors).sum(1), np.full(len(x), 1e-2)
    for _ in range(STEPS):
        slopes = _slopes(axes, x)
        downhill = np.einsum("spj,sp->sj", slopes, errors)
        stuck = ((x <= low) & (downhill > 0)) | ((x >= high) & (downhill < 0))
        slopes[np.broadcast_to(stuck[:, None], slopes.shape)] = 0
        squares = np.einsum("spi,spj->sij", slopes, slopes)
        diagonal = np.einsum("sii->si", squares)
        diagonal += damping[:, None] * diagonal + np.where(diagonal > 0, 0.0, 1.0)
        moves = np.linalg.solve(squares, -np.where(stuck, 0, downhill)[..., None])[..., 0]
        new = np.clip(x + moves, low, high)
        new_errors = _errors(axes, new, logs)
        new_cost = np.square(new_errors).sum(1)
        better = new_cost < cost
        still = np.where(better, cost - new_cost, 0.0).max()
        x, errors = np.where(better[:, None], new, x), np.where(better[:, None], new_errors, errors)
        cost, damping = (
            np.where(better, new_cost, cost),
            np.clip(np.where(better, damping / 3, damping * 4), 1e-12, 1e8),
        )
        if still < 1e-15 and damping.min() > 1e3:
            break
    return x


def _errors(axes: Axes, x: Parameters, logs: np.ndarray) -> np.ndarray:
    return np.log(predicted(x, *axes)) - logs


def _slopes(axes: Axes, x: Parameters) -> Float[np.ndarray, "sets points 5"]:
    """Of the log loss, by each parameter."""
    floor, a, alpha, b, beta = x.T[..., None]
    wide, long = np.exp(-alpha * axes.log_n), np.exp(-beta * axes.log_d)
    of = (np.ones_like(wide), wide, -a * wide * axes.log_n, long, -b * long * axes.log_d)
    return np.stack(of, -1) / (floor + a * wide + b * long)[..., None]
