"""What keeps latents few: penalties, and the controller that finds the coefficient for a wanted L0."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosem import kernels


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


def powers(lengths: Tensor, p: float) -> Tensor:
    """lengths^p."""
    return lengths if p == 1 else (lengths + SMALL).pow(p) - SMALL**p


def frequency_sum(firing_rates: Float[Tensor, " n_latents"], rows: int, scale: float) -> Float[Tensor, ""]:
    """The sum of w (1 + w / scale) over firing rates w, estimated from a batch without bias.

    The square of a rate measured on n rows is on average w^2 + w (1 - w) / n; w (1 - w) / (n - 1), of which the mean is
    that surplus, is subtracted.

    Source: Smith et al., Negative Results for Sparse Autoencoders on Downstream Tasks, 2025.
    """
    w = firing_rates
    squares = w * w - w * (1 - w) / max(1, rows - 1)
    return kernels.over_latents((w + squares / scale).sum())


class L0Controller(nn.Module):
    """Finds the factor on a penalty's coefficient with which `target` latents are on per token.

        error  = log(L0 / wanted), smoothed
        factor = exp(gain * (error + integral of error / horizon))

    `wanted` goes from the run's first L0 to the target over DESCENT of the run. In logarithms, so that neither the
    scale of the loss nor that of the penalty matters. Time is the share of the run. From TRIMMED_FROM on, as the
    learning rate falls and the penalty loses its grip, what error is left also moves the limits themselves, all alike,
    by a small share of the mean activation. Everything is a tensor on the SAE's device, so that nothing waits for it,
    and a buffer, so that a resumed run steers on alike.
    """

    START: ClassVar[float] = 4.0
    """L0 at which a run should start, over the target: penalties press L0 down more readily than up."""
    DESCENT: ClassVar[float] = 0.4
    GAIN: ClassVar[float] = 1.5
    HORIZON: ClassVar[float] = 0.08
    TRIMMED_FROM: ClassVar[float] = 0.8
    TRIM: ClassVar[float] = 0.1
    SMOOTHING: ClassVar[float] = 0.7
    LIMIT: ClassVar[float] = math.log(1e4)
    UNKNOWN_LENGTH_STEP: ClassVar[float] = 1 / 5000
    TOLERANCE: ClassVar[float] = 0.05

    integral: Float[Tensor, ""]
    error: Float[Tensor, ""]
    trim: Float[Tensor, ""]
    """By how much to move the limits before the next batch."""
    first: Float[Tensor, ""]
    progress: Float[Tensor, ""]

    def __init__(self, target: float, device: torch.device) -> None:
        super().__init__()
        self.target = target
        for name, value in (("integral", 0.0), ("error", 0.0), ("trim", 0.0), ("first", 0.0)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64, device=device))
        self.register_buffer("progress", torch.tensor(math.inf, dtype=torch.float64, device=device))

    @property
    def factor(self) -> Float[Tensor, ""]:
        """On the coefficient of the next batch."""
        return (self.GAIN * self.error + self.integral).clamp(-self.LIMIT, self.LIMIT).exp()

    @torch.no_grad()
    def observe(self, l0: Float[Tensor, ""], mean_activation: Float[Tensor, ""], progress: float | None) -> None:
        """Take note of a batch's L0, and of the mean of its activations."""
        log_l0 = (l0.double().clamp_min(1e-3 * self.target) / self.target).log()
        if progress is None:
            now = (self.progress + self.UNKNOWN_LENGTH_STEP).nan_to_num(posinf=0.0)
        else:
            now = torch.full_like(self.progress, progress)
        self.first.copy_(torch.where(now < self.progress, log_l0, self.first))  # a new run
        passed = (now - self.progress).clamp(0, 0.1)
        error = (log_l0 - self.first * (1 - now / self.DESCENT).clamp_min(0)).clamp(-1, 1)
        self.error.lerp_(error, 1 - self.SMOOTHING)
        self.integral.add_(self.GAIN * error * passed / self.HORIZON).clamp_(-self.LIMIT, self.LIMIT)
        if progress is not None and progress >= self.TRIMMED_FROM:
            self.trim.copy_(self.TRIM * self.error * mean_activation)
        else:
            self.trim.zero_()
        self.progress.copy_(now)

    def remarks(self) -> list[str]:
        """In words, if L0 is not where it should be."""
        error, factor = self.error.item(), self.factor.log().item()
        if math.isinf(self.progress.item()) or abs(math.expm1(error)) <= self.TOLERANCE:
            return []
        if factor <= -self.LIMIT:
            why = "with all but no penalty no more latents are on; a larger dictionary or more tokens may help"
        elif factor >= self.LIMIT:
            why = f"{math.exp(self.LIMIT):,.0f} times the coefficient is not enough; give a larger one"
        else:
            why = "the run was too short to find the coefficient; train on more tokens, or in smaller batches"
        return [f"L0 is {self.target * math.exp(error):.4g} after training, not target_l0 = {self.target:g}: {why}"]
