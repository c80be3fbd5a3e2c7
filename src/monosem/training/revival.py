"""What brings dead latents back, for any architecture. Works on the compacted dictionary of dead latents alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from monosem import kernels
from monosem.sae import SAE


class RevivalConfig(BaseModel):
    """How to keep latents alive."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["aux_k", "none"] = "aux_k"
    """aux_k: the strongest dead latents explain what the live ones leave (Gao et al., 2024). none: nothing."""
    coefficient: float = Field(default=1 / 32, ge=0)
    """Weight of its loss."""
    k_aux: int | None = Field(default=None, ge=1)
    """aux_k: dead latents that speak per token; half of the activations' width if not given."""


@dataclass(frozen=True)
class DeadLatents:
    """The dead part of a dictionary, with gradients of its own."""

    sae: SAE
    latents: Int[Tensor, " dead"]
    W_enc: Float[Tensor, "dead d_in"]
    b_enc: Float[Tensor, " dead"]
    W_dec: Float[Tensor, "dead d_out"]

    @staticmethod
    def of(sae: SAE, dead: Bool[Tensor, " n_latents"]) -> DeadLatents | None:
        """None where no latent is dead."""
        latents = dead.nonzero()[:, 0]
        if not latents.numel():
            return None
        return DeadLatents(sae, latents, *(part.requires_grad_() for part in sae.part(latents)))

    def backward(self, loss: Float[Tensor, ""]) -> None:
        """Add the gradient of a loss to the gradients of the SAE."""
        loss.backward()
        self.sae.add_to_gradients(self.latents, self.W_enc.grad, self.b_enc.grad, self.W_dec.grad)


def aux_k(
    dead: DeadLatents, centred: Float[Tensor, "rows d_in"], residual: Float[Tensor, "rows d_out"], k_aux: int | None
) -> Float[Tensor, ""]:
    """How badly dead latents explain the residual: squared error over the residual's energy.

    The `k_aux` strongest ReLU'd pre-activations of dead latents decode, without b_dec, to the residual.

    Source: Gao et al., Scaling and evaluating sparse autoencoders, 2024.
    """
    sae = dead.sae
    k = min(k_aux or max(1, residual.shape[1] // 2), len(dead.latents))
    values, selection = kernels.top_k(centred, dead.W_enc, dead.b_enc, k)
    b_dec = sae.b_dec if sae.subtract_b_dec else None
    activations = kernels.encode(centred, dead.W_enc, dead.b_enc, b_dec, selection, values).relu()
    nothing = residual.new_zeros(residual.shape[1])
    error, _ = kernels.squared_error(activations, dead.W_dec, nothing, selection, residual)
    return error / residual.pow(2).mean().clamp_min(torch.finfo(residual.dtype).tiny)


def add_revival(
    sae: SAE,
    config: RevivalConfig,
    dead: Bool[Tensor, " n_latents"],
    centred: Float[Tensor, "rows d_in"],
    residual: Float[Tensor, "rows d_out"],
) -> dict[str, Float[Tensor, ""]]:
    """Add the gradient of the configured loss to those of the SAE; returns the loss's terms, for the log."""
    if config.method == "none" or not config.coefficient:
        return {}
    some = DeadLatents.of(sae, dead)
    if some is None:
        return {"aux": residual.new_zeros(())}
    loss = aux_k(some, centred, residual, config.k_aux)
    some.backward(config.coefficient * loss)
    return {"aux": loss.detach()}
