"""Which process has stopped: each shows that it lives, and who waits for others looks whether they do.

A process that ends is noticed at once, by those who hear from it. One that is stopped, or whose machine is gone, says
nothing; nor does one at slow work: but that shows signs of life.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

BEAT = 5.0
"""Seconds between two signs of life, and between two looks for those of others."""
LONG = 60.0
"""Seconds of waiting from which on it is said for whom."""
SILENT = 180.0
"""Seconds without a sign of life after which a process has stopped."""

_waits: tuple[str, float] | None = None
"""What this process waits for the others in, and since when."""


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Within this block the process waits for others."""
    global _waits
    _waits = (what, time.monotonic())
    try:
        yield
    finally:
        _waits = None


class Watch:
    """A thread that shows signs of life, and looks for those of others while this process waits for them."""

    def __init__(self, store: Any, rank: int, size: int, first_to_fail: Callable[[], bool]) -> None:
        self._store, self._rank, self._size, self._first_to_fail = store, rank, size, first_to_fail
        self._seen: dict[int, tuple[int, float]] = {}
        """Of each other process the newest sign, and when it was first seen."""
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
                if (waits := _waits) is None:
                    self._seen, self._said = {}, LONG
                else:
                    self._look(*waits)
            except RuntimeError:  # whoever keeps the signs has ended: the process hears that where it waits
                return

    def _show(self, beats: int) -> None:
        sign = [beats, _waits is not None, f"{os.getpid()} on {socket.gethostname()}"]
        self._store.set(f"alive/{self._rank}", json.dumps(sign))

    def _look(self, what: str, since: float) -> None:
        now, absent = time.monotonic(), list[int]()
        for other in range(self._size):
            if other == self._rank or not self._store.check([f"alive/{other}"]):
                continue
            beats, waits, where = json.loads(self._store.get(f"alive/{other}"))
            if self._seen.get(other, (-1, 0.0))[0] != beats:
                self._seen[other] = (beats, now)
            silent = now - self._seen[other][1]
            if silent > SILENT:
                self._give_up(other, where)
            if not waits and silent < 4 * BEAT:
                absent.append(other)
        if self._rank == 0 and absent and now - since > self._said:
            self._said *= 2
            _say(
                f"waiting for {now - since:,.0f} s ({what}) for process {', '.join(map(str, absent))} of {self._size}, "
                "at work elsewhere"
            )

    def _give_up(self, other: int, where: str) -> None:
        """End this process, which waits where nothing but the end of the other would wake it."""
        if self._first_to_fail():
            _say(
                f"monosem: process {other} of {self._size} ({where}) has shown no sign of life for {SILENT:,.0f} s: it "
                "has been stopped, or its machine cannot be reached. The same command, with any number of processes, "
                "goes on from what is saved"
            )
        os._exit(2)


def _say(line: str) -> None:
    print(line, file=sys.__stderr__, flush=True)
