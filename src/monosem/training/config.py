"""The settings of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from monosem.files import Settings
from monosem.training.revival import RevivalConfig


class TrainingConfig(Settings):
    """How to train. Lengths are in tokens (rows of activations); schedules are fractions of the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of Adam; if not given, 2e-3 / sqrt(n_latents / 4096), at most 4e-3."""
    batch_size: int = Field(default=2048, ge=1)
    """Rows in a step."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the mean of gradients."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's decay of the mean of their squares."""
    warmup: float = Field(default=0.05, ge=0, le=1)
    """Share of the run over which the rate rises to its peak. Without a length: 1,000 steps."""
    decay: float = Field(default=0.2, ge=0, le=1)
    """Share of the run, at its end, over which the rate falls to zero."""
    dead_after_tokens: int = Field(default=10_000_000, ge=1)
    """A latent that has not fired for so long is dead; or for `dead_after_share` of the run, if that is shorter."""
    dead_after_share: float = Field(default=0.1, gt=0, le=1)
    """See `dead_after_tokens`."""
    revival: RevivalConfig = RevivalConfig()
    """What keeps latents alive."""
    clip_gradient: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient of all parameters together; no limit if not given."""
    matmul: Literal["auto", "float32", "bfloat16", "int8", "float8"] = "auto"
    """In which precision candidates are looked for; they are evaluated in float32. "auto": the fastest here."""
    checkpoint_minutes: float = Field(default=5.0, ge=0)
    """Time between checkpoints of a run that has a folder, longer where they take over 2 % of it; 0: every step."""
    log_every: int = Field(default=10, ge=1)
    """Steps between lines of metrics.jsonl."""
    latent_ranks: int = Field(default=1, ge=1)
    """Processes that hold a dictionary together, each some of its latents; the others have other rows. All that
    torchrun starts, for one that a single device cannot hold."""
    loggers: tuple[str, ...] = ()
    """Where the figures go beside metrics.jsonl: tensorboard, wandb."""

    def peak_lr(self, n_latents: int) -> float:
        return self.lr if self.lr is not None else min(4e-3, 2e-3 / (n_latents / 4096) ** 0.5)
