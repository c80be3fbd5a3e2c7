"""TopK: exactly the k largest pre-activations of a token are on."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem import kernels
from monosem.errors import ConfigError
from monosem.kernels import Selection
from monosem.sae.base import SAE, TrainingContext, TrainingLoss


class TopKSAE(SAE):
    """codes = ReLU(top_k(W_enc (t(x) - b_dec) + b_enc)).

        loss = ||target - reconstruction||^2 / d  +  aux_coefficient * AuxK

    AuxK keeps latents alive: the `k_aux` strongest ReLU'd pre-activations of dead latents decode, without b_dec, to the
    detached residual; its squared error is divided by the residual's energy.

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
        **common: Any,
    ) -> None:
        """Make an untrained SAE.

        Args:
            d_in: width of the activations.
            n_latents: size of the dictionary.
            k: latents on per token.
            k_aux: dead latents that AuxK lets speak per token; half of d_in if not given.
            aux_coefficient: weight of AuxK; 0 leaves it out.
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

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "k_aux": self.k_aux, "aux_coefficient": self.aux_coefficient}

    def select(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        return kernels.top_k(x, self.W_enc, self.b_enc, self.k)

    def training_loss(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> TrainingLoss:
        centred = x - self.b_dec.detach()
        values, selection = self.select(centred)
        pre = kernels.encode(centred, self.W_enc, self.b_enc, self.b_dec, selection, values)
        activations = pre.relu()
        reconstruction = kernels.decode(activations, self.W_dec, selection) + self.b_dec
        residual = target - reconstruction
        terms = {"mse": residual.pow(2).mean()}
        loss = terms["mse"]
        if self.aux_coefficient and context.dead is not None:
            dead = context.dead.nonzero()[:, 0]
            terms["aux"] = aux_k(self, centred, residual.detach(), dead, self.k_aux)
            loss = loss + self.aux_coefficient * terms["aux"]
        fired = torch.zeros(self.n_latents, dtype=torch.int64, device=x.device)
        fired.index_add_(0, selection.indices, (activations.detach() > 0).long())
        return TrainingLoss(loss, reconstruction.detach(), fired, terms)


def aux_k(
    sae: SAE,
    centred: Float[Tensor, "rows d_in"],
    residual: Float[Tensor, "rows d_out"],
    dead: Int[Tensor, " n_dead"],
    k_aux: int,
) -> Float[Tensor, ""]:
    """How badly the dead latents explain the residual: squared error over the residual's energy.

    Works on the compacted dictionary of dead latents, densely: k_aux of them are on, which is a large share.
    """
    if not dead.numel():
        return residual.new_zeros(())
    pre = centred @ sae.W_enc[dead].T + sae.b_enc[dead]
    if k_aux < dead.numel():
        values, indices = pre.topk(k_aux, dim=-1, sorted=False)
        pre = torch.zeros_like(pre).scatter(-1, indices, values)
    error = residual - pre.relu() @ sae.W_dec[dead]
    return error.pow(2).sum() / residual.pow(2).sum().clamp_min(torch.finfo(residual.dtype).tiny)
