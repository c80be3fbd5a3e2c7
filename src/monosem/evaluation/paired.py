"""Two columns of one text: how far apart, and which difference this text could have shown."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from monosem.intervals import Drawn, Interval

POWER = 0.8
SHOWN = 1.959964 + 0.841621
"""Standard errors that a true difference must have, to be told from 0 at 95 % in `POWER` of all samples."""


class Difference(NamedTuple):
    """b - a, with its 95 % interval over the documents that both were measured on."""

    value: float
    low: float
    high: float
    smallest: float
    """The smallest difference that a text of this size can show: one as large is told from 0 in 80 % of such texts."""

    @property
    def told(self) -> bool:
        """Whether it is told from 0."""
        return self.low > 0 or self.high < 0


def paired_difference(a: Interval, b: Interval) -> Difference | None:
    """The difference b - a of a metric measured twice on the same documents.

    Both were drawn anew with the same documents, so that what is hard for both cancels: the interval is that of the
    difference, narrower than two intervals side by side let one think.

    Returns:
        None where there is nothing to pair: one of them has no interval, or they are of other documents.
    """
    if not isinstance(a, Drawn) or not isinstance(b, Drawn) or a.documents != b.documents:
        return None
    draws = b.draws - a.draws
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return Difference(b.value - a.value, float(low), float(high), SHOWN * float(draws.std()))


def why_not_paired(a: Interval, b: Interval) -> str:
    """Of two that cannot be paired: why, in words."""
    if not isinstance(a, Drawn) or not isinstance(b, Drawn):
        return "one of them has no interval"
    return "they were measured on other documents"
