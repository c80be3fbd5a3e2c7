"""ReLU with an L1 penalty: the classic."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from monosem import kernels
from monosem.errors import ConfigError
from monosem.kernels import Selection
from monosem.sae.base import SAE, TrainingContext, TrainingLoss, row_norms


class ReLUSAE(SAE):
    """codes = ReLU(W_enc (t(x) - b_dec) + b_enc).

        loss = ||target - reconstruction||^2 / d  +  l1_coefficient * sum_i codes_i ||W_dec_i||

    A coefficient c shrinks an isolated feature by c d / 2.

    Source: Bricken et al., Towards Monosemanticity, 2023; the penalty by decoder norm: Conerly et al., 2024.
    """

    architecture: ClassVar[str] = "relu"
    good_for: ClassVar[str] = "the classic L1 baseline; the number of active latents follows from l1_coefficient"
    unit_norm_decoder: ClassVar[bool] = False

    density: Float[Tensor, ""]

    def __init__(self, d_in: int, n_latents: int, *, l1_coefficient: float | None = None, **common: Any) -> None:
        """Make an untrained SAE.

        Args:
            d_in: width of the activations.
            n_latents: size of the dictionary.
            l1_coefficient: weight of the penalty; 0.2 / sqrt(d_in) if not given, so that the shrinkage of a feature is
                the same share of an activation's norm at every width.
            **common: `d_out, transform, dtype, device, seed`, as in `SAE`.

        Raises:
            ConfigError: l1_coefficient is negative.
        """
        super().__init__(d_in, n_latents, **common)
        self.l1_coefficient = 0.2 / d_in**0.5 if l1_coefficient is None else l1_coefficient
        if self.l1_coefficient < 0:
            raise ConfigError(f"l1_coefficient must not be negative, got {l1_coefficient}")
        self.register_buffer("density", torch.ones((), dtype=torch.float32, device=self.W_enc.device))

    @property
    def settings(self) -> dict[str, Any]:
        return {"l1_coefficient": self.l1_coefficient}

    def select(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        return kernels.above(x, self.W_enc, self.b_enc, x.new_zeros(()))

    def training_loss(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> TrainingLoss:
        """Dense while many latents are on, sparse afterwards; `density` decides, and is saved with checkpoints."""
        dense = kernels.dense_is_faster(self.density.item())
        norms = row_norms(self.W_dec)[:, 0]
        if dense:
            activations = torch.relu(self.centred(x) @ self.W_enc.T + self.b_enc)
            error = target - (activations @ self.W_dec + self.b_dec)
            mse, residual = error.pow(2).mean(), error.detach()
            penalty = (activations.sum(0) * norms).sum() / len(x)
            fired = (activations.detach() > 0).sum(0)
        else:
            centred = self.centred(x).detach()
            values, selection = self.select(centred)
            activations = self.pre_activations(centred, values, selection).relu()
            mse, residual = kernels.squared_error(activations, self.W_dec, self.b_dec, selection, target)
            penalty = (activations * norms[selection.indices]).sum() / len(x)
            fired = self.count_fired(activations, selection)
        share_on = fired.sum() / (len(x) * self.n_latents)
        self.density.mul_(0.9).add_(share_on, alpha=0.1)
        terms = {"mse": mse, "l1": penalty}
        return TrainingLoss(mse + self.l1_coefficient * penalty, residual, fired, terms)
