"""train and fit: the whole loop, with progress, log, checkpoints and resumption."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from monosem.activations import (
    FILLING,
    ActivationSource,
    ContextActivations,
    IterableActivations,
    Place,
    Standing,
    activations,
    batches,
)
from monosem.arguments import Positive, checked
from monosem.errors import ConfigError, DataError, TrainingInterrupted
from monosem.files import named_folder
from monosem.ranks import Division, Group, agreed, at_work, everyone, first_alone_in
from monosem.sae import SAE
from monosem.training.config import TrainingConfig
from monosem.training.cost import Loss
from monosem.training.member import Member, TrainingResult
from monosem.training.trainer import Step, Trainer
from monosem.work import Job, Stage, Stopped, StopRequest, doing, job

CHECKPOINTS_SHARE = 0.02
"""Of a run's time, at most, whatever a checkpoint weighs; the pause between two grows with what they take."""
FIGURES = {"loss": "{:.4f}", "kl": "{:.4f}", "fvu": "{:.3f}", "l0": "{:.1f}", "dead": "{:.1%}"}
LABELS = {"kl": "KL", "fvu": "FVU", "l0": "L0"}

Callback = Callable[[Trainer, Step], None]


@checked
def train(
    sae: SAE,
    source: ActivationSource,
    *,
    tokens: Positive,
    loss: Loss | None = None,
    config: TrainingConfig | None = None,
    path: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
) -> TrainingResult:
    """Train an SAE in place.

    With a `path` the run can be stopped and killed at any moment: the same call goes on from the last checkpoint to the
    same result. Ctrl-C writes a checkpoint first. The finished SAE stands in `path/sae`; called once more, it is read
    from there. A call with other settings, weights or data than those that the folder's run began with is refused.

    Args:
        sae: the SAE to train.
        source: what `activations` returns.
        tokens: length of the run, in rows of activations.
        loss: in place of the squared error, such as `EndToEnd(model)`; rows are then read by context.
        config: the settings.
        path: the run folder.
        callbacks: called after every step.
        progress: show a live line (plain lines where there is no terminal).

    Raises:
        MismatchError: SAE and source have different widths.
        ConfigError: the folder holds another run, and the message names every setting that differs; or the loss is not
            for such a model or source.
        FileError: another process is writing into the folder, or it cannot be written.
        TrainingInterrupted: Ctrl-C; the checkpoint is written.
    """
    folder = named_folder(path) if path is not None else None
    source = source if loss is None else source.by_context()
    member = Member(sae, source, config or TrainingConfig(), tokens, folder, loss)
    return _train([member], folder, callbacks, progress)[0]


@checked
def train_together(
    saes: Mapping[str, SAE],
    source: ActivationSource | Mapping[str, ActivationSource],
    *,
    tokens: Positive | Mapping[str, Positive],
    loss: Loss | Mapping[str, Loss | None] | None = None,
    config: TrainingConfig | Mapping[str, TrainingConfig] | None = None,
    path: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    prepare: Callable[[], None] | None = None,
) -> dict[str, TrainingResult]:
    """Train several SAEs in place on one stream: the subject model runs once for all of them.

    Each ends as if it had been trained alone, bit for bit: same batches, own optimiser, own schedule.

    Args:
        saes: the SAEs, by name. They may differ in architecture, width, k, seed, ...
        source: one source for all, or one for each, of which each batch is read in step (views of one pass).
        tokens: length of all runs, or of each: a shorter one ends, its own schedule gone through, while others go on.
        loss: in place of the squared error, for all or for each; if any has one, all read by context.
        config: settings for all, or for each; batch sizes must be equal.
        path: a folder; each SAE's run folder is `path/NAME`.
        callbacks: called after every step of every SAE.
        progress: show a live line.
        prepare: called before work starts, once the folder is found to be new or of this very run.

    Raises:
        ConfigError: no SAE, one without a source, different batch sizes, or a folder that holds another run.
        FileError: the folder is in use, or cannot be written.
        MismatchError: an SAE and its source have different widths.
        TrainingInterrupted: Ctrl-C; the checkpoints are written.
    """
    folder = named_folder(path) if path is not None else None
    members: list[Member] = []
    for what, given in (("source", source), ("tokens", tokens), ("config", config)):
        if isinstance(given, Mapping) and (missing := [name for name in saes if name not in given]):
            raise ConfigError(f"{what} is given by name, but for {missing[0]!r} there is none")
    losses = {name: loss.get(name) if isinstance(loss, Mapping) else loss for name in saes}
    by_context = any(one is not None for one in losses.values())
    for name, sae in saes.items():
        own_source = source if isinstance(source, ActivationSource) else source[name]
        own_source = own_source.by_context() if by_context else own_source
        own_config = config if isinstance(config, TrainingConfig | None) else config[name]
        own_folder = folder / name if folder is not None else None
        own_tokens = tokens[name] if isinstance(tokens, Mapping) else tokens
        members.append(Member(sae, own_source, own_config or TrainingConfig(), own_tokens, own_folder, losses[name]))
    if not members:
        raise ConfigError("no SAE to train: give at least one, {name: sae}")
    sizes = sorted({member.config.batch_size for member in members})
    if len(sizes) > 1:
        raise ConfigError(f"SAEs trained together share their batches: batch sizes {sizes} must be equal")
    return dict(zip(saes, _train(members, folder, callbacks, progress, prepare), strict=True))


