"""train and fit: the whole loop, with progress, log, checkpoints and resumption."""

from __future__ import annotations

import importlib.metadata
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.activations import ActivationSource, Place, VectorActivations, activations, batches, inspect_rows
from monosem.errors import ConfigError, MismatchError, TrainingInterrupted
from monosem.sae import SAE, InputFingerprint, load_sae
from monosem.training.checkpoints import (
    checkpoint_of,
    common_checkpoint,
    drop_others,
    read_checkpoint,
    write_checkpoint,
)
from monosem.training.config import TrainingConfig
from monosem.training.loggers import Logger, MetricsFile, open_loggers, require_loggers
from monosem.training.progress import TrainingProgress
from monosem.training.trainer import Step, Trainer

LOOKED_AT, INITIALISED_ON = 4096, 65_536  # rows

Callback = Callable[[Trainer, Step], None]


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
    member = _Member(sae, source, config or TrainingConfig(), tokens, Path(path) if path is not None else None)
    return _train([member], Path(path) if path is not None else None, callbacks, progress)[0]


def train_together(
    saes: Mapping[str, SAE],
    source: ActivationSource | Mapping[str, ActivationSource],
    *,
    tokens: int,
    config: TrainingConfig | Mapping[str, TrainingConfig] | None = None,
    path: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> dict[str, TrainingResult]:
    """Train several SAEs in place on one stream: the subject model runs once for all of them.

    Each ends as if it had been trained alone, bit for bit: same batches, own optimiser, own schedule.

    Args:
        saes: the SAEs, by name. They may differ in architecture, width, k, seed, ...
        source: one source for all, or one for each, of which each batch is read in step (views of one pass).
        tokens: length of each run.
        config: settings for all, or for each; batch sizes must be equal.
        path: a folder; each SAE's run folder is `path/NAME`.
        callbacks: called after every step of every SAE.
        progress: show a live line.

    Raises:
        ConfigError: no SAE, or different batch sizes.
        MismatchError: an SAE and its source have different widths.
        TrainingInterrupted: Ctrl-C; the checkpoints are written.
    """
    folder = Path(path) if path is not None else None
    members: list[_Member] = []
    for name, sae in saes.items():
        own_source = source if isinstance(source, ActivationSource) else source[name]
        own_config = config if isinstance(config, TrainingConfig | None) else config[name]
        own_folder = folder / name if folder is not None else None
        members.append(_Member(sae, own_source, own_config or TrainingConfig(), tokens, own_folder))
    if not members:
        raise ConfigError("no SAE to train: give at least one, {name: sae}")
    sizes = sorted({member.config.batch_size for member in members})
    if len(sizes) > 1:
        raise ConfigError(f"SAEs trained together share their batches: batch sizes {sizes} must be equal")
    return dict(zip(saes, _train(members, folder, callbacks, progress), strict=True))


class _Member:
    """One SAE of a run, with all that is its own."""

    def __init__(
        self, sae: SAE, source: ActivationSource, config: TrainingConfig, tokens: int, folder: Path | None
    ) -> None:
        for side, own, given in (("in", sae.d_in, source.d_in), ("out", sae.d_out, source.d_out)):
            if own != given:
                what = "reads" if side == "in" else "predicts"
                raise MismatchError(
                    f"the SAE {what} width {own}, the activations have width {given}: make it with d_{side}={given}"
                )
        if len(sae.in_shape) > 1 and sae.in_shape[0] != source.n_sources:
            raise MismatchError(
                f"the SAE reads {sae.in_shape[0]} activations side by side, the source has {source.n_sources}"
            )
        if len(sae.in_shape) == 1 and source.n_sources > 1:
            raise MismatchError(
                f"the SAE reads one activation, the source has {source.n_sources} side by side: take a Crosscoder"
            )
        require_loggers(config.loggers)
        self.sae, self.source, self.config, self.folder = sae, source, config, folder
        self.loggers: list[Logger] = []
        self.trainer = Trainer(sae, config, tokens)

    def begin(self, checkpoint: Path | None) -> Place:
        """Go on from a checkpoint, or from the beginning."""
        sae, place = self.sae, Place()
        if checkpoint:
            place = read_checkpoint(checkpoint, sae, self.trainer, self.source)
            sae.metadata = load_sae(checkpoint).metadata
        else:
            trained_before = sae.metadata.tokens_trained
            version = importlib.metadata.version("monosem")
            sae.metadata = self.source.metadata.model_copy(update={"monosem_version": version})
            if not trained_before:
                sample = self.rows(max(self.config.batch_size, INITIALISED_ON)).to(sae.W_enc.device)
                sae.initialise(*self.source.split(sample))
        steps = self.trainer.steps
        self.metrics = MetricsFile(self.folder / "metrics.jsonl" if self.folder else None, steps)
        self.loggers = [self.metrics, *open_loggers(self.config.loggers, self.folder, steps)]
        return place

    def rows(self, n: int) -> Tensor:
        """The first n rows, which the run trains on too."""
        return self.source.take(self.source.whole.pool(0)[:n])

    def remarks(self) -> list[str]:
        """What is wrong with the activations, in words."""
        sides = self.source.split(self.rows(LOOKED_AT))
        known, found = self.source.metadata, list[str]()
        names = (known.hooks or [known.hook], known.target_hooks or [known.target_hook])
        centres = self.sae.transform.kind.startswith(("centre", "whiten"))
        for side, hooks in zip(sides, names, strict=True):
            parts = [] if side is None else [side] if side.ndim == 2 else list(side.unbind(1))
            for i, part in enumerate(parts):
                hook = hooks[i * len(hooks) // len(parts)]
                where = f"activations at {hook}" if hook else "activations"
                found += [f"{where}: {line}" for line in inspect_rows(part, centred=centres)]
        return found

    def log(self, step: Step) -> None:
        """Tell all loggers of the step that has just been made."""
        for logger in self.loggers:
            logger.log(self.trainer.steps, {"tokens": self.trainer.tokens, **step.metrics})

    def close(self) -> None:
        """Close the loggers."""
        for logger in self.loggers:
            logger.close()

    def finish(self) -> TrainingResult:
        """Complete what the SAE remembers, and save it."""
        sae = self.sae
        skipped = self.source.metadata.documents_skipped
        known = {"tokens_trained": self.trainer.tokens, "documents_skipped": skipped}
        sae.metadata = sae.metadata.model_copy(update=known)
        _store_fingerprint(sae, self.source)
        if self.folder:
            sae.save(self.folder / "sae")
        for remark in sae.remarks():
            warnings.warn(remark, stacklevel=4)
        return TrainingResult(sae, self.metrics.history, self.folder)


def _train(
    members: Sequence[_Member], folder: Path | None, callbacks: Sequence[Callback], progress: bool
) -> list[TrainingResult]:
    steps = common_checkpoint([member.folder for member in members if member.folder])
    with ExitStack() as closing:
        for member in members:
            closing.callback(member.close)
        places = [member.begin(checkpoint_of(member.folder, steps)) for member in members]
        if steps is None:
            for remark in dict.fromkeys(remark for member in members for remark in member.remarks()):
                warnings.warn(remark, stacklevel=3)
        first = members[0].trainer
        total = first.total_tokens or 0
        with TrainingProgress(total, first.tokens, enabled=progress) as bar, _StopRequest() as stop:
            place = _loop(members, places[0], bar, callbacks, stop)
        _write_checkpoints(members, place)
    if stop.requested:
        message = f"stopped after {first.tokens:,} of {total:,} tokens"
        if folder:
            where = folder / "checkpoints" if len(members) == 1 else folder
            message += f"; the checkpoint is in {where}, and the same command goes on from it"
        raise TrainingInterrupted(message)
    return [member.finish() for member in members]


def _write_checkpoints(members: Sequence[_Member], place: Place) -> None:
    """First all new ones, then away with the old: at any moment there is one that all have."""
    written = [(m.folder, write_checkpoint(m.folder, m.trainer, place, m.source.state())) for m in members if m.folder]
    for folder, checkpoint in written:
        drop_others(folder, checkpoint)


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
    members: Sequence[_Member],
    place: Place,
    bar: TrainingProgress,
    callbacks: Sequence[Callback],
    stop: _StopRequest,
) -> Place:
    """Train until the run is done, the source ends or a stop is requested; returns the place reached."""
    first = members[0].trainer
    n_steps = first.n_steps or 0
    last_checkpoint = time.monotonic()
    if first.steps >= n_steps:
        return place
    wholes = list(dict.fromkeys(member.source.whole for member in members))
    streams = [batches(whole, first.config.batch_size, place) for whole in wholes]
    for parts in zip(*streams, strict=True):
        place, shown = parts[0][1], list[dict[str, float]]()
        rows = {whole: part for whole, (part, _) in zip(wholes, parts, strict=True)}
        for member in members:
            trainer, source = member.trainer, member.source
            step = trainer.step(*source.split(source.take(rows[source.whole])))
            for callback in callbacks:
                callback(trainer, step)
            if trainer.steps % member.config.log_every == 0 or trainer.steps == n_steps:
                member.log(step)
                shown.append(step.metrics)
        if shown:
            bar.update(first.tokens, shown)
        if first.steps >= n_steps or stop.requested:
            break
        if time.monotonic() - last_checkpoint > 60 * first.config.checkpoint_minutes:
            _write_checkpoints(members, place)
            last_checkpoint = time.monotonic()
    return place


@torch.no_grad()
def _store_fingerprint(sae: SAE, source: ActivationSource) -> None:
    sae.probe = source.probe()
    x, target = source.split(source.probe_activations(sae.probe).to(sae.W_enc.device))
    sae.metadata = sae.metadata.model_copy(update={"fingerprint": fingerprint(sae, x, target)})


@torch.no_grad()
def fingerprint(sae: SAE, x: Tensor, target: Tensor | None = None) -> InputFingerprint:
    """What the SAE makes of a batch of raw activations; `target` is what it must predict, if that is something else."""
    out, wanted = sae(x), x if target is None else target
    total = (wanted - wanted.mean(0)).pow(2).sum()
    return InputFingerprint(
        mean_norm=x.flatten(1).norm(dim=-1).mean().item(),
        fvu=((wanted - out.reconstruction).pow(2).sum() / total).item(),
        l0=out.codes.l0().float().mean().item(),
    )
