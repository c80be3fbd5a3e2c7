"""How often latents are on: how many have been by a budget of tokens, and which are on too often or hardly ever."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from monosem.intervals import Interval

DENSE, OFTEN = 0.1, 0.01
"""Firing rates above which a latent is dense, and above which it is on often; as SAEBench has them."""


def alive_share(counts: np.ndarray, rows: int, budgets: Sequence[int]) -> np.ndarray:
    """(budgets,) share of the latents that is on at least once in so many rows, drawn at random from all.

    Of a latent that was on in c of N rows, b rows hold none of these with probability C(N - c, b) / C(N, b): the
    expectation is exact, needs no order of the rows, and says how much of "dead" is a matter of how much was read.

    Args:
        counts: (n_latents,) on how many rows each was on.
        rows: N.
        budgets: numbers of rows, each at most N.
    """
    from scipy.special import gammaln

    if not len(counts):
        return np.full(len(budgets), math.nan)
    off = rows - np.asarray(counts, float)
    shares = np.empty(len(budgets))
    for i, budget in enumerate(budgets):
        budget = min(budget, rows)
        possible = off >= budget
        ways = gammaln(off[possible] + 1) - gammaln(off[possible] - budget + 1)
        none = np.zeros(len(counts))
        none[possible] = np.exp(ways - (gammaln(rows + 1) - gammaln(rows - budget + 1)))
        shares[i] = 1 - none.mean()
    return shares


def budgets_to(rows: int) -> list[int]:
    """1,000, 2,000, 5,000, 10,000, ... and the number of rows."""
    steps = (int(step * 10**power) for power in range(3, 13) for step in (1, 2, 5))
    return [*(step for step in steps if step < rows), rows]


def firing_metrics(counts: np.ndarray, rows: int) -> dict[str, Interval]:
    """What the firing rates of a dictionary say.

    dense_share, often_share: on more than 10 % and more than 1 % of the tokens; dense_firings, often_firings: the share
    of all firings that is theirs; firing_rate_median: of those that are on at all.
    """
    counts = np.asarray(counts, float)
    rates = counts / max(1, rows)
    total = float(counts.sum())
    alive = rates[counts > 0]
    found = {"firing_rate_median": float(np.median(alive)) if len(alive) else math.nan}
    for name, limit in (("dense", DENSE), ("often", OFTEN)):
        found[f"{name}_share"] = float((rates > limit).mean()) if len(counts) else math.nan
        found[f"{name}_firings"] = float(counts[rates > limit].sum()) / total if total else math.nan
    return {name: Interval(value) for name, value in found.items()}


def alive_by_budget(counts: np.ndarray, rows: int) -> dict[str, list[float]]:
    """The curve of `alive_share` as a table: tokens, and the share alive."""
    budgets = budgets_to(rows)
    return {"tokens": [float(b) for b in budgets], "alive_share": alive_share(counts, rows, budgets).tolist()}


def rate_histogram(counts: np.ndarray, rows: int) -> dict[str, list[float]]:
    """Latents by decade and third of a decade of their firing rates, those that never fired not among them."""
    rates = np.asarray(counts, float)[np.asarray(counts) > 0] / max(1, rows)
    edges = np.arange(math.floor(3 * math.log10(1 / max(2, rows))), 1) / 3
    places = np.clip(np.searchsorted(edges, np.log10(rates) + 1e-12, side="right") - 1, 0, len(edges) - 2)
    latents = np.bincount(places, minlength=len(edges) - 1)
    return {
        "rate_from": (10 ** edges[:-1]).tolist(),
        "rate_to": (10 ** edges[1:]).tolist(),
        "latents": latents.tolist(),
    }
