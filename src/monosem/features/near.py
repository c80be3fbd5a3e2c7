"""Near misses: the latents that were off, but closest to being on."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem import kernels
from monosem.codes import SparseCodes
from monosem.sae import SAE


@torch.no_grad()
def near_misses(
    sae: SAE, x: Float[Tensor, "rows d_in"], codes: SparseCodes, m: int
) -> tuple[Float[Tensor, "rows m"], Int[Tensor, "rows m"]]:
    """For every row the m largest pre-activations among the latents that are off, largest first.

    For TopK these are ranks k+1 to k+m, for others the latents just under the threshold. Where fewer are off, -inf and
    -1 fill up.

    Args:
        sae: the SAE.
        x: raw activations.
        codes: what `sae.encode(x)` has given.
        m: how many.
    """
    inputs = sae.transform(x.to(sae.W_enc.dtype))
    if getattr(sae, "subtract_b_dec", True):
        inputs = inputs - sae.b_dec
    most = int(codes.offsets.diff().max()) if codes.n_rows else 0
    n = min(most + m, sae.n_latents)
    values, selection = kernels.top_k(inputs, sae.W_enc, sae.b_enc, n)
    values = values.reshape(codes.n_rows, n)
    indices = selection.indices.reshape(values.shape).long()
    rows = torch.arange(codes.n_rows, device=x.device)[:, None]
    on = codes.values > 0
    keys, _ = (codes.rows() * sae.n_latents + codes.indices)[on].sort()
    wanted = rows * sae.n_latents + indices
    at = torch.searchsorted(keys, wanted).clamp_max(max(0, keys.numel() - 1))
    off = (keys[at] != wanted) if keys.numel() else torch.ones_like(wanted, dtype=torch.bool)
    best = values.masked_fill(~off, -torch.inf).topk(min(m, values.shape[1]), dim=-1)
    return best.values, indices.gather(1, best.indices).masked_fill(best.values.isinf(), -1)
