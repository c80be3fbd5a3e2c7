"""Bars of time are those of a common machine: a slower one, or a busy one, is given as many times as long."""

from __future__ import annotations

import time
from collections.abc import Callable

COMMON = 0.06
"""Seconds that the work below takes on a common machine."""


def pace(clock: Callable[[], float] = time.process_time) -> float:
    """How many times as long as on a common machine the same work takes here and now, at least 1.

    Of the processor's seconds; with `time.monotonic` of those that pass, in which others work too.
    """
    spent: list[float] = []
    for _ in range(3):
        begun, total = clock(), 0
        for number in range(1_000_000):
            total += number * number
        spent.append(clock() - begun)
    return max(1.0, sorted(spent)[1] / COMMON)
