"""One SAE of a run, with all that is its own: settings, checkpoints, log, result."""

from __future__ import annotations

import importlib.metadata
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from monosem.activations import ActivationSource, Place, inspect_rows
from monosem.errors import ConfigError, FileError, MismatchError
from monosem.ranks import Division
from monosem.sae import SAE, InputFingerprint, SAEMetadata, load_sae
from monosem.training.checkpoints import REMEDY, checkpoints_of, drop_others, read_checkpoint, write_checkpoint
from monosem.training.config import TrainingConfig
from monosem.training.cost import Loss
from monosem.training.divided import require_divisible, restore
from monosem.training.identity import Identity
from monosem.training.loggers import Logger, MetricsFile, open_loggers, read_history, require_loggers
from monosem.training.outcome import too_fast
from monosem.training.trainer import Step, Trainer
from monosem.work import doing, memory_here

LOOKED_AT, INITIALISED_ON = 4096, 65_536  # rows


@dataclass(frozen=True)
class TrainingResult:
    """A finished run."""

    sae: SAE
    history: list[dict[str, float]] = field(repr=False)
    """One entry per logged step: tokens, loss, fvu, l0, dead, lr, ..."""
    path: Path | None
    """The run folder, if there is one."""
    remarks: tuple[str, ...] = ()
    """What did not go well, in words."""


