"""What a long evaluation keeps on disk, so that one that was killed goes on where it was, to the same numbers."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import safe_open

from monosem.errors import FileError, Interrupted
from monosem.evaluation.metric import added_up
from monosem.files import as_json, named_folder, parse_json, read_json, reading, write_json, write_safetensors, writing
from monosem.intervals import Interval
from monosem.ranks import Group, agreed, everyone
from monosem.work import StopRequest

BEGIN = "delete it to begin again"


Columns = dict[str, dict[str, Interval]]
"""Metrics by column."""


class Accumulator(Protocol):
    """What a pass adds up, such as a metric."""

    def state(self) -> dict[str, np.ndarray]:
        """All that it knows."""
        ...

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on from it."""
        ...


class Keeping:
    """The folder in which one evaluation keeps where each of its parts is, until all of it is done."""

    def __init__(self, folder: str | Path, about: Mapping[str, Any], minutes: float) -> None:
        """Begin, or go on; `about` says which evaluation this is, in words of JSON."""
        self.path, self.about, self.minutes = named_folder(folder, "keep"), dict(about), minutes

    def keeper(self, part: str, metrics: Sequence[Accumulator], observers: Sequence[Any] = ()) -> Keeper:
        """Of a pass of that name."""
        about = {**self.about, "part": part}
        return Keeper(self.path / f"{part}.safetensors", about, metrics, observers, everyone(), self.minutes)

    def once(self, part: str, measure: Callable[[], Columns]) -> Columns:
        """What is measured in one go: from the file of an earlier call, or now.

        Raises:
            FileError: what is kept is of another evaluation, or damaged.
        """
        path, about = self.path / f"{part}.json", {**self.about, "part": part}
        if path.is_file():
            kept = read_json(path, _Kept, remedy=BEGIN)
            if kept.about != about:
                raise FileError(f"{path} is of another evaluation: {BEGIN}, or evaluate as before")
            return {
                name: {
                    key: Interval(math.nan if value is None else value, *ends) for key, (value, *ends) in own.items()
                }
                for name, own in kept.columns.items()
            }
        found = measure()
        if everyone().first:
            with writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"about": about, "columns": found})
        return found

    def forget(self) -> None:
        """All is done."""
        if everyone().first and self.path.exists():
            shutil.rmtree(self.path)


@dataclass
class _Kept:
    """A file of `Keeping.once`."""

    about: dict[str, Any]
    columns: dict[str, dict[str, tuple[float | None, float | None, float | None]]]


class Keeper:
    """Keeps the sums of all metrics, and how far they are, every few minutes, at the end of a round of the reading.

    Of several processes the first writes the sums of all. Observers that have `keep(path)` and `go_on(path)` are kept
    first, in files beside; one that was saved later than the sums sees again only what it has not seen.
    """

    def __init__(
        self,
        path: str | Path,
        about: Mapping[str, Any],
        metrics: Sequence[Accumulator],
        observers: Sequence[Any],
        every: Group,
        minutes: float,
    ) -> None:
        """Begin; `about` says which evaluation this is, in words of JSON."""
        self.path, self.about, self.metrics, self.every = Path(path), dict(about), metrics, every
        self.observers = {
            self.path.with_name(f"{self.path.stem}.{number}.safetensors"): one
            for number, one in enumerate(observers)
            if hasattr(one, "keep")
        }
        self.minutes, self._saved = minutes, time.monotonic()
        self.place = self._kept = (0, 0)
        """The first context that is still to be read, and the rows before it."""
        self.request = StopRequest()

    def go_on(self) -> tuple[int, int]:
        """The `place` that was reached, with all that was known there.

        Raises:
            FileError: what is kept is of another evaluation, or damaged.
        """
        place = self._load() if self.every.first and self.path.is_file() else (0, 0)
        start, rows = self.every.tell(place)
        self.place = self._kept = start, rows
        if start:
            for path, observer in self.observers.items():
                observer.go_on(path)
        return self.place

    def _load(self) -> tuple[int, int]:
        with reading(self.path, BEGIN), safe_open(self.path, "numpy") as file:
            head = parse_json((file.metadata() or {}).get("evaluation", "{}"), self.path, dict[str, Any], BEGIN)
            if head.get("about") != self.about:
                raise FileError(f"{self.path} is of another evaluation: {BEGIN}, or evaluate as before")
            states: dict[int, dict[str, np.ndarray]] = {}
            for name in file.keys():  # noqa: SIM118 - it is no mapping
                number, _, key = name.partition(" ")
                states.setdefault(int(number), {})[key] = file.get_tensor(name)
            for number, state in states.items():
                self.metrics[number].load_state(state)
            return int(head["start"]), int(head["rows"])

    def round_is_over(self, start: int, rows: int) -> None:
        """Save if it is time; all processes are here.

        Raises:
            Interrupted: the user asked to stop; all is saved.
        """
        self.place = start, rows
        stopped, due = agreed(self.request.requested, time.monotonic() - self._saved > 60 * self.minutes)
        if stopped or due:
            self.save()
        if stopped:
            raise Interrupted(f"stopped after {rows:,} tokens; the state is kept, and the same command goes on from it")

    def save(self) -> None:
        """Write everything that is new; each file appears whole or not at all."""
        if self.place == self._kept:
            return
        if self.every.first:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
        for path, observer in self.observers.items():
            observer.keep(path)
        states = [added_up(metric.state(), self.every) for metric in self.metrics]
        if self.every.first:
            arrays = {f"{number} {key}": values for number, state in enumerate(states) for key, values in state.items()}
            head = {"about": self.about, "start": self.place[0], "rows": self.place[1]}
            write_safetensors(self.path, arrays, {"evaluation": as_json(head)})
        self._saved, self._kept = time.monotonic(), self.place
