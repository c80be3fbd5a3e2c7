"""Long work says where it is and how long it will take: a live line in a terminal, plain lines elsewhere.

with job(progress):                                     # what is shown, and all that it will take
    with doing("evaluating", total=n_tokens) as stage:  # anywhere below: what is being done now
        ...
        stage.advance(tokens_read)

A job has stages of several kinds, also within each other. The time of each goes to the innermost one, so that every
kind has a rate of its own, and the time left is all that is to come of every kind at its rate. `expect` announces what
will begin later. A line tells the share of the outermost stage, and behind it the innermost one, if that takes long.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

FIRST_LINE, A_LINE, LOOK = 1.0, 10.0, 0.1
"""Seconds until the first plain line, between two of a stage, and between looks whether one is due."""

Amount = Callable[[], float]


def _nothing() -> float:
    return 0.0


@dataclass
class _Kind:
    """What is known of one kind of work: its rate, and what is to come beside the stages that have begun."""

    seconds: float = 0.0
    units: float = 0.0
    last: float = 0.0
    expected: float = 0.0
    to_come: Amount = _nothing
    like: str | None = None
    weight: float = 1.0


class Stage:
    """A piece of work of one kind; `with stage:` while it is worked at, as often as need be, until it is closed."""

    def __init__(self, job: Job, name: str, total: float | None, done: float, unit: str, summary: bool) -> None:
        self.name, self.total, self.done, self.unit = name, total, done, unit
        self.figures = ""
        """What else to show of it."""
        self._job, self._first, self._summary = job, done, summary
        self._began = self.entered = time.monotonic()

    def __enter__(self) -> Stage:
        self._job.enter(self)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._job.leave(self)

    def advance(self, units: float) -> None:
        """So much more of it is done."""
        self.done += units
        self._job.note(self, units)

    def close(self) -> None:
        """It is done, or given up."""
        self._job.close(self)
        if self._summary:
            self._job.say(f"{self.line()}  in {duration(time.monotonic() - self._began)}")

    @property
    def left(self) -> float:
        return 0.0 if self.total is None else max(0.0, self.total - self.done)

    def line(self, *more: str) -> str:
        """Where it is, and right behind it what else is to be said, for lines are cut where a terminal is narrow."""
        parts = [self.where, *more, self.figures]
        elapsed = time.monotonic() - self._began
        if self.done > self._first and self.unit:
            rate = (self.done - self._first) / max(elapsed, 1e-9)
            parts.append(f"{rate:,.0f} {self.unit}/s" if rate >= 10 else f"{rate:.2g} {self.unit}/s")
        return "  ".join(part for part in parts if part)

    @property
    def where(self) -> str:
        """Its name, and how much of it is done where that is known."""
        return self.name if self.total is None else f"{self.name} {self.share:.0%}"

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 1.0


class Job:
    """Long work as a whole; shown if it is enabled."""

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self._kinds: dict[str, _Kind] = {}
        self._open: list[Stage] = []
        self._stack: list[Stage] = []
        self._mark = self._advanced = time.monotonic()

    def expect(self, name: str, units: float | Amount, *, like: str | None = None, weight: float = 1.0) -> None:
        """Announce work of a kind that has not begun.

        Args:
            name: of the stages that it will have.
            units: how much of it, of which every stage that begins takes its own; or a function that tells whenever it
                is asked how much is to come beside the stages that have begun.
            like: another kind, whose rate is taken until this one has its own.
            weight: how many times as long as a unit of that one a unit takes.
        """
        kind = self._kind(name)
        kind.like, kind.weight = like, weight
        if callable(units):
            kind.to_come = units
        else:
            kind.expected = units

    def stage(
        self, name: str, total: float | None = None, *, done: float = 0, unit: str = "", summary: bool = False
    ) -> Stage:
        """Begin a piece of work; `unit` names what its speed is told in, `summary` asks for a line at its end."""
        made = Stage(self, name, total, done, unit, summary)
        kind = self._kind(name)
        kind.expected = max(0.0, kind.expected - made.left)
        self._open.append(made)
        return made

    def enter(self, stage: Stage) -> None:
        self._spend()
        self._stack.append(stage)
        stage.entered = self._mark

    def leave(self, stage: Stage) -> None:
        self._spend()
        self._stack.remove(stage)

    def note(self, stage: Stage, units: float) -> None:
        self._spend()
        kind = self._kind(stage.name)
        kind.units, kind.last = kind.units + units, units

    def close(self, stage: Stage) -> None:
        self._open.remove(stage)

    def _kind(self, name: str) -> _Kind:
        return self._kinds.setdefault(name, _Kind())

    def _spend(self) -> None:
        """The time since the last look belongs to the innermost stage."""
        now = time.monotonic()
        if self._stack:
            self._kind(self._stack[-1].name).seconds += now - self._mark
        self._mark = now

    def seconds_left(self) -> tuple[float, bool]:
        """All that is to come, at the rates measured; and whether there is work of which no rate is known."""
        seconds, unknown = 0.0, False
        current = self._stack[-1].name if self._stack else None
        for name, kind in list(self._kinds.items()):
            units = kind.expected + kind.to_come() + sum(stage.left for stage in list(self._open) if stage.name == name)
            cost = self._cost(name)
            if cost is None:
                unknown = unknown or units > 0 or name == current
                continue
            running = time.monotonic() - self._mark if name == current else 0.0
            if not kind.units and kind.seconds + running > cost * units:  # the rate of another kind was no guide
                unknown = True
            elif kind.units:  # nothing has been done for long: it is slower than it was
                cost = max(cost, (kind.seconds + running) / (kind.units + kind.last))
            seconds += max(0.0, cost * units - running)
        return seconds, unknown

    def _cost(self, name: str) -> float | None:
        """Seconds a unit."""
        kind = self._kinds.get(name)
        if kind is None:
            return None
        if kind.units:
            return kind.seconds / kind.units
        other = None if kind.like is None else self._cost(kind.like)
        return None if other is None else kind.weight * other

    @property
    def current(self) -> Stage | None:
        return self._stack[-1] if self._stack else None

    @property
    def whole(self) -> Stage | None:
        """The outermost stage of which it is known how much it is; the innermost if it is of none."""
        stack = list(self._stack)
        return next((stage for stage in stack if stage.total is not None), stack[-1] if stack else None)

    def line(self) -> str:
        """Where the whole is and how long it will take, then what is being done for it now."""
        whole, now = self.whole, self.current
        if whole is None or now is None:
            return ""
        long = now is not whole and time.monotonic() - now.entered >= FIRST_LINE
        return "  ".join(filter(None, [whole.line(self.left()), f"({now.where})" if long else ""]))

    def left(self) -> str:
        """The time left, in words."""
        seconds, unknown = self.seconds_left()
        if unknown and seconds < 1 and self.current is not None and self.current.total is None:
            return ""
        if unknown:
            return f"more than {duration(seconds)} left" if seconds >= 1 else "time left not known yet"
        return f"{duration(seconds)} left"

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.enabled:
            with suppress(OSError, ValueError):  # nobody listens any more
                print(line, file=sys.stderr, flush=True)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show it within this block."""
        if not self.enabled:
            yield
            return
        from rich.console import Console

        console = Console(stderr=True)
        if console.is_terminal:
            from rich.live import Live

            with Live(get_renderable=self._live, console=console, refresh_per_second=4, transient=True):
                yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._tell, args=(ended,), daemon=True, name="monosem-progress")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _tell(self, ended: threading.Event) -> None:
        """Plain lines: soon after each kind of work begins, then now and then."""
        began = last = time.monotonic()
        told, since = set[str](), ("", began)
        while not ended.wait(LOOK):
            stage, now = self.current, time.monotonic()
            if stage is None:
                continue
            if stage.name != since[0]:
                since = (stage.name, now)
            first = stage.name not in told and now - (since[1] if told else began) >= FIRST_LINE
            if first or now - last >= A_LINE:
                self.say(self.line())
                told.add(stage.name)
                last = now

    def _live(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        stage = self.whole
        if stage is None:
            return Text("")
        row = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=stage.total, completed=stage.done, width=24, pulse=stage.total is None)
        row.add_row(bar, Text(self.line(), no_wrap=True, overflow="ellipsis"))
        return row


