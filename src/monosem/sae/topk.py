"""TopK: exactly the k largest pre-activations of a token are on."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from monosem import kernels
from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.kernels import Selection
from monosem.sae.base import SAE, TrainingContext, TrainingLoss


class TopKSAE(SAE):
    """codes = ReLU(top_k(W_enc (t(x) - b_dec) + b_enc)).

        loss = ||target - reconstruction||^2 / d  +  multi_coefficient * loss at 4k

    Multi-TopK (multi_coefficient > 0) also asks the 4k largest for a good reconstruction, so that the SAE can be used
    with another k. AuxK, which keeps latents alive, belongs to training (`TrainingConfig.revival`).

    Source: Gao et al., Scaling and evaluating sparse autoencoders, 2024.
    """

    architecture: ClassVar[str] = "topk"
    good_for: ClassVar[str] = "an exact number of active latents per token; the robust first choice"
    latents_compete: ClassVar[bool] = True

    @checked
    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        k: int = 32,
        multi_coefficient: float = 0.0,
        **common: Any,
    ) -> None:
        """Make an untrained SAE.

        Args:
            d_in: width of the activations.
            n_latents: size of the dictionary.
            k: latents on per token.
            multi_coefficient: weight of Multi-TopK; 1/8 where it is wanted.
            **common: `d_out, transform, dtype, device, seed`, as in `SAE`.

        Raises:
            ConfigError: k is not between 1 and n_latents.
        """
        super().__init__(d_in, n_latents, **common)
        if not 1 <= k <= n_latents:
            raise ConfigError(f"k must be between 1 and n_latents = {n_latents}, got {k}")
        self.k = k
        self.multi_coefficient = multi_coefficient

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "multi_coefficient": self.multi_coefficient}

    def select(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        return kernels.top_k(x, self.W_enc, self.b_enc, self.k)

    def select_in_training(
        self, x: Float[Tensor, "rows d_in"], k: int, context: TrainingContext
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        """As `select`, for a training step."""
        return kernels.top_k(x, self.W_enc, self.b_enc, k, screen=context.screen)

    def activate_in_training(
        self, x: Float[Tensor, "rows d_in"], k: int, context: TrainingContext
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        """Selected latents and their activations, with the parameters' gradients, for detached inputs."""
        values, selection = self.select_in_training(x, k, context)
        return self.pre_activations(x, values, selection).relu(), selection

    def reconstruction_loss(
        self,
        activations: Float[Tensor, " entries"],
        selection: Selection,
        target: Float[Tensor, "rows d_out"],
        context: TrainingContext,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows d_out"]]:
        """What the error costs, and what is left of the target, detached."""
        return kernels.squared_error(activations, self.W_dec, self.b_dec, selection, target, context.cost)

    def training_loss(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> TrainingLoss:
        centred = self.centred(x).detach()

        activations, selection = self.activate_in_training(centred, self.k, context)
        loss, residual = self.reconstruction_loss(activations, selection, target, context)
        terms = {"mse": kernels.mean_square(residual)}
        if self.multi_coefficient:
            wider = self.activate_in_training(centred, min(4 * self.k, self.n_latents), context)
            terms["multi"], _ = self.reconstruction_loss(*wider, target, context)
            loss = loss + self.multi_coefficient * terms["multi"]
        return TrainingLoss(loss, residual, self.count_fired(activations, selection), terms)
