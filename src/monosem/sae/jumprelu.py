"""JumpReLU: every latent has a threshold of its own, which is learned."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.sae.base import TrainingContext
from monosem.sae.sparsity import frequency_sum
from monosem.sae.threshold import Entries, ThresholdSAE

Penalty = Literal["l0", "target_l0", "tanh", "frequency"]


class JumpReLUSAE(ThresholdSAE):
    """codes = z where z > threshold, else 0, with z = W_enc (t(x) - b_dec) + b_enc.

        loss = ||target - reconstruction||^2 / d  +  coefficient * penalty

        "l0"         sum_i w_i                    w_i: the share of rows on which latent i is on
        "target_l0"  (sum_i w_i / target_l0 - 1)^2
        "tanh"       sum_i tanh(4 codes_i ||W_dec_i||), a mean over rows
        "frequency"  sum_i w_i (1 + w_i / frequency_scale), the square without bias: always-on latents disappear

    A threshold moves codes and w by jumps; its gradient is estimated from the entries that lie within half a bandwidth
    of it, as if the jump were a ramp there:

        d code / d threshold = -threshold / bandwidth,   d w / d threshold = -1 / (bandwidth rows)

    Thresholds are learned as they are, kept at 0 or above. Selected are the entries above threshold - bandwidth / 2:
    those that are on, and the band.

    Source: Rajamanoharan et al., Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders,
    2024; tanh: Circuits Updates, January 2025; frequency: Smith et al., Negative Results for Sparse Autoencoders, 2025.
    """

    architecture: ClassVar[str] = "jumprelu"
    good_for: ClassVar[str] = "a threshold per latent, trained for L0 itself; no choice within a token or batch"
    unit_norm_decoder = True

    @checked
    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        penalty: Penalty = "l0",
        bandwidth: float = 0.05,
        frequency_scale: float = 0.01,
        **settings: Any,
    ) -> None:
        """Make an untrained SAE.

        Args:
            d_in: width of the activations.
            n_latents: size of the dictionary.
            penalty: what keeps latents few.
            bandwidth: width of the band around a threshold from which its gradient is estimated, in transformed units,
                where activations have norm sqrt(d): 0.05 is what the paper's 0.001 comes to at d = 2304.
            frequency_scale: firing rate at which "frequency" is twice "l0".
            **settings: `coefficient, target_l0, coefficient_warmup` as in `ThresholdSAE`; the default coefficient is 1
                for "target_l0", and else 1 / d_out, at which a latent pays where its activation is above 1, the root
                mean square of a transformed activation's element. `d_out, transform, dtype, device, seed` as in `SAE`.

        Raises:
            ConfigError: an unknown penalty, a value out of its range, or "target_l0" without a target.
        """
        super().__init__(d_in, n_latents, **settings)
        if penalty == "target_l0" and self.target_l0 is None:
            raise ConfigError("the penalty target_l0 needs to know it: give target_l0, the latents on per token")
        for name, size in (("bandwidth", bandwidth), ("frequency_scale", frequency_scale)):
            if not size > 0:
                raise ConfigError(f"{name} must be above 0, got {size}")
        self.penalty_kind: Penalty = penalty
        self.bandwidth, self.frequency_scale = bandwidth, frequency_scale
        self.threshold = nn.Parameter(torch.full_like(self.b_enc, bandwidth / 2))

    @property
    def settings(self) -> dict[str, Any]:
        own = {"penalty": self.penalty_kind, "bandwidth": self.bandwidth, "frequency_scale": self.frequency_scale}
        return {**own, **super().settings}

    @property
    def coefficient(self) -> float:
        if self.given_coefficient is not None:
            return self.given_coefficient
        return 1.0 if self.penalty_kind == "target_l0" else 1 / self.d_out

    def move_limits(self, by: Tensor | float) -> None:
        self.threshold.add_(by)

    @property
    def limits(self) -> Float[Tensor, " n_latents"]:
        return self.threshold.detach().clamp_min(0)

    @property
    def training_limits(self) -> Float[Tensor, " n_latents"]:
        return self.limits - self.bandwidth / 2

    def activation(self, entries: Entries) -> Tensor:
        with torch.no_grad():
            self.threshold.clamp_min_(0)
        return jump(entries.pre, entries.spread(self.threshold), self.bandwidth)

    def penalty(self, entries: Entries, activations: Tensor, context: TrainingContext) -> Float[Tensor, ""]:
        if self.penalty_kind == "tanh":
            return entries.a_row((4 * activations * entries.spread(self.decoder_norms)).tanh())
        on = step(entries.pre, entries.spread(self.threshold), self.bandwidth)
        if self.penalty_kind == "frequency":
            return frequency_sum(entries.shares(on), entries.rows, self.frequency_scale)
        l0 = entries.a_row(on)
        return l0 if self.target_l0 is None or self.penalty_kind == "l0" else (l0 / self.target_l0 - 1) ** 2


def jump(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Z where z > threshold, else 0, with the gradients of `JumpReLUSAE`."""
    return _Jump.apply(z, threshold, bandwidth)  # pyright: ignore


def step(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """1 where z > threshold, else 0, of which only the threshold learns."""
    return _Step.apply(z, threshold, bandwidth)  # pyright: ignore


def _within(z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    return (z - threshold).abs() < bandwidth / 2


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return torch.where(z > threshold, z, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        z, threshold = ctx.saved_tensors
        grad_z = torch.where(z > threshold, grads[0], 0)
        ramp = grads[0] * threshold * (-1 / ctx.bandwidth)
        return grad_z, torch.where(_within(z, threshold, ctx.bandwidth), ramp, 0), None


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, threshold)
        ctx.bandwidth = bandwidth
        return (z > threshold).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        z, threshold = ctx.saved_tensors
        ramp = torch.where(_within(z, threshold, ctx.bandwidth), grads[0] * (-1 / ctx.bandwidth), 0)
        return None, ramp, None
