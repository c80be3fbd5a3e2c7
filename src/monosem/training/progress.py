"""The live line of a training run."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

FIGURES = {"loss": "{:.4f}", "fvu": "{:.3f}", "l0": "{:.1f}", "dead": "{:.1%}"}
LABELS = {"fvu": "FVU", "l0": "L0"}


class TrainingProgress:
    """A bar with loss, FVU, L0, dead latents, tokens/s and time left; plain lines where there is no terminal."""

    def __init__(self, total: int, done: int, *, enabled: bool) -> None:
        self.total, self._first = total, done
        self._start = self._last_line = time.monotonic()
        self._console = Console(stderr=True)
        self._live: Progress | None = None
        self._plain = enabled and not self._console.is_terminal
        if enabled and self._console.is_terminal:
            self._live = Progress(
                TextColumn("training"),
                BarColumn(bar_width=24),
                TextColumn("{task.percentage:>3.0f} %  {task.fields[figures]}  {task.fields[speed]}"),
                TimeRemainingColumn(compact=True),
                TextColumn("left"),
                console=self._console,
            )
            self._task = self._live.add_task("training", total=total, completed=done, figures="", speed="")

    def __enter__(self) -> TrainingProgress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def update(self, tokens: int, metrics: Sequence[Mapping[str, float]]) -> None:
        """Show the figures of the step that has just been made, of one SAE, or from least to most of several."""
        elapsed = time.monotonic() - self._start
        rate = (tokens - self._first) / max(elapsed, 1e-9)
        figures, speed = _figures(metrics), f"{rate:,.0f} tokens/s"
        if self._live:
            self._live.update(self._task, completed=min(tokens, self.total), figures=figures, speed=speed)
        finished = tokens >= self.total
        if self._plain and (finished or time.monotonic() - self._last_line > 10):
            left = (self.total - tokens) / max(rate, 1e-9)
            line = f"{min(tokens / self.total, 1):4.0%}  {figures}  {speed}  {max(left, 0):.0f} s left"
            print(line, file=sys.stderr, flush=True)
            self._last_line = time.monotonic()


def _figures(metrics: Sequence[Mapping[str, float]]) -> str:
    shown = [] if len(metrics) == 1 else [f"{len(metrics)} SAEs"]
    for name, form in FIGURES.items():
        values = [one[name] for one in metrics]
        ends = dict.fromkeys(form.format(value) for value in (min(values), max(values)))
        shown.append(f"{LABELS.get(name, name)} {' - '.join(ends)}")
    return "  ".join(shown)
