"""What keeps latents alive, for any architecture."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

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
    on the compacted dictionary of dead latents, densely: of those a large share is on.

    Source: Gao et al., Scaling and evaluating sparse autoencoders, 2024.
    """
    chosen = dead.nonzero()[:, 0]
    if not chosen.numel():
        return residual.new_zeros(())
    W_enc, moved = sae.W_enc[chosen], sae.b_dec - sae.b_dec.detach()  # zero: brings b_dec its gradient cheaply
    pre = centred @ W_enc.T + (sae.b_enc[chosen] - W_enc.detach() @ moved)
    if k_aux < chosen.numel():
        values, indices = pre.topk(k_aux, dim=-1, sorted=False)
        pre = torch.zeros_like(pre).scatter(-1, indices, values)
    residual = residual.detach()
    error = residual - pre.relu() @ sae.W_dec[chosen]
    return error.pow(2).sum() / residual.pow(2).sum().clamp_min(torch.finfo(residual.dtype).tiny)
