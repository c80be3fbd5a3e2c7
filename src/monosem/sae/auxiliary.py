"""What keeps latents alive, for any architecture."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem import kernels
from monosem.sae.base import SAE


def aux_k(
    sae: SAE,
    centred: Float[Tensor, "rows d_in"],
    residual: Float[Tensor, "rows d_out"],
    dead: Bool[Tensor, " n_latents"],
    k_aux: int,
) -> Float[Tensor, ""]:
    """How badly dead latents explain the residual: squared error over the residual's energy; 0 while none is dead.

    The `k_aux` strongest ReLU'd pre-activations of dead latents decode, without b_dec, to the detached residual. Works
    on the compacted dictionary of dead latents.

    Source: Gao et al., Scaling and evaluating sparse autoencoders, 2024.
    """
    chosen = dead.nonzero()[:, 0]
    if not chosen.numel():
        return residual.new_zeros(())
    W_enc, W_dec = sae.W_enc.index_select(0, chosen), sae.W_dec.index_select(0, chosen)
    b_enc, k = sae.b_enc.index_select(0, chosen), min(k_aux, chosen.numel())
    values, selection = kernels.top_k(centred, W_enc, b_enc, k)
    activations = kernels.encode(centred, W_enc, b_enc, sae.b_dec, selection, values).relu()
    residual = residual.detach()
    error = residual - kernels.decode(activations, W_dec, selection)
    return error.pow(2).sum() / residual.pow(2).sum().clamp_min(torch.finfo(residual.dtype).tiny)