@checked
def fit(
    sae: SAE,
    x: Tensor | np.ndarray | str | Path | Iterable[Any] | ActivationSource,
    *,
    tokens: Positive | None = None,
    config: TrainingConfig | None = None,
    path: str | Path | None = None,
    progress: bool = True,
) -> TrainingResult:
    """Train an SAE on activations that are there already.

    Args:
        sae: trained in place.
        x: (n, d_in) tensor or array, a `.npy` or `.safetensors` file, the folder or address of a store of one hook
            point, an iterable of batches, or a source of activations.
        tokens: rows to train on, with repetition; if not given, the rows that there are, but at least 1,000,000. An
            iterable is read once: of a list the length is known, of another one 1,000,000 rows are assumed.
        config: the settings.
        path: the run folder.
        progress: show a live line.
    """
    source, config = activations(x), config or TrainingConfig()
    if tokens is None and isinstance(source, IterableActivations) and source.n_rows is not None:
        tokens = max(1, source.n_rows - source.n_rows % config.batch_size)
    elif tokens is None:
        tokens = max(1_000_000, source.whole.n_rows or 0)
    return train(sae, source, tokens=tokens, config=config, path=path, progress=progress)


def _train(
    members: Sequence[Member],
    folder: Path | None,
    callbacks: Sequence[Callback],
    progress: bool,
    prepare: Callable[[], None] | None = None,
) -> list[TrainingResult]:
    with ExitStack() as closing:
        closing.enter_context(torch.inference_mode(False))
        every = everyone()
        shown = closing.enter_context(job(progress and every.first))
        closing.enter_context(first_alone_in(folder, *(member.folder for member in members)))
        division = _division(every, members)
        with doing("comparing with the run folder"):
            for member in members:
                member.recognise(division)
        if prepare is not None and every.first:
            prepare()
        for member in members:
            closing.callback(member.close)
            with doing("beginning"):
                member.begin()
        going = [member for member in members if not member.finished]
        if not any(member.resumed for member in going):
            with doing("looking at the activations"):
                remarks = dict.fromkeys(remark for member in going for remark in member.remarks())
            for remark in remarks if every.first else ():
                warnings.warn(remark, stacklevel=3)
        if going:
            _go(going, folder, shown, callbacks)
        with doing("saving"):
            return [member.finish() for member in members]


def _division(every: Group, members: Sequence[Member]) -> Division:
    """How all that are trained together are divided.

    Raises:
        ConfigError: not all alike, or there are not as many processes.
    """
    sizes = sorted({member.config.latent_ranks for member in members})
    if len(sizes) > 1:
        raise ConfigError(f"SAEs trained together are divided alike: latent_ranks {sizes} must be equal")
    return Division.of(every, sizes[0])


def _go(members: Sequence[Member], folder: Path | None, shown: Job, callbacks: Sequence[Callback]) -> None:
    """Train until the run is done or the source ends.

    Raises:
        TrainingInterrupted: a stop was asked for; the checkpoints are written.
    """
    longest = max(members, key=lambda member: member.tokens)
    total, done = longest.tokens, _reached(members)
    stage = shown.stage("training", total, done=done, unit="tokens", summary=True)
    for whole in dict.fromkeys(member.source.whole for member in members):
        shown.expect(FILLING, lambda whole=whole: whole.to_read(total))
    try:
        with StopRequest() as stop, stage:
            stopped = _loop(members, stage, callbacks, stop)
    finally:
        stage.close()
    if not stopped and everyone().first:
        _say_if_ended(longest.trainer)
    with doing("writing checkpoints"):
        for member in members:
            member.write_checkpoint()
    if stopped:
        message = f"stopped after {_reached(members):,} of {total:,} tokens"
        if folder:
            where = folder / "checkpoints" if members[0].folder == folder else folder
            message += f"; the checkpoint is in {where}, and the same command goes on from it"
        raise TrainingInterrupted(message)


def _reached(members: Sequence[Member]) -> int:
    """Tokens that all have seen of those that go on."""
    going = [member.trainer.tokens for member in members if not member.ended]
    return min(going, default=max(member.trainer.tokens for member in members))


