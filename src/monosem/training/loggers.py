"""Loggers: where the figures of a training run go while it runs. metrics.jsonl always; others where they are asked for.

`TrainingConfig.loggers` names them. To add one: `LOGGERS["mine"] = open_mine`, a function of the run folder and of the
steps that have been made before, which returns a `Logger`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from monosem.errors import ConfigError, FileError
from monosem.files import append_json_line, as_json, read_json_lines, write_text
from monosem.spelling import listed
from monosem.training.identity import Identity


class Logger(Protocol):
    """Takes the figures of a run as they come."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the figures of a step: tokens, loss and its terms, fvu, l0, dead, lr."""
        ...

    def close(self) -> None:
        """Nothing more will come for now; a run that goes on opens another logger."""
        ...


class MetricsFile:
    """metrics.jsonl: one line per logged step. A resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path | None, steps: int) -> None:
        """Go on after `steps` steps; without a path the figures are kept in `history` alone."""
        self.path = path
        self.history: list[dict[str, float]] = []
        if path is None:
            return
        self.history = [row for row in read_history(path) if row["step"] <= steps] if steps else []
        write_text(path, "".join(as_json(row) + "\n" for row in self.history))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {"step": step, **metrics}
        self.history.append(row)
        if self.path is not None:
            append_json_line(self.path, row)

    def close(self) -> None:
        """Every line is written already."""


def read_history(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl, without one that a killed run has torn; none if there is no file.

    A figure that was not finite is NaN.

    Raises:
        FileError: a line holds something else than figures, and its step among them.
    """
    if not path.exists():
        return []
    remedy = "take the line out of the file"
    rows = list(read_json_lines(path, dict[str, int | float | None], remedy=remedy))
    if any(row.get("step") is None or row.get("tokens", 0) is None for row in rows):
        raise FileError(f"{path} cannot be used: a line has no step or no number of tokens: {remedy}")
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


class TensorBoard:
    """Scalars in RUN/tensorboard: `tensorboard --logdir RUN`. A resumed run hides what came after its checkpoint."""

    def __init__(self, folder: Path, steps: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        for earlier in (folder / "tensorboard").glob("events.out.tfevents.*") if not steps else ():
            earlier.unlink()  # of a start that left no checkpoint
        self._writer: Any = SummaryWriter(str(folder / "tensorboard"), purge_step=steps + 1)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of project `monosem` (WANDB_PROJECT names another), called as its folder; files stand in RUN/wandb.

    WANDB_MODE=offline sends nothing. A run that goes on keeps its id; one that begins anew has another.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        import os

        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _missing("wandb") from error
        identity = Identity.read(folder)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "monosem"),
            name=folder.name,
            dir=str(folder),
            id=identity.run if identity is not None else None,
            resume="allow",
            reinit="create_new",
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


LOGGERS: dict[str, Callable[[Path, int], Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
"""How to open each; what it needs is imported when it is opened."""


def open_loggers(names: Sequence[str], folder: Path | None, steps: int) -> list[Logger]:
    """Open loggers for a run that has made so many steps.

    Raises:
        ConfigError: there is none of a name, its package is not installed, or the run has no folder.
    """
    require_loggers(names)
    if names and folder is None:
        raise ConfigError(f"training.loggers: {', '.join(names)} write into the run folder: give path=...")
    return [LOGGERS[name](folder, steps) for name in names if folder is not None]


def require_loggers(names: Sequence[str]) -> None:
    """Say before work starts that a logger is not there.

    Raises:
        ConfigError: there is none of a name.
    """
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(f"training.loggers: unknown {name!r}; there are {listed(name, LOGGERS)}")


def _missing(package: str) -> ConfigError:
    return ConfigError(
        f"training.loggers: {package} is not installed: pip install 'monosem[{package}]', or leave it out"
    )
