"""Near misses: the latents that were off, but closest to being on."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem import kernels
from monosem.codes import SparseCodes
from monosem.sae import SAE, Crosscoder, CrossLayerTranscoder, ThresholdSAE


@torch.no_grad()
def near_misses(
    sae: SAE, x: Float[Tensor, "rows d_in"], codes: SparseCodes, m: int
) -> tuple[Float[Tensor, "rows m"], Int[Tensor, "rows m"]]:
    """For every row the pre-activations of the m latents that are off and nearest to being on, nearest first.

    For TopK these are ranks k+1 to k+m, for others the latents just under the threshold. Where fewer are off, -inf and
    -1 fill up.

    Args:
        sae: the SAE.
        x: raw activations, (rows, *sae.in_shape).
        codes: what `sae.encode(x)` has given.
        m: how many.
    """
    inputs = sae.centred(sae.transform(sae.rows_of(x)[1]))
    most = int(codes.offsets.diff().max()) if codes.n_rows else 0
    values, indices = _largest(sae, inputs, min(most + m, sae.n_latents))
    rows = torch.arange(codes.n_rows, device=x.device)[:, None]
    on = codes.values > 0
    keys, _ = (codes.rows() * sae.n_latents + codes.indices)[on].sort()
    wanted = rows * sae.n_latents + indices
    at = torch.searchsorted(keys, wanted).clamp_max(max(0, keys.numel() - 1))
    off = (keys[at] != wanted) if keys.numel() else torch.ones_like(wanted, dtype=torch.bool)
    best = values.masked_fill(~off, -torch.inf).topk(min(m, values.shape[1]), dim=-1)
    latents = indices.gather(1, best.indices)
    values = best.values
    if isinstance(sae, Crosscoder):
        values = values / sae.sizes()[latents]
    if isinstance(sae, ThresholdSAE):
        values = values + (sae.limits if sae.limits.ndim == 0 else sae.limits[latents])
    return values, latents.masked_fill(best.values.isinf(), -1)


def _largest(sae: SAE, inputs: Tensor, n: int) -> tuple[Float[Tensor, "rows n"], Int[Tensor, "rows n"]]:
    """The largest pre-activations, in the unit in which latents are on: less their limits, if each has one of its own,
    and in a crosscoder times their sizes.
    """
    if not isinstance(sae, CrossLayerTranscoder):
        if isinstance(sae, ThresholdSAE):
            return _top(inputs, sae.W_enc, sae.bias - sae.limits, n)
        sizes = sae.sizes() if isinstance(sae, Crosscoder) else None
        W, b = (sae.W_enc, sae.b_enc) if sizes is None else (sae.W_enc * sizes[:, None], sae.b_enc * sizes)
        return _top(inputs, W, b, n)
    each = sae.latents_per_layer
    found = [
        _top(x, sae.encoder_of(layer), sae.b_enc[layer * each : (layer + 1) * each], min(n, each))
        for layer, x in enumerate(inputs.unflatten(1, sae.in_shape).unbind(1))
    ]
    best = torch.cat([values for values, _ in found], 1).topk(n, dim=-1)
    numbers = torch.cat([indices + layer * each for layer, (_, indices) in enumerate(found)], 1)
    return best.values, numbers.gather(1, best.indices)


def _top(inputs: Tensor, W: Tensor, b: Tensor, n: int) -> tuple[Tensor, Tensor]:
    values, selection = kernels.top_k(inputs.contiguous(), W, b, n)
    return values.reshape(len(inputs), n), selection.indices.reshape(len(inputs), n).long()