def _say_if_ended(trainer: Trainer) -> None:
    """In words, if the source has ended before the run.

    Raises:
        DataError: there was not one batch in it.
    """
    size, total = trainer.config.batch_size, trainer.total_tokens or 0
    if not trainer.steps:
        raise DataError(f"nothing was trained: there are fewer rows than a batch of {size:,}: lower batch_size")
    if trainer.steps < (trainer.n_steps or 0):
        share = trainer.tokens / total
        warnings.warn(
            f"the activations ended after {trainer.tokens:,} of {total:,} tokens, {share:.0%} of the schedule: the "
            f"learning rate was not lowered to the end. Train with tokens={trainer.tokens} to have it so",
            stacklevel=4,
        )


class _Stream:
    """The batches of one source, from the earliest place on that an SAE which reads it has reached."""

    def __init__(self, whole: ActivationSource, members: Sequence[Member]) -> None:
        self.members = [member for member in members if member.source.whole is whole]
        first = min(self.members, key=lambda member: member.trainer.steps)
        self.begins, self._whole, self._place = first.trainer.steps, whole, first.place
        self._batches: Iterator[tuple[Tensor, Place]] = batches(whole, first.config.batch_size, first.place)

    @property
    def ended(self) -> bool:
        """Whether nobody needs more of it."""
        return all(member.ended for member in self.members)

    def read(self, own: slice) -> _Read | None:
        """Own rows of the next batch; None at the end."""
        batch = next(self._batches, None)
        if batch is None:
            return None
        before, self._place = self._place, batch[1]
        standing = list[Standing]()
        if isinstance(self._whole, ContextActivations) and any(member.loss for member in self.members):
            standing = self._whole.standing(before, own.start, own.stop)
        return _Read(batch[0][own], batch[1], standing)


class _Read(NamedTuple):
    """Rows of a batch."""

    rows: Tensor
    place: Place
    """After the whole batch."""
    standing: list[Standing]
    """Where they stand in the text, where a loss must know it."""


def _loop(members: Sequence[Member], stage: Stage, callbacks: Sequence[Callback], stop: StopRequest) -> bool:
    """Step by step, each SAE from the step on that it has reached; returns whether it was asked to stop."""
    config, division = members[0].config, members[0].division
    last_checkpoint, pause = time.monotonic(), 60 * config.checkpoint_minutes
    going = [member for member in members if not member.ended]
    step = min((member.trainer.steps for member in going), default=0)
    streams = [_Stream(whole, going) for whole in dict.fromkeys(member.source.whole for member in going)]
    stopped = stop.requested and division.alone
    while streams and not stopped:
        try:
            own = division.own_rows(config.batch_size)
            read = [(stream, stream.read(own)) for stream in streams if stream.begins <= step]
        except Stopped:
            return True
        shown: list[dict[str, float]] = []
        for stream, batch in read:
            if batch is None:
                return False
            for member in stream.members:
                if member.trainer.steps == step and not member.ended:
                    shown += _step(member, batch, callbacks)
                    member.place = batch.place
        streams = [stream for stream in streams if not stream.ended]
        step += 1
        stage.figures = _figures(shown) if shown else stage.figures
        stage.advance(config.batch_size)
        stopped, due = agreed(stop.requested, (now := time.monotonic()) - last_checkpoint > pause)
        if streams and not stopped and due:
            for member in members:
                member.write_checkpoint()
            last_checkpoint = time.monotonic()
            pause = max(pause, (last_checkpoint - now) / CHECKPOINTS_SHARE) if pause else 0
    return stopped


def _step(member: Member, batch: _Read, callbacks: Sequence[Callback]) -> list[dict[str, float]]:
    """One step of one SAE; its figures, if they are logged."""
    trainer, source = member.trainer, member.source
    loss = None if member.loss is None else member.loss.on(batch.standing)
    with at_work("a training step"):
        step = trainer.step(*source.split(source.take(batch.rows)), loss=loss)
    for callback in callbacks:
        callback(trainer, step)
    if trainer.steps % member.config.log_every and not member.ended:
        return []
    member.log(step)
    return [step.metrics]


def _figures(metrics: Sequence[Mapping[str, float]]) -> str:
    """Those of one SAE, or from least to most of several."""
    shown = [] if len(metrics) == 1 else [f"{len(metrics)} SAEs"]
    for name, form in FIGURES.items():
        values = [one[name] for one in metrics if name in one]
        if not values:
            continue
        ends = dict.fromkeys(form.format(value) for value in (min(values), max(values)))
        shown.append(f"{LABELS.get(name, name)} {' - '.join(ends)}")
    return "  ".join(shown)
