"""train and fit: the whole loop, with progress, log, checkpoints and resumption."""

from __future__ import annotations

import importlib.metadata
import json
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.activations import ActivationSource, Place, VectorActivations, activations, batches
from monosem.errors import MismatchError, MonosemError
from monosem.sae import SAE, InputFingerprint, load_sae
from monosem.training.checkpoints import newest_checkpoint, read_checkpoint, write_checkpoint
from monosem.training.config import TrainingConfig
from monosem.training.progress import TrainingProgress
from monosem.training.trainer import Step, Trainer

Callback = Callable[[Trainer, Step], None]


class TrainingInterrupted(MonosemError):
    """The run was stopped by the user; its checkpoint is written."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    sae: SAE
    history: list[dict[str, float]] = field(repr=False)
    """One entry per logged step: tokens, loss, fvu, l0, dead, lr, ..."""
    path: Path | None
    """The run folder, if there is one."""


def train(
    sae: SAE,
    source: ActivationSource,
    *,
    tokens: int,
    config: TrainingConfig | None = None,
    path: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> TrainingResult:
    """Train an SAE in place.

    With a `path` the run can be stopped and killed at any moment: the same call goes on from the last checkpoint to the
    same result. Ctrl-C writes a checkpoint first. The finished SAE stands in `path/sae`.

    Args:
        sae: the SAE to train.
        source: what `activations` returns.
        tokens: length of the run, in rows of activations.
        config: the settings.
        path: the run folder.
        callbacks: called after every step.
        progress: show a live line (plain lines where there is no terminal).

    Raises:
        MismatchError: SAE and source have different widths.
        TrainingInterrupted: Ctrl-C; the checkpoint is written.
    """
    if sae.d_in != source.d_in:
        raise MismatchError(
            f"the SAE reads width {sae.d_in}, the activations have width {source.d_in}: make it with d_in={source.d_in}"
        )
    config = config or TrainingConfig()
    folder = Path(path) if path is not None else None
    trainer = Trainer(sae, config, tokens)
    checkpoint = newest_checkpoint(folder) if folder else None
    if checkpoint:
        place = read_checkpoint(checkpoint, sae, trainer)
        sae.metadata = load_sae(checkpoint).metadata
    else:
        place = Place()
        trained_before = sae.metadata.tokens_trained
        sae.metadata = source.metadata.model_copy(update={"monosem_version": importlib.metadata.version("monosem")})
        if not trained_before:
            sae.initialise(_sample(source, config.batch_size, sae))
    log = _Log(folder / "metrics.jsonl" if folder else None, trainer.steps)
    with TrainingProgress(tokens, trainer.tokens, enabled=progress) as bar, _StopRequest() as stop:
        place = _loop(trainer, source, place, log, bar, folder, callbacks, stop)
    if folder:
        write_checkpoint(folder, trainer, place)
    if stop.requested:
        message = f"stopped after {trainer.tokens:,} of {tokens:,} tokens"
        if folder:
            message += f"; the checkpoint is in {folder / 'checkpoints'}, and the same command goes on from it"
        raise TrainingInterrupted(message)
    sae.metadata = sae.metadata.model_copy(update={"tokens_trained": trainer.tokens})
    _store_fingerprint(sae, source)
    if folder:
        sae.save(folder / "sae")
    for remark in sae.remarks():
        warnings.warn(remark, stacklevel=2)
    return TrainingResult(sae, log.history, folder)


def fit(
    sae: SAE,
    x: Tensor | np.ndarray | str | Path | Iterable[Any],
    *,
    tokens: int | None = None,
    config: TrainingConfig | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train an SAE on activations that are there already.

    Args:
        sae: trained in place.
        x: (n, d_in) tensor or array, a `.npy` or `.safetensors` file, or an iterable of batches.
        tokens: rows to train on, with repetition; the rows that there are, but at least 1,000,000, if not given.
        config: the settings.
        path: the run folder.
        progress: show a live line.
    """
    source = activations(x)
    if tokens is None:
        tokens = max(1_000_000, len(source.x)) if isinstance(source, VectorActivations) else 1_000_000
    return train(sae, source, tokens=tokens, config=config, path=path, progress=progress)


class _StopRequest:
    """Turns the first Ctrl-C (or SIGTERM) into a request to stop after the step; a second Ctrl-C stops at once."""

    requested = False

    def __enter__(self) -> _StopRequest:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _loop(
    trainer: Trainer,
    source: ActivationSource,
    place: Place,
    log: _Log,
    bar: TrainingProgress,
    folder: Path | None,
    callbacks: Sequence[Callback],
    stop: _StopRequest,
) -> Place:
    """Train until the run is done, the source ends or a stop is requested; returns the place reached."""
    config, n_steps = trainer.config, trainer.n_steps or 0
    last_checkpoint = time.monotonic()
    if trainer.steps >= n_steps:
        return place
    for x, next_place in batches(source, config.batch_size, place):
        step = trainer.step(x)
        place = next_place
        for callback in callbacks:
            callback(trainer, step)
        if trainer.steps % config.log_every == 0 or trainer.steps == n_steps:
            log.write(trainer, step)
            bar.update(trainer.tokens, step.metrics)
        if trainer.steps >= n_steps or stop.requested:
            break
        if folder and time.monotonic() - last_checkpoint > 60 * config.checkpoint_minutes:
            write_checkpoint(folder, trainer, place)
            last_checkpoint = time.monotonic()
    return place


def _sample(source: ActivationSource, batch_size: int, sae: SAE) -> Tensor:
    """Rows on which to fit the transform; the run trains on them too."""
    return source.pool(0)[: max(batch_size, 65_536)].to(sae.W_enc.device)


@torch.no_grad()
def _store_fingerprint(sae: SAE, source: ActivationSource) -> None:
    sae.probe = source.probe()
    x = source.probe_activations(sae.probe).to(sae.W_enc.device)
    sae.metadata = sae.metadata.model_copy(update={"fingerprint": fingerprint(sae, x)})


@torch.no_grad()
def fingerprint(sae: SAE, x: Tensor) -> InputFingerprint:
    """What the SAE makes of a batch of raw activations."""
    out = sae(x)
    total = (x - x.mean(0)).pow(2).sum()
    return InputFingerprint(
        mean_norm=x.norm(dim=-1).mean().item(),
        fvu=((x - out.reconstruction).pow(2).sum() / total).item(),
        l0=out.codes.l0().float().mean().item(),
    )


class _Log:
    """metrics.jsonl: one line per logged step. A resumed run drops the lines after its checkpoint."""

    def __init__(self, path: Path | None, steps: int) -> None:
        self.path, self.history = path, []
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() and steps else []
        self.history: list[dict[str, float]] = [row for row in _rows(lines) if row["step"] <= steps]
        new = path.with_name(".metrics.jsonl.new")
        new.write_text("".join(json.dumps(row) + "\n" for row in self.history))
        new.replace(path)

    def write(self, trainer: Trainer, step: Step) -> None:
        row = {"step": trainer.steps, "tokens": trainer.tokens, **step.metrics}
        self.history.append(row)
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def _rows(lines: list[str]) -> Iterable[dict[str, float]]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return  # the last line of a killed run may be torn