class Member:
    """One SAE of a run. `recognise`, then `begin`, then steps, then `finish`."""

    def __init__(
        self,
        sae: SAE,
        source: ActivationSource,
        config: TrainingConfig,
        tokens: int,
        folder: Path | None,
        loss: Loss | None = None,
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
        size, memory = 4 * (math.prod(sae.in_shape) + sae.d_out) * config.batch_size, memory_here()
        if size > memory:
            raise ConfigError(
                f"training.batch_size: {config.batch_size:,} rows take {size / 2**30:,.0f} GiB, this machine has "
                f"{memory / 2**30:,.0f}: set some thousands"
            )
        require_loggers(config.loggers)
        self.loss_in_words = None if loss is None else loss.words
        self.loss = None if loss is None else loss.opened(source)
        if source.device is not None:
            sae.to(source.device)
        self.sae, self.source, self.config, self.tokens, self.folder = sae, source, config, tokens, folder
        self.loggers: list[Logger] = []
        self.trainer = Trainer(sae, config, tokens)
        self.place, self.division = Place(), Division()
        self.resumed = False
        self._identity: Identity | None = None
        self._result: TrainingResult | None = None

    def recognise(self, division: Division) -> None:
        """Compare what is asked for with the run that the folder holds. Nothing is written.

        Raises:
            ConfigError: it holds another run, or the work cannot be divided so.
            RankError: other processes are asked for something else.
        """
        require_divisible(self.sae, self.config, division)
        self.division, every = division, division.every
        if self.folder is None and every.size == 1:
            return
        asked = Identity.of(self.sae, self.source, self.config, self.tokens, self.loss_in_words)
        asked.require_alike(every)
        if self.folder is None:
            return
        if every.first:
            self._compare(self.folder, asked)
        known = self._identity
        self._identity = Identity(*every.tell(None if known is None else [known.run, known.settings]))

    def _compare(self, folder: Path, asked: Identity) -> None:
        there = Identity.read(folder)
        begun, trained = bool(checkpoints_of(folder)), (folder / "sae" / "cfg.json").is_file()
        if there is not None and (begun or trained):
            there.require_same(folder, self.sae, asked)
            self._identity = there
        elif trained and not begun:
            raise ConfigError(
                f"{folder} holds a trained SAE, and nothing says how it was trained: give another folder "
                "(path=..., --set output=...), or delete that one"
            )
        else:
            self._identity = asked

    @property
    def finished(self) -> bool:
        """Whether an earlier call has done all of it."""
        return self._result is not None

    @property
    def ended(self) -> bool:
        """Whether all its steps are made."""
        return self.trainer.steps >= (self.trainer.n_steps or 0)

    def begin(self) -> None:
        """Go on from the newest checkpoint, or begin. The first process alone looks into the folder."""
        every = self.division.every
        self._result = self._earlier_result() if every.first else None
        if every.tell(self._result is not None):
            self._share()
            self._result = self._result or self._told([])
            return
        self.resumed = every.tell(self._go_on() if every.first else None)
        if not self.resumed:
            self._begin_anew()
        if self._identity is not None and self.folder is not None:
            if not self.resumed and every.first:
                self._identity.write(self.folder)
            self._identity.own(self.sae)
        self._share()
        self.trainer.divide(self.division)
        steps, folder = self.trainer.steps, self.folder if every.first else None
        self.metrics = MetricsFile(folder / "metrics.jsonl" if folder else None, steps)
        self.loggers = [self.metrics, *(open_loggers(self.config.loggers, folder, steps) if every.first else [])]

    def _share(self) -> None:
        """Give what the first process has read or begun with to all."""
        every = self.division.every
        if every.size == 1:
            return
        sae, trainer = self.sae, self.trainer
        tensors, numbers = trainer.state()
        transforms = [sae.transform.fitted, sae.target_transform.fitted]
        metadata = sae.metadata.model_dump(exclude_none=True)
        words = every.tell([numbers, list(self.place), self.source.state(), metadata, transforms])
        numbers, place, source, metadata, transforms = words
        self.place, sae.metadata = Place(*place), SAEMetadata.model_validate(metadata)
        sae.transform.fitted, sae.target_transform.fitted = transforms
        for tensor in [*sae.state_dict().values(), *tensors.values()]:
            tensor.copy_(every.give(tensor))
        trainer.load_state(tensors, numbers)
        self.source.load_state(source)

    def _earlier_result(self) -> TrainingResult | None:
        if self.folder is None or not (self.folder / "sae" / "cfg.json").is_file():
            return None
        try:
            saved = load_sae(self.folder / "sae", self.sae.W_enc.device)
        except FileError:  # the checkpoint has it too
            return None
        if saved.metadata.tokens_trained < self.tokens or Identity.read(self.folder) is None:
            return None
        self.sae.load_state_dict(saved.state_dict())
        self.sae.transform.fitted = self.sae.target_transform.fitted = saved.transform.fitted
        self.sae.metadata, self.sae.probe = saved.metadata, saved.probe
        return self._told(read_history(self.folder / "metrics.jsonl"))

    def _go_on(self) -> bool:
        """Take up the newest checkpoint that can be read, if there are any."""
        damaged: dict[Path, FileError] = {}
        for checkpoint in checkpoints_of(self.folder):
            try:
                self.place = read_checkpoint(checkpoint, self.sae, self.trainer, self.source)
            except FileError as error:
                damaged[checkpoint] = error
                continue
            for other, error in damaged.items():
                words = str(error).removesuffix(f": {REMEDY}")
                warnings.warn(f"{words}. The run goes on from the one before, {checkpoint.name}", stacklevel=5)
                other.replace(other.with_name(f"damaged_{other.name}"))
            return True
        for error in damaged.values():
            raise error
        return False

    def _begin_anew(self) -> None:
        sae, trained_before = self.sae, self.sae.metadata.tokens_trained
        version = importlib.metadata.version("monosem")
        known = {"monosem_version": version, "tokens_trained": trained_before, "loss": self.loss_in_words}
        sae.metadata = self.source.metadata.model_copy(update=known)
        if not trained_before:
            sample = self.rows(max(self.config.batch_size, INITIALISED_ON)).to(sae.W_enc.device)
            with doing("initialising"):
                sae.initialise(*self.source.split(sample))

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
        """Tell all loggers of the step that has just been made.

        Raises:
            DivergenceError: the run goes nowhere.
        """
        self.trainer.require_bounded()
        for logger in self.loggers:
            logger.log(self.trainer.steps, {"tokens": self.trainer.tokens, **step.metrics})

    def write_checkpoint(self) -> None:
        """Write a checkpoint; it and the one before are kept."""
        if self.folder is not None:
            write_checkpoint(self.folder, self.trainer, self.place, self.source.state())
            if self.division.every.first:
                drop_others(self.folder, keep=checkpoints_of(self.folder)[:2])

    def close(self) -> None:
        """Close the loggers."""
        for logger in self.loggers:
            logger.close()

    def finish(self) -> TrainingResult:
        """Complete what the SAE remembers, and save it."""
        if self._result is not None:
            return self._result
        sae, first = self.sae, self.division.every.first
        self.trainer.require_sound()
        self.trainer.undivide()
        restore(sae, self.division)
        skipped = self.source.metadata.documents_skipped
        sae.metadata = sae.metadata.model_copy(update={"documents_skipped": skipped})
        _store_fingerprint(sae, self.source)
        if self.folder and first:
            sae.save(self.folder / "sae")
            drop_others(self.folder, keep=checkpoints_of(self.folder)[:1])
        self.division.every.wait()
        result = self._told(self.metrics.history)
        for remark in result.remarks if first else ():
            warnings.warn(remark, stacklevel=4)
        return result

    def _told(self, history: list[dict[str, float]]) -> TrainingResult:
        """The result, with what did not go well."""
        fast = too_fast(self.trainer, history)
        return TrainingResult(self.sae, history, self.folder, (*self.sae.remarks(), *([fast] if fast else [])))


@torch.no_grad()
def _store_fingerprint(sae: SAE, source: ActivationSource) -> None:
    sae.probe = source.probe()
    x, target = source.split(source.probe_activations(sae.probe).to(sae.W_enc.device))
    sae.metadata = sae.metadata.model_copy(update={"fingerprint": fingerprint(sae, x, target)})


@torch.no_grad()
def fingerprint(sae: SAE, x: Tensor, target: Tensor | None = None) -> InputFingerprint:
    """What the SAE makes of a batch of raw activations; `target` is what it must predict, if that is something else."""
    out, wanted = sae(x), (x if target is None else target).double()
    total = (wanted - wanted.mean(0)).pow(2).sum()
    unexplained = (wanted - out.reconstruction).pow(2).sum()
    return InputFingerprint(
        mean_norm=x.double().flatten(1).norm(dim=-1).mean().item(),
        fvu=(unexplained / total).item() if total > 0 else None,
        l0=out.codes.l0().float().mean().item(),
    )
