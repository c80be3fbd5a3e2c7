"""TopK: exactly the k largest pre-activations of a token are on."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from monosem import kernels
from monosem.errors import ConfigError
from monosem.kernels import Selection
from monosem.sae.auxiliary import aux_k
from monosem.sae.base import SAE, TrainingContext, TrainingLoss


class TopKSAE(SAE):
    """codes = ReLU(top_k(W_enc (t(x) - b_dec) + b_enc)).

        loss = ||target - reconstruction||^2 / d  +  aux_coefficient * AuxK  +  multi_coefficient * loss at 4k

    AuxK keeps latents alive (see auxiliary.py). Multi-TopK also asks the 4k largest for a good reconstruction, so that
    the SAE can be used with another k.

    Source: Gao et al., Scaling and evaluating sparse autoencoders, 2024.
    """

    architecture: ClassVar[str] = "topk"
    good_for: ClassVar[str] = "an exact number of active latents per token; the robust first choice"

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        k: int = 32,
        k_aux: int | None = None,
        aux_coefficient: float = 1 / 32,
        multi_coefficient: float = 0.0,
        **common: Any,
    ) -> None:
        """Make an untrained SAE.

        Args:
            d_in: width of the activations.
            n_latents: size of the dictionary.
            k: latents on per token.
            k_aux: dead latents that AuxK lets speak per token; half of d_in if not given.
            aux_coefficient: weight of AuxK; 0 leaves it out.
            multi_coefficient: weight of Multi-TopK; 1/8 where it is wanted.
            **common: `transform, dtype, device, seed`, as in `SAE`.

        Raises:
            ConfigError: k is not between 1 and n_latents.
        """
        super().__init__(d_in, n_latents, **common)
        if not 1 <= k <= n_latents:
            raise ConfigError(f"k must be between 1 and n_latents = {n_latents}, got {k}")
        self.k = k
        self.k_aux = max(1, d_in // 2) if k_aux is None else k_aux
        self.aux_coefficient = aux_coefficient
        self.multi_coefficient = multi_coefficient

    @property
    def settings(self) -> dict[str, Any]:
        names = ("k", "k_aux", "aux_coefficient", "multi_coefficient")
        return {name: getattr(self, name) for name in names}

    def select(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        return kernels.top_k(x, self.W_enc, self.b_enc, self.k)

    def select_in_training(
        self, x: Float[Tensor, "rows d_in"], k: int, context: TrainingContext
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        """As `select`, for a training step."""
        return kernels.top_k(x, self.W_enc, self.b_enc, k, screen=context.screen)

    def reconstruct(
        self, activations: Float[Tensor, " entries"], selection: Selection, target: Float[Tensor, "rows d_out"]
    ) -> tuple[Float[Tensor, "rows d_out"], Float[Tensor, ""]]:
        """The reconstruction in transformed units, and its loss."""
        reconstruction = kernels.decode(activations, self.W_dec, selection) + self.b_dec
        return reconstruction, (target - reconstruction).pow(2).mean()

    def training_loss(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> TrainingLoss:
        centred = x - self.b_dec.detach()

        def activate(k: int) -> tuple[Float[Tensor, " entries"], Selection]:
            values, selection = self.select_in_training(centred, k, context)
            return kernels.encode(centred, self.W_enc, self.b_enc, self.b_dec, selection, values).relu(), selection

        activations, selection = activate(self.k)
        reconstruction, loss = self.reconstruct(activations, selection, target)
        terms = {"mse": (target - reconstruction.detach()).pow(2).mean()}
        if self.multi_coefficient:
            _, terms["multi"] = self.reconstruct(*activate(min(4 * self.k, self.n_latents)), target)
            loss = loss + self.multi_coefficient * terms["multi"]
        if self.aux_coefficient and context.dead is not None:
            terms["aux"] = aux_k(self, centred, target - reconstruction, context.dead, self.k_aux)
            loss = loss + self.aux_coefficient * terms["aux"]
        fired = torch.zeros(self.n_latents, dtype=torch.int64, device=x.device)
        fired.index_add_(0, selection.indices, (activations.detach() > 0).long())
        return TrainingLoss(loss, reconstruction.detach(), fired, terms)
