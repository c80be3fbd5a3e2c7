"""The dense truth: every function makes the whole (rows, n_latents) tensor. For tests; never called in earnest."""

import torch
from jaxtyping import Float
from torch import Tensor


def pre_activations(
    x: Float[Tensor, "rows d_in"],
    W_enc: Float[Tensor, "n_latents d_in"],
    b_enc: Float[Tensor, " n_latents"],
    b_dec: Float[Tensor, " d_in"] | None = None,
) -> Float[Tensor, "rows n_latents"]:
    return (x if b_dec is None else x - b_dec) @ W_enc.T + b_enc


def keep_top_k(pre: Float[Tensor, "rows n_latents"], k: int) -> Float[Tensor, "rows n_latents"]:
    """All but the k largest of each row set to zero."""
    values, indices = pre.topk(k, dim=-1)
    return torch.zeros_like(pre).scatter(-1, indices, values)


def keep_above(pre: Float[Tensor, "rows n_latents"], threshold: float) -> Float[Tensor, "rows n_latents"]:
    """Entries at or below the threshold set to zero."""
    return torch.where(pre > threshold, pre, torch.zeros_like(pre))


def decode(
    dense: Float[Tensor, "rows n_latents"], W_dec: Float[Tensor, "n_latents d_out"]
) -> Float[Tensor, "rows d_out"]:
    return dense @ W_dec
