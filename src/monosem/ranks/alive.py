"""Which process has stopped: each shows that it lives, and who waits for others looks whether they do.

A process that ends is noticed at once, by those who hear from it. One that is stopped, or whose machine is gone, says
nothing; nor does one at slow work: but that shows signs of life. One that shows them and yet goes nowhere is told from
a slow one by what it is at: a wait of all for each other, or work that takes many times what it ever took.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

BEAT = 5.0
"""Seconds between two signs of life, and between two looks for those of others."""
LONG = 60.0
"""Seconds of waiting from which on it is said for whom."""
SILENT = 180.0
"""Seconds without a sign of life after which a process has stopped."""

SLOWEST = 1e7
"""Bytes a second that every network between processes carries."""
TIMES = 100
"""A piece of work hangs that takes so many times the longest of its kind before, and HANGS seconds."""
HANGS = 300.0


@dataclass
class _Now:
    """What this process is at."""

    waits: tuple[str, float, float] | None = None
    """What it waits for the others in, since when, and how long that may take once all are there."""
    waits_so_far: int = 0
    work: tuple[str, float] | None = None
    """A piece of work that comes again and again, and since when."""


_now = _Now()
_longest: dict[str, float] = {}
"""Seconds that pieces of work have taken at most."""


@contextmanager
def waiting(what: str, size: int = 0) -> Iterator[None]:
    """Within this block the process waits for others, with so many bytes."""
    _now.waits_so_far += 1
    _now.waits = (what, time.monotonic(), LONG + size / SLOWEST)
    try:
        yield
    finally:
        _now.waits = None


@contextmanager
def at_work(what: str) -> Iterator[None]:
    """Within this block the process is at what comes again and again, and takes about as long each time."""
    began = time.monotonic()
    _now.work = (what, began)
    try:
        yield
        _longest[what] = max(_longest.get(what, 0.0), time.monotonic() - began)
    finally:
        _now.work = None


class _Sign(NamedTuple):
    """A sign of life, as the others read it."""

    beats: int
    where: str
    waits: str | None
    waits_so_far: int
    may_wait: float
    """Seconds, once all are there."""
    work: str | None
    worked: float
    """Seconds."""
    may_work: float | None

    @staticmethod
    def own(beats: int) -> _Sign:
        """This process's."""
        waits, work = _now.waits, _now.work
        longest = None if work is None else _longest.get(work[0])
        return _Sign(
            beats,
            f"{os.getpid()} on {socket.gethostname()}",
            None if waits is None else waits[0],
            _now.waits_so_far,
            0.0 if waits is None else waits[2],
            None if work is None else work[0],
            0.0 if work is None else time.monotonic() - work[1],
            None if longest is None else max(HANGS, TIMES * longest),
        )


class Watch:
    """A thread that shows signs of life, and looks for those of others while this process waits for them."""

    def __init__(self, store: Any, rank: int, size: int, first_to_fail: Callable[[], bool]) -> None:
        self._store, self._rank, self._size, self._first_to_fail = store, rank, size, first_to_fail
        self._seen: dict[int, tuple[int, float]] = {}
        """Of each other process the newest sign, and when it was first seen."""
        self._still: tuple[list[int], float] | None = None
        """How often each has waited, all of them at it now, and since when that is so."""
        self._said = LONG
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="monosem-alive")
        self._show(0)
        self._thread.start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        beats = 0
        while not self._ended.wait(BEAT):
            beats += 1
            try:
                self._show(beats)
                if (waits := _now.waits) is None:
                    self._seen, self._still, self._said = {}, None, LONG
                else:
                    self._look(waits[0], waits[1], _Sign.own(beats))
            except RuntimeError:  # whoever keeps the signs has ended: the process hears that where it waits
                return

    def _show(self, beats: int) -> None:
        self._store.set(f"alive/{self._rank}", json.dumps(_Sign.own(beats)))

    def _look(self, what: str, since: float, own: _Sign) -> None:
        now, signs = time.monotonic(), {self._rank: own}
        for other in range(self._size):
            if other == self._rank or not self._store.check([f"alive/{other}"]):
                continue
            sign = signs[other] = _Sign(*json.loads(self._store.get(f"alive/{other}")))
            if self._seen.get(other, (-1, 0.0))[0] != sign.beats:
                self._seen[other] = (sign.beats, now)
            if now - self._seen[other][1] > SILENT:
                self._give_up(
                    f"process {other} of {self._size} ({sign.where}) has shown no sign of life for {SILENT:,.0f} s: it "
                    "has been stopped, or its machine cannot be reached"
                )
            if sign.waits is None and sign.may_work is not None and sign.worked > sign.may_work:
                self._give_up(
                    f"process {other} of {self._size} ({sign.where}) has been at {sign.work} for {sign.worked:,.0f} s, "
                    f"more than {TIMES} times as long as ever before, and hangs"
                )
        self._look_for_a_knot(signs, now)
        absent = [other for other, sign in signs.items() if sign.waits is None]
        if self._rank == 0 and absent and now - since > self._said:
            self._said *= 2
            _say(
                f"waiting for {now - since:,.0f} s ({what}) for process {', '.join(map(str, absent))} of {self._size}, "
                f"at {signs[absent[0]].work or 'work elsewhere'}"
            )

    def _look_for_a_knot(self, signs: Mapping[int, _Sign], now: float) -> None:
        """Whether all wait, and none goes on."""
        counts = [sign.waits_so_far for sign in signs.values()]
        if len(signs) < self._size or any(sign.waits is None for sign in signs.values()):
            self._still = None
        elif self._still is None or self._still[0] != counts:
            self._still = (counts, now)
        elif now - self._still[1] > max(sign.may_wait for sign in signs.values()):
            waits = ", ".join(f"{number} ({sign.waits})" for number, sign in sorted(signs.items()))
            self._give_up(
                f"the processes wait for each other, and none has gone on for {now - self._still[1]:,.0f} s: process "
                f"{waits}. That is an error of the program, or of a callback that not all processes call"
            )

    def _give_up(self, why: str) -> None:
        """End this process, which waits where nothing but the end of the other would wake it."""
        if self._first_to_fail():
            _say(f"monosem: {why}. The same command, with any number of processes, goes on from what is saved")
        os._exit(2)


def _say(line: str) -> None:
    print(line, file=sys.__stderr__, flush=True)
