"""Trainer: one optimiser step after another, and the books that must be kept between them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosem import kernels
from monosem.errors import DataError
from monosem.sae import SAE, TrainingContext, TrainingLoss
from monosem.training.config import TrainingConfig
from monosem.training.optimizer import Adam
from monosem.training.schedules import lr_factor

MIN_DEAD_STEPS = 20


@dataclass(frozen=True)
class Step:
    """What one step did. Numbers are tensors until they are asked for: reading `metrics` waits for the device."""

    loss: Float[Tensor, ""]
    output: TrainingLoss
    target: Float[Tensor, "rows d_out"]
    lr: float
    n_dead: Float[Tensor, ""]

    @cached_property
    def metrics(self) -> dict[str, float]:
        """loss, its terms, fvu, l0, dead (share of latents), lr."""
        with torch.no_grad():
            total = (self.target - self.target.mean(0)).pow(2).sum()
            unexplained = (self.target - self.output.reconstruction).pow(2).sum()
            numbers = {
                "loss": self.loss,
                **self.output.terms,
                "fvu": unexplained / total,
                "l0": self.output.fired.sum() / len(self.target),
                "dead": self.n_dead / len(self.output.fired),
            }
            values = torch.stack([v.detach().double() for v in numbers.values()]).tolist()
        return {**dict(zip(numbers, values, strict=True)), "lr": self.lr}


class Trainer:
    """Trains one SAE, batch by batch.

    trainer = Trainer(sae, TrainingConfig(lr=3e-4))
    for x in batches:
        step = trainer.step(x)          # step.loss, step.metrics
    """

    def __init__(self, sae: SAE, config: TrainingConfig | None = None, total_tokens: int | None = None) -> None:
        """Prepare to train.

        Args:
            sae: trained in place. Its transform is fitted on the first batch, unless `sae.initialise` was called.
            config: the settings.
            total_tokens: length of the run, for the schedules; without, the rate stays level after warm-up.
        """
        self.sae, self.config, self.total_tokens = sae, config or TrainingConfig(), total_tokens
        self.peak_lr = self.config.peak_lr(sae.n_latents)
        self.n_steps = None if total_tokens is None else -(-total_tokens // self.config.batch_size)
        self.optimizer = Adam(
            dict(sae.named_parameters()),
            self.config.beta1,
            self.config.beta2,
            unit_rows=("W_dec",) if sae.unit_norm_decoder else (),
        )
        self.screen = self.config.matmul == "auto" and kernels.fast_bfloat16(sae.W_enc.device)
        self.steps, self.tokens = 0, 0
        self.tokens_since_fired = torch.zeros(sae.n_latents, dtype=torch.int64, device=sae.W_enc.device)

    @property
    def dead_after(self) -> int:
        """Tokens without firing after which a latent is dead."""
        share = self.config.dead_after_share * self.total_tokens if self.total_tokens else float("inf")
        limit = min(self.config.dead_after_tokens, share)
        return max(int(limit), MIN_DEAD_STEPS * self.config.batch_size)

    def step(self, x: Float[Tensor, "batch d_in"], target: Float[Tensor, "batch d_out"] | None = None) -> Step:
        """One optimiser step on raw activations.

        Args:
            x: what the SAE reads.
            target: what it must predict, if that is not x.

        Raises:
            DataError: wrong width.
        """
        if x.ndim != 2 or x.shape[1] != self.sae.d_in:
            raise DataError(f"a batch must have the shape (rows, {self.sae.d_in}), got {tuple(x.shape)}")
        if target is not None and target.shape != (len(x), self.sae.d_out):
            raise DataError(f"the target must have the shape {(len(x), self.sae.d_out)}, got {tuple(target.shape)}")
        sae = self.sae
        x = x.detach().to(sae.W_enc.device, sae.W_enc.dtype)
        if not sae.transform.fitted:
            sae.initialise(x)
        inputs = sae.transform(x)
        goal = inputs if target is None else sae.transform(target.detach().to(x))
        dead = self.tokens_since_fired >= self.dead_after
        may_have_dead = self.tokens >= self.dead_after
        context = TrainingContext(dead if may_have_dead else None, self.screen)
        output = sae.training_loss(inputs, goal, context)
        output.loss.backward()
        if self.config.clip_gradient is not None:
            torch.nn.utils.clip_grad_norm_(sae.parameters(), self.config.clip_gradient)
        lr = self.peak_lr * lr_factor(self.steps, self.n_steps, self.config.warmup, self.config.decay)
        self.optimizer.step(lr)
        self.tokens += len(x)
        self.steps += 1
        self.tokens_since_fired = torch.where(output.fired > 0, 0, self.tokens_since_fired + len(x))
        return Step(output.loss.detach(), output, goal, lr, dead.sum())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that is needed, beside the SAE, to go on: tensors and plain numbers."""
        tensors = {"tokens_since_fired": self.tokens_since_fired, **self.optimizer.state()}
        return tensors, {"steps": self.steps, "tokens": self.tokens}

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self.steps, self.tokens = numbers["steps"], numbers["tokens"]
        self.optimizer.load_state(tensors, self.steps)
        self.tokens_since_fired = tensors["tokens_since_fired"].to(self.tokens_since_fired.device)
