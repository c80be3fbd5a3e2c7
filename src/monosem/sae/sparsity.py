"""What keeps latents few: penalties, and the controller that finds the coefficient for a wanted L0."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn


def warmup_factor(progress: float | None, warmup: float) -> float:
    """Share of the full coefficient at a point of the run; the full one where the run's length is not known."""
    return 1.0 if progress is None or progress >= warmup else progress / warmup


ANNEALING, ANNEALING_STEPS = (0.2, 0.8), 10
"""Between which shares of a run p changes, and in how many steps (as published)."""


def annealed(p: float, p_end: float, progress: float | None) -> float:
    """The power of a penalty at a point of the run; p where the run's length is not known."""
    begin, end = ANNEALING
    done = 0.0 if progress is None else min(1.0, max(0.0, (progress - begin) / (end - begin)))
    return p + (p_end - p) * math.floor(ANNEALING_STEPS * done + 1e-9) / ANNEALING_STEPS


SMALL = 1e-3
"""Added to lengths before a power below 1, whose slope at 0 would else be infinite."""


def power_sum(lengths: Tensor, p: float) -> Float[Tensor, ""]:
    """The sum of lengths^p."""
    return lengths.sum() if p == 1 else ((lengths + SMALL).pow(p) - SMALL**p).sum()


def frequency_sum(firing_rates: Float[Tensor, " n_latents"], rows: int, scale: float) -> Float[Tensor, ""]:
    """The sum of w (1 + w / scale) over firing rates w, estimated from a batch without bias.

    The square of a rate measured on n rows is on average w^2 + w (1 - w) / n; w (1 - w) / (n - 1), of which the mean is
    that surplus, is subtracted.

    Source: Smith et al., Negative Results for Sparse Autoencoders on Downstream Tasks, 2025.
    """
    w = firing_rates
    squares = w * w - w * (1 - w) / max(1, rows - 1)
    return (w + squares / scale).sum()


class L0Controller(nn.Module):
    """Finds the factor on a penalty's coefficient with which `target` latents are on per token.

        error  = log(L0 / wanted), smoothed
        factor = exp(gain * (error + integral of error / horizon))

    `wanted` falls from START * target to the target over DESCENT of the run. In logarithms, so that neither the scale of
    the loss nor that of the penalty matters. Time is the share of the run. Everything is a tensor on the SAE's device,
    so that nothing waits for it, and a buffer, so that a resumed run steers on alike.
    """

    START: ClassVar[float] = 4.0
    DESCENT: ClassVar[float] = 0.4
    GAIN: ClassVar[float] = 1.5
    HORIZON: ClassVar[float] = 0.1
    SMOOTHING: ClassVar[float] = 0.7
    LIMIT: ClassVar[float] = math.log(1e4)
    UNKNOWN_LENGTH_STEP: ClassVar[float] = 1 / 5000

    integral: Float[Tensor, ""]
    error: Float[Tensor, ""]
    progress: Float[Tensor, ""]

    def __init__(self, target: float, device: torch.device) -> None:
        super().__init__()
        self.target = target
        for name in ("integral", "error", "progress"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64, device=device))

    @property
    def factor(self) -> Float[Tensor, ""]:
        return (self.GAIN * self.error + self.integral).clamp(-self.LIMIT, self.LIMIT).exp()

    @torch.no_grad()
    def observe(self, l0: Float[Tensor, ""], progress: float | None) -> None:
        """Take note of a batch's L0."""
        step = self.UNKNOWN_LENGTH_STEP
        now = self.progress + step if progress is None else torch.full_like(self.progress, progress)
        passed = (now - self.progress).clamp(0, 0.1)
        wanted = self.target * self.START ** (1 - now / self.DESCENT).clamp(0, 1)
        error = (l0.double().clamp_min(1e-3 * self.target) / wanted).log().clamp(-1, 1)
        self.error.lerp_(error, 1 - self.SMOOTHING)
        self.integral.add_(self.GAIN * error * passed / self.HORIZON).clamp_(-self.LIMIT, self.LIMIT)
        self.progress.copy_(now)

    def remarks(self) -> list[str]:
        return []
