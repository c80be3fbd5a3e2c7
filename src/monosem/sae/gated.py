"""Gated: one half of the encoder says whether a latent is on, the other how strongly."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosem import kernels
from monosem.arguments import checked
from monosem.kernels import Selection
from monosem.sae.base import TrainingContext
from monosem.sae.threshold import Entries, ThresholdSAE


class GatedSAE(ThresholdSAE):
    """codes = [gate > 0] ReLU(magnitude), from one matmul m = W_enc (t(x) - b_dec).

        gate      = m + b_enc
        magnitude = exp(r_mag) m + b_mag
        loss = ||target - reconstruction||^2 / d  +  coefficient * sum_i ReLU(gate_i)
               + ||target - (ReLU(gate) W_dec* + b_dec*)||^2 / d

    The penalty acts on gates alone and so does not shrink magnitudes; the last term teaches gates, which have no other
    gradient, with a decoder (*) that does not learn from it. Where a gate is shut, all gradients are 0. Decoder rows
    are kept at norm 1: were they free, they would shrink under the penalty, and magnitudes, which it does not see, make
    up for it. Magnitudes start with the bias of the gates, as ReLU.

    Source: Rajamanoharan et al., Improving Dictionary Learning with Gated Sparse Autoencoders, 2024.
    """

    architecture: ClassVar[str] = "gated"
    good_for: ClassVar[str] = "an L1 penalty without its shrinkage: better reconstruction than relu at the same L0"
    unit_norm_decoder = True

    @checked
    def __init__(self, d_in: int, n_latents: int, **settings: Any) -> None:
        super().__init__(d_in, n_latents, **settings)
        self.r_mag = nn.Parameter(torch.zeros_like(self.b_enc))
        self.b_mag = nn.Parameter(torch.zeros_like(self.b_enc))

    @property
    def coefficient(self) -> float:
        return 0.2 / self.d_in**0.5 if self.given_coefficient is None else self.given_coefficient

    def add_to_pre_activations(self, by: Float[Tensor, " n_latents"]) -> None:
        super().add_to_pre_activations(by)
        self.b_mag.add_(self.r_mag.exp() * by)

    def magnitude(self, entries: Entries) -> Tensor:
        """ReLU of the magnitudes, open gates or not."""
        products = entries.pre - entries.spread(self.b_enc)
        return (entries.spread(self.r_mag.exp()) * products + entries.spread(self.b_mag)).relu()

    def activation(self, entries: Entries) -> Tensor:
        return torch.where(entries.pre > 0, self.magnitude(entries), 0)

    def activate(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        values, selection = self.select(x.detach())
        pre = kernels.encode(x, self.W_enc, self.b_enc, None, selection, values)
        return self.activation(Entries(pre, selection, len(x))), selection

    def penalty(self, entries: Entries, activations: Tensor, context: TrainingContext) -> Float[Tensor, ""]:
        return entries.a_row(entries.sums(entries.pre.relu()))

    def more_terms(
        self, entries: Entries, target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> dict[str, Tensor]:
        W_dec, b_dec = self.W_dec.detach(), self.b_dec.detach()
        name = "gate_mse" if context.cost is None else "gate_cost"
        return {name: entries.squared_error(entries.pre.relu(), W_dec, b_dec, target, context)[0]}

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"] | None = None) -> None:
        super().initialise(x, target)
        self.b_mag.copy_(self.b_enc)
