"""The live line of a harvest."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_A_LINE = 10


class HarvestProgress:
    """A bar with tokens/s and time left; plain lines where there is no terminal."""

    def __init__(self, total: int, done: int, *, enabled: bool) -> None:
        self.total, self._first = total, done
        self._start = self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._plain = enabled and not console.is_terminal
        self._bar: Progress | None = None
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("harvesting"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[speed]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task("", total=total, completed=done, speed="")

    def __enter__(self) -> HarvestProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, tokens: int) -> None:
        """Show that so many tokens have been read."""
        now = time.monotonic()
        rate = (tokens - self._first) / max(now - self._start, 1e-9)
        if self._bar:
            self._bar.update(self._task, completed=min(tokens, self.total), speed=f"{rate:,.0f} tokens/s")
        if self._plain and now - self._last_line > SECONDS_A_LINE:
            left = max(0, self.total - tokens) / max(rate, 1e-9)
            print(f"harvesting {tokens / self.total:.0%}  {rate:,.0f} tokens/s  {left:.0f} s left", file=sys.stderr)
            self._last_line = now
