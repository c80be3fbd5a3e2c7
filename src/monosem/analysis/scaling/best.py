"""Which width and how many tokens are best for a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from monosem.analysis.scaling.fit import predicted
from monosem.intervals import Interval

HALVINGS = 60
FLAT = 0.01
"""Widths are as good as the best one where the loss is higher by no more than this share."""


@dataclass(frozen=True)
class Recommendation:
    """The best split of a budget, with 95 % intervals of the fit."""

    compute: float
    """Latents times tokens."""
    n_latents: Interval
    tokens: Interval
    loss: Interval
    """What to expect there."""
    as_good: tuple[float, float]
    """Widths, at the same compute, with a loss at most 1 % higher."""
    beyond: float
    """Times the largest compute that was swept; above 1 this is an extrapolation."""

    def __str__(self) -> str:
        n, tokens, loss = self.n_latents, self.tokens, self.loss
        far = f"; {self.beyond:.3g} times the largest of the sweep: extrapolated" if self.beyond > 1.01 else ""
        return (
            f"{self.compute:.3g} latents x tokens: {_of(n)} latents on {_of(tokens)} tokens, "
            f"loss {loss.value:.4g} ({loss.low:.4g} - {loss.high:.4g}); "
            f"{rounded(self.as_good[0])} - {rounded(self.as_good[1])} latents are within {FLAT:.0%}{far}"
        )


def _of(interval: Interval) -> str:
    return f"{rounded(interval.value)} ({rounded(interval.low or 0)} - {rounded(interval.high or 0)})"


def rounded(value: float) -> str:
    """To two digits, in words of millions and billions from a million on."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.2g} {letter}" if value < 100 * size else f"{value / size:,.0f} {letter}"
    return f"{float(f'{value:.2g}'):,.0f}"


def best_width(
    parameters: Float[np.ndarray, "draws 5"], log_compute: float, overhead: float = 0.0
) -> Float[np.ndarray, " draws"]:
    """log(N / N0) of the least loss where (N + overhead) D is the compute, in units of N0 D0.

    The loss is convex in log N: the root of its slope is found by halving. Without overhead it is where the two terms
    are as alpha a N^-alpha = beta b D^-beta.
    """
    _, a, alpha, b, beta = parameters.T
    low, high = np.full(len(a), -60.0), np.full(len(a), 60.0)
    with np.errstate(over="ignore"):
        for _ in range(HALVINGS):
            log_n = (low + high) / 2
            n = np.exp(log_n)
            log_d = log_compute - np.log(n + overhead)
            slope = -alpha * a * np.exp(-alpha * log_n) + beta * b * np.exp(-beta * log_d) * n / (n + overhead)
            low, high = np.where(slope < 0, log_n, low), np.where(slope < 0, high, log_n)
    return (low + high) / 2


def flat_around(parameters: np.ndarray, log_n: float, log_compute: float, overhead: float) -> tuple[float, float]:
    """log(N / N0) of the narrowest and widest dictionary whose loss is at most `FLAT` above the best one's."""
    widths = log_n + np.linspace(-np.log(1024), np.log(1024), 4097)
    losses = predicted(parameters, widths, log_compute - np.log(np.exp(widths) + overhead))
    near = widths[losses <= (1 + FLAT) * losses.min()]
    return float(near[0]), float(near[-1])