_current: ContextVar[Job | None] = ContextVar("_current", default=None)


@contextmanager
def job(enabled: bool = True) -> Iterator[Job]:
    """The job that is being done; a new one, which is shown if it is enabled, where there is none."""
    outer = _current.get()
    if outer is not None and enabled:
        yield outer
        return
    made = Job(enabled)
    token = _current.set(made)
    try:
        with made.shown():
            yield made
    finally:
        _current.reset(token)


def stage(name: str, total: float | None = None, *, done: float = 0, unit: str = "", summary: bool = False) -> Stage:
    """As `Job.stage`, of the job that is being done; shown nowhere where there is none."""
    return (_current.get() or Job(enabled=False)).stage(name, total, done=done, unit=unit, summary=summary)


@contextmanager
def doing(name: str, total: float | None = None, *, done: float = 0, unit: str = "") -> Iterator[Stage]:
    """A stage, from its beginning to its end."""
    made = stage(name, total, done=done, unit=unit)
    try:
        with made:
            yield made
    finally:
        made.close()


Item = TypeVar("Item")


def each(name: str, items: Sequence[Item], units: float = 1.0, unit: str = "tokens") -> Iterator[Item]:
    """The items, one after the other, as a stage: each is so many units of it."""
    with doing(name, len(items) * units, unit=unit) as made:
        for item in items:
            yield item
            made.advance(units)


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def as_job(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Makes a job of every call of a function; its argument `progress` says whether it is shown."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        given = signature.bind(*arguments, **options)
        given.apply_defaults()
        with job(bool(given.arguments["progress"])):
            return function(*arguments, **options)

    return call


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5940 else f"{seconds / 3600:.1f} h"
