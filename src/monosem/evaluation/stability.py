"""Do two trainings find the same features? Latents of dictionaries of other seeds, matched one to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from monosem.arguments import Share, checked
from monosem.errors import ConfigError, MismatchError
from monosem.evaluation.directions import unit_rows
from monosem.intervals import DocumentSums, Interval
from monosem.sae import SAE
from monosem.work import as_job, doing

SAME = 0.7
"""The cosine from which two latents count as the same feature (Paulo and Belrose 2025)."""
MOST_LATENTS = 16_384
"""A one-to-one matching takes time in the third power of these."""


@dataclass(frozen=True)
class Stability:
    """How alike dictionaries of several seeds are, once their latents are matched one to one.

    The interval is over seeds where there are three or more (a jackknife that leaves out each in turn, with Student's
    t); of two, where nothing else is there, over latents: it then says nothing of how other seeds would do.
    """

    cosine: Interval
    """The mean cosine of matched latents."""
    shared: Interval
    """The share of latents whose match has a cosine of `threshold` or more."""
    chance: float
    """The mean cosine of as many random directions in that width, matched likewise: what nothing learned would have."""
    threshold: float
    over: str
    """What the intervals are over: "seeds" or "latents"."""
    pairs: dict[tuple[str, str], np.ndarray] = field(repr=False)
    """Of every two dictionaries the cosines of their matched latents, largest first."""


@checked
@as_job
@torch.no_grad()
def seed_stability(
    saes: Sequence[SAE] | Mapping[str, SAE],
    *,
    threshold: Share = SAME,
    alive: Sequence[Bool[Tensor, " n_latents"]] | None = None,
    progress: bool = True,
) -> Stability:
    """Match the latents of every two dictionaries so that the cosines of their decoder rows have the largest sum.

    Dictionaries that began with the same weights are alike for that alone: give each its own seed.

    Args:
        saes: two or more, of one hook point.
        threshold: the cosine from which two latents are the same feature.
        alive: of each, which latents count; all if not given. Dead ones point where their seed put them.
        progress: show where it is.

    Raises:
        ConfigError: there are fewer than two, alive is not of them, or more latents than can be matched.
        MismatchError: they write to other widths.
    """
    named = dict(saes) if isinstance(saes, Mapping) else {str(i): sae for i, sae in enumerate(saes)}
    if len(named) < 2:
        raise ConfigError("stability is between two or more dictionaries, trained from other seeds")
    rows = [unit_rows(sae.decoder_directions()) for sae in named.values()]
    if alive is not None and [len(keep) for keep in alive] != [len(own) for own in rows]:
        raise ConfigError("alive must say of each dictionary which of its latents count, in their order")
    rows = rows if alive is None else [own[keep] for own, keep in zip(rows, alive, strict=True)]
    widths = sorted({own.shape[1] for own in rows})
    if len(widths) > 1:
        raise MismatchError(
            f"dictionaries that write to widths {widths} have no latents to match: compare those of one hook point"
        )
    if max(len(own) for own in rows) > MOST_LATENTS:
        raise ConfigError(
            f"a one-to-one matching of {max(len(own) for own in rows):,} latents would take hours: "
            f"give alive= with at most {MOST_LATENTS:,} of each"
        )
    names = list(named)
    pairs: dict[tuple[str, str], np.ndarray] = {}
    every = list(combinations(range(len(rows)), 2))
    with doing("matching latents", len(every) + 1, unit="pairs") as stage:
        for i, j in every:
            pairs[names[i], names[j]] = matched_cosines(rows[i], rows[j])
            stage.advance(1)
        generator = torch.Generator().manual_seed(0)
        random = [unit_rows(torch.randn(own.shape, generator=generator)) for own in rows[:2]]
        chance = float(matched_cosines(*random).mean())
    same = [(own >= threshold).astype(float) for own in pairs.values()]
    if len(names) == 2:
        own = pairs[names[0], names[1]]
        return Stability(_over_latents(own), _over_latents(same[0]), chance, threshold, "latents", pairs)
    means = (np.array([own.mean() for own in values]) for values in (pairs.values(), same))
    cosine, shared = (
        _within(jackknife_of_pairs(values, len(names)), low) for values, low in zip(means, (-1.0, 0.0), strict=True)
    )
    return Stability(cosine, shared, chance, threshold, "seeds", pairs)


def _within(interval: Interval, low: float) -> Interval:
    """Cut to what a cosine, or a share, can be."""
    assert interval.low is not None
    assert interval.high is not None
    return Interval(interval.value, max(low, interval.low), min(1.0, interval.high))


def matched_cosines(a: Tensor, b: Tensor) -> np.ndarray:
    """The cosines of rows of norm 1, matched one to one for the largest sum, largest first; as many as the fewer."""
    from scipy.optimize import linear_sum_assignment

    cosines = (a @ b.T).cpu().numpy()
    return np.sort(cosines[linear_sum_assignment(cosines, maximize=True)])[::-1]


def jackknife_of_pairs(values: np.ndarray, n: int) -> Interval:
    """The mean over all pairs of n things, and its 95 % interval over these things.

    Args:
        values: of the pairs (0, 1), (0, 2), ..., (n - 2, n - 1).
        n: at least 3.
    """
    from scipy.special import stdtrit

    mean = float(values.mean())
    members = np.array(list(combinations(range(n), 2)))
    without = np.array([values[(members != i).all(1)].mean() for i in range(n)])
    error = float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
    half = float(stdtrit(n - 1, 0.975)) * error
    return Interval(mean, mean - half, mean + half)


def _over_latents(values: np.ndarray) -> Interval:
    sums, places = DocumentSums(), np.arange(len(values))
    sums.add("count", places, np.ones(len(values)))
    sums.add("value", places, values)
    return sums.interval(lambda s: s["value"] / s["count"])
