"""Threads for each kind of work, so that what takes milliseconds never waits for what takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from anyio import CapacityLimiter, to_thread

from monosem.errors import MonosemError
from monosem.explorer.table import Filters

T = TypeVar("T")
MOST_WAITING = 100


class Busy(MonosemError):
    """Too many wait for the same kind of work."""


class Lane:
    """Work of one kind: some at a time, in threads; more waits, first come, first served."""

    def __init__(self, at_once: int | None = None) -> None:
        """At most so many at a time, or else in the threads of all."""
        self._limiter = None if at_once is None else CapacityLimiter(at_once)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of some work.

        Raises:
            Busy: too many wait already.
        """
        limiter = self._limiter or to_thread.current_default_thread_limiter()
        if limiter.statistics().tasks_waiting >= MOST_WAITING:
            raise Busy(f"{MOST_WAITING} others wait for such an answer: ask again later")
        return await to_thread.run_sync(work, limiter=limiter)


QUICK = 4
"""Threads of FastAPI itself: it does in them what no lane was chosen for."""


class Lanes:
    """The kinds. Each piece of work takes memory of its own while it is worked on."""

    def __init__(self) -> None:
        self.quick = Lane()
        """Pages of a table, features, notes: milliseconds."""
        self.beside = Lane(2)
        """What stands beside a feature and on hover: matches, passages of others."""
        self.long = Lane(2)
        """Searches, and the first look at a whole store: up to seconds."""
        self.map = Lane(1)
        """Layouts of maps: many seconds."""
        self.asked = Lane(2)
        """Conditions in SQL; another process does the work."""
        self.model = Lane(4)
        """Waits for the model's thread, and for the model to be loaded."""

    def of(self, filters: Filters) -> Lane:
        """Of a page of the table, or a histogram: quick work, unless somebody has written a condition."""
        return self.asked if filters.asked else self.quick
