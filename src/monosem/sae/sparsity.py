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

        error  = log(L0 / target), smoothed
        factor = exp(gain * (error + slope * foresight + integral of error / horizon))

    In logarithms, so that neither the scale of the loss nor that of the penalty matters. Time is the share of the run.
    Everything is a tensor on the SAE's device: nothing waits for it; and a buffer: a resumed run steers on alike.
    """

    GAIN: ClassVar[float] = 2.0
    HORIZON: ClassVar[float] = 0.05
    FORESIGHT: ClassVar[float] = 0.02
    SMOOTHING: ClassVar[float] = 0.8
    LIMIT: ClassVar[float] = math.log(1e4)
    UNKNOWN_LENGTH_STEP: ClassVar[float] = 1 / 5000

    integral: Float[Tensor, ""]
    error: Float[Tensor, ""]
    slope: Float[Tensor, ""]
    progress: Float[Tensor, ""]

    def __init__(self, target: float, device: torch.device) -> None:
        super().__init__()
        self.target = target
        for name in ("integral", "error", "slope", "progress"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64, device=device))

    @property
    def factor(self) -> Float[Tensor, ""]:
        log = self.GAIN * (self.error + self.FORESIGHT * self.slope) + self.integral
        return log.clamp(-self.LIMIT, self.LIMIT).exp()

    @torch.no_grad()
    def observe(self, l0: Float[Tensor, ""], progress: float | None) -> None:
        """Take note of a batch's L0."""
        dt = self.UNKNOWN_LENGTH_STEP if progress is None else (progress - self.progress).clamp_min(1e-9)
        now = (l0.double().clamp_min(1e-3 * self.target) / self.target).log().clamp(-1.5, 1.5)
        error = self.SMOOTHING * self.error + (1 - self.SMOOTHING) * now
        self.slope.copy_(((error - self.error) / dt).clamp(-20, 20))
        self.error.copy_(error)
        self.integral.add_(self.GAIN * error * dt / self.HORIZON).clamp_(-self.LIMIT, self.LIMIT)
        if progress is not None:
            self.progress.fill_(progress)

    def remarks(self) -> list[str]:
        return []
