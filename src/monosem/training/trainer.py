"""Trainer: one optimiser step after another, and the books that must be kept between them."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosem import kernels
from monosem.arguments import checked
from monosem.errors import ConfigError, DataError, DivergenceError, MonosemError
from monosem.ranks import Division, divided, mean_over_rows, over_latents, over_rows
from monosem.sae import SAE, TrainingContext, TrainingLoss
from monosem.sae.transcoder import SkipPath
from monosem.training.config import TrainingConfig
from monosem.training.cost import CostFunction, ErrorCost
from monosem.training.divided import by_latent, collected, require_divisible, take_own
from monosem.training.optimizer import MOMENTS, Adam
from monosem.training.parts import Parts
from monosem.training.resample import due, resample
from monosem.training.revival import add_revival, raise_silent
from monosem.training.schedules import lr_factor

MIN_DEAD_STEPS = 20
EXPLODED = 100.0
"""Times the energy of what is to be reconstructed, from which on a squared error is that of a run that has diverged."""


@dataclass(frozen=True)
class Step:
    """What one step did. Numbers are tensors until they are asked for: reading `metrics` waits for the device."""

    loss: Float[Tensor, ""]
    output: TrainingLoss
    target: Float[Tensor, "rows d_out"]
    lr: float
    n_dead: Float[Tensor, ""]
    revival: dict[str, Tensor]
    """Terms of the loss that revives dead latents."""
    division: Division
    reconstructs: bool = True
    """Whether the loss was the squared error."""

    @cached_property
    def metrics(self) -> dict[str, float]:
        """loss, its terms, fvu (NaN where the rows are all the same), l0, dead (share of latents), lr; of all ranks."""
        with torch.no_grad(), divided(self.division):
            total = over_rows((self.target - mean_over_rows(self.target)).pow(2).sum())
            unexplained = over_rows(self.output.residual.pow(2).sum())
            fired, dead = over_latents(torch.stack([self.output.fired.sum(), self.n_dead])).unbind()
            numbers = {
                "loss": self.loss,
                **self.output.terms,
                **self.revival,
                "fvu": torch.where(total > 0, unexplained / total, torch.nan),
                "l0": fired / kernels.rows_in_all(len(self.target)),
                "dead": dead / kernels.latents_in_all(len(self.output.fired)),
            }
            values = torch.stack([v.detach().double() for v in numbers.values()]).tolist()
        return {**dict(zip(numbers, values, strict=True)), "lr": self.lr}


class Trainer:
    """Trains one SAE, batch by batch.

    trainer = Trainer(sae, TrainingConfig(lr=3e-4))
    for x in batches:
        step = trainer.step(x)          # step.loss, step.metrics
    """

    division = Division()
    """Which rows of a batch and which latents are here, of several processes; of one, all."""
    parts: Parts | None = None
    """What the ranks of this machine that have other rows have in common, and what of it is changed here."""

    @checked
    def __init__(self, sae: SAE, config: TrainingConfig | None = None, total_tokens: int | None = None) -> None:
        """Prepare to train.

        Args:
            sae: trained in place. Its transform is fitted on the first batch, unless `sae.initialise` was called.
            config: the settings.
            total_tokens: length of the run, for the schedules; without, the rate stays level after warm-up.

        Raises:
            ConfigError: resampling without total_tokens, or of an architecture with several decoders; or parameters of
                half precision.
            DataError: a parameter is not finite.
        """
        if sae.W_enc.dtype in (torch.float16, torch.bfloat16):
            raise ConfigError(
                f"an SAE in {str(sae.W_enc.dtype).removeprefix('torch.')} cannot be trained, its steps are lost in "
                "rounding: make it in float32 (dtype=torch.float32, or sae.float()), and convert it after training"
            )
        bad = sae.not_finite()
        if bad:
            raise DataError(f"the SAE cannot be trained: {bad}: load or make it anew")
        self.sae, self.config, self.total_tokens = sae, config or TrainingConfig(), total_tokens
        if self.config.revival.method == "resample" and not total_tokens:
            raise ConfigError("resampling happens at shares of a run: give total_tokens, or another revival.method")
        if self.config.revival.method == "resample" and "W_dec" not in dict(sae.named_parameters()):
            raise ConfigError(f"{sae.architecture} has no single W_dec to resample: choose another revival.method")
        self.peak_lr = self.config.peak_lr(sae.n_latents)
        self.n_steps = None if total_tokens is None else -(-total_tokens // self.config.batch_size)
        self.optimizer = Adam(
            dict(sae.named_parameters()),
            self.config.beta1,
            self.config.beta2,
            unit_rows=sae.unit_rows,
        )
        self.screen: kernels.Precision = self._fastest()
        self.buffers = kernels.Buffers()
        self.steps, self.tokens = 0, 0
        self.last: Step | None = None
        self.tokens_since_fired = torch.zeros(sae.n_latents, dtype=torch.int64, device=sae.W_enc.device)

    def divide(self, division: Division) -> None:
        """Go on as one of several processes: of each batch `step` takes this one's rows, and what belongs to latents
        that others have is let go.

        Raises:
            ConfigError: batch or dictionary cannot be divided among so many, or by latents at all.
        """
        require_divisible(self.sae, self.config, division)
        take_own(self.sae, self.optimizer, division)
        self.tokens_since_fired = division.own(self.tokens_since_fired).clone()
        self.division, self.parts = division, Parts.of(division.rows, self.optimizer)
        if len(set(division.every.words(self.screen))) > 1:
            self.screen = "float32"

    def undivide(self) -> None:
        """Work no longer with others of this machine: what was in common is this process's own again."""
        if self.parts is not None:
            self.parts.end()
            self.parts = None

    def _fastest(self) -> kernels.Precision:
        """In which precision candidates are looked for: as asked, or measured, once."""
        W, asked = self.sae.W_enc, self.config.matmul
        if asked == "auto":
            return kernels.fastest(W.device, W.shape[-1])
        if not kernels.knows(asked, W.device):
            raise ConfigError(
                f"training.matmul: this {'processor' if W.device.type == 'cpu' else 'GPU'} has no products of {asked}: "
                "choose auto or float32"
            )
        return asked

    def _same_screen(self, before: kernels.Precision | bool) -> kernels.Precision:
        """The precision that the run has begun with, if this processor knows it."""
        if isinstance(before, bool):  # of runs of version 0.1
            before = "bfloat16" if before else "float32"
        if self.config.matmul != "auto":
            return self.screen
        if kernels.knows(before, self.sae.W_enc.device):
            return before
        warnings.warn(
            f"candidates were looked for in {before}, which this processor has not: the run goes on in float32",
            stacklevel=2,
        )
        return "float32"

    @property
    def dead_after(self) -> int:
        """Tokens without firing after which a latent is dead."""
        share = self.config.dead_after_share * self.total_tokens if self.total_tokens else float("inf")
        limit = min(self.config.dead_after_tokens, share)
        return max(int(limit), MIN_DEAD_STEPS * self.config.batch_size)

    def step(
        self,
        x: Float[Tensor, "batch d_in"],
        target: Float[Tensor, "batch d_out"] | None = None,
        loss: CostFunction | None = None,
    ) -> Step:
        """One optimiser step on raw activations.

        Args:
            x: what the SAE reads; where the work is divided, this process's rows, as many as each other has.
            target: what it must predict, if that is not x.
            loss: what raw reconstructions of these rows cost, in place of their squared error. Penalties stay; dead
                latents explain what would lower it, in place of what is left of the target.

        Raises:
            DataError: wrong width, no rows, no target where one is needed, or rows that are not finite.
            DivergenceError: the numbers of the SAE are no longer finite. (Without a check of a device other than the
                CPU, which would have to be waited for: see `require_sound`.)
        """
        sae = self.sae
        if x.ndim < 2 or tuple(x.shape[1:]) != sae.in_shape:
            wanted = ", ".join(map(str, sae.in_shape))
            raise DataError(f"a batch must have the shape (rows, {wanted}), got {tuple(x.shape)}")
        if target is not None and target.shape != (len(x), *sae.out_shape):
            raise DataError(f"the target must have the shape {(len(x), *sae.out_shape)}, got {tuple(target.shape)}")
        if target is None and sae.out_shape != sae.in_shape:
            raise DataError(f"this {sae.architecture} predicts rows of another shape than it reads: step(x, target)")
        if not len(x):
            raise DataError("a batch must have at least one row")
        x, target = self._rows(x), None if target is None else self._rows(target)
        if not (sae.transform.fitted and sae.target_transform.fitted):
            sae.initialise(x.reshape(-1, *sae.in_shape), None if target is None else target.reshape(-1, *sae.out_shape))
        inputs = sae.transform(x)
        itself = target is None and sae.autoencodes
        goal = inputs if itself else sae.target_transform(x if target is None else target, x)
        progress = self.tokens / self.total_tokens if self.total_tokens else None
        dead = self.tokens_since_fired >= self.dead_after
        rows = len(x) * self.division.rows.size
        cost = None if loss is None else ErrorCost(loss, sae, goal, x)
        common = [] if self.parts is None else list(self.parts.weights.values())
        with self.buffers.in_use(), divided(self.division, common):
            output = self._loss(inputs, goal, TrainingContext(self.screen, progress, cost))
            output.loss.backward()
            residual = output.residual
            if cost is not None:
                output = replace(output, terms={**output.terms, **cost.terms(residual)})
                residual = cost.wanted(residual)
            revival: dict[str, Tensor] = {}
            if self.tokens >= self.dead_after:
                centred = sae.centred(inputs).detach()
                if self.config.revival.method == "aux_k" and self._passes(self.dead_after, rows):
                    raise_silent(sae, dead, centred)
                revival = add_revival(sae, self.config.revival, dead, centred, residual)
            gradients = self._gradients()
            lr = self.peak_lr * lr_factor(self.steps, self.n_steps, self.config.warmup, self.config.decay)
            self.optimizer.step(lr, gradients, self.own)
            if self.parts is not None:
                self.parts.changed()
        self.tokens += rows
        self.steps += 1
        sae.metadata.tokens_trained += rows
        self.tokens_since_fired = torch.where(output.fired > 0, 0, self.tokens_since_fired + rows)
        if self.total_tokens and due(self.config.revival, self.tokens - rows, self.tokens, self.total_tokens):
            self._resample(inputs, goal, residual)
        revived = (dead.sum(), revival)
        self.last = Step(output.loss.detach(), output, goal, lr, *revived, self.division, cost is None)
        return self.last

    @property
    def own(self) -> dict[str, slice]:
        """The rows of parameters that are changed here, where other ranks of this machine change the others."""
        return {} if self.parts is None else self.parts.own

    def _gradients(self) -> dict[str, Tensor]:
        """Over all rows of the batch, those of other ranks too; and below the limit, if there is one."""
        if self.parts is not None:
            gradients = self.parts.gradients()
        else:
            gradients = self.optimizer.gradients
            for gradient in gradients.values():
                self.division.rows.sum_(gradient)
        limit = self.config.clip_gradient
        if limit is not None:
            zero = self.sae.W_enc.new_zeros(())
            own, others = zero, zero
            for name, gradient in gradients.items():
                square = gradient.pow(2).sum()
                square = over_rows(square) if name in self.own else square
                own, others = (own + square, others) if by_latent(self.sae, name) else (own, others + square)
            norm = (over_latents(own) + others).sqrt()
            for gradient in gradients.values():
                gradient.mul_((limit / (norm + 1e-6)).clamp(max=1.0))
        return gradients

    def _passes(self, interval: int, rows: int) -> bool:
        """Whether a multiple of so many tokens lies in a step of so many rows."""
        return (self.tokens + rows) // interval > self.tokens // interval

    def _loss(self, inputs: Tensor, goal: Tensor, context: TrainingContext) -> TrainingLoss:
        try:
            output = self.sae.training_loss(inputs, goal, context)
        except DivergenceError as error:
            raise self._bad(inputs, goal, str(error)) from error
        if output.loss.device.type == "cpu" and not output.loss.isfinite():
            raise self._bad(inputs, goal, "the loss is not finite")
        return output

    def require_sound(self) -> None:
        """Look at the last step, and at all parameters.

        Raises:
            DivergenceError: they are not finite, or the error is many times the energy of what is to be reconstructed.
        """
        self.require_bounded()
        bad = self.sae.not_finite()
        if bad:
            raise self._diverged(bad)

    def require_bounded(self) -> None:
        """Look at the last step alone.

        Raises:
            DivergenceError: its error is many times the energy of what is to be reconstructed, or no number.
        """
        if self.last is None or not self.last.reconstructs:
            return
        both = torch.stack([t.double().pow(2).sum() for t in (self.last.target, self.last.output.residual)])
        energy, error = self.division.rows.sum_(both).tolist()
        if energy > 0 and not error <= EXPLODED * energy:
            raise self._diverged(f"the squared error is {error / energy:.3g} times the energy of the activations")

    def _bad(self, inputs: Tensor, goal: Tensor, what: str) -> MonosemError:
        """What is wrong, where a loss cannot be had: the rows or the SAE."""
        finite = inputs.isfinite().flatten(1).all(1) & goal.isfinite().flatten(1).all(1)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            return DataError(
                f"{int((~finite).sum()):,} of {len(finite):,} rows of the batch are not finite in float "
                f"(the first: row {first}): drop or mend them"
            )
        return self._diverged(what)

    def _diverged(self, what: str) -> DivergenceError:
        return DivergenceError(
            f"training diverged after {self.steps:,} steps ({self.tokens:,} tokens): {what}. {self.slower}"
        )

    @property
    def usual_lr(self) -> float:
        """The default for so many latents."""
        return TrainingConfig().peak_lr(self.sae.n_latents)

    @property
    def slower(self) -> str:
        """In words, what to do where the rate is too high."""
        scaled = self.sae.transform.kind not in ("none", "centre")
        scale = "" if scaled else "; or scale the activations, with transform='centre_scale'"
        return (
            f"Lower the rate (lr is {self.peak_lr:g}; {self.usual_lr:.2g} is usual for {self.sae.n_latents:,} latents) "
            f"or set clip_gradient=1{scale}"
        )

    def _resample(self, inputs: Tensor, goal: Tensor, residual: Tensor) -> None:
        sae, dead = self.sae, self.tokens_since_fired >= self.dead_after
        wanted = goal - sae.b_dec
        if isinstance(sae, SkipPath):
            wanted = wanted - inputs @ sae.W_skip.T
        gather, three = self.division.rows.gather, (sae.centred(inputs), wanted, residual)
        centred, wanted, residual = (torch.cat(gather(rows.detach())) for rows in three)
        norm = self.config.revival.new_norm(sae)
        with nullcontext() if self.parts is None else self.parts.each_its_own():
            latents = resample(sae, self.optimizer, dead, (centred, wanted), residual, norm=norm, seed=self.steps)
        self.tokens_since_fired[latents] = 0

    def _rows(self, x: Tensor) -> Tensor:
        return x.detach().to(self.sae.W_enc.device, self.sae.W_enc.dtype).reshape(len(x), -1)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that is needed, beside the SAE, to go on: tensors and plain numbers. Of several ranks, at the first."""
        tensors = {"tokens_since_fired": self.tokens_since_fired, **self.optimizer.state()}
        shared = {f"{kind}.{name}" for name in self.optimizer.mean if not by_latent(self.sae, name) for kind in MOMENTS}
        own = {name: tensor for name, tensor in tensors.items() if name not in shared}
        numbers = {"steps": self.steps, "tokens": self.tokens, "screen": self.screen}
        return {**tensors, **collected(own, self.division)}, numbers

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self.steps, self.tokens = numbers["steps"], numbers["tokens"]
        self.screen = self._same_screen(numbers.get("screen", "bfloat16"))
        self.optimizer.load_state(tensors, self.steps)
        self.tokens_since_fired.copy_(tensors["tokens_since_fired"])
