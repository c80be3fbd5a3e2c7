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


def keep_batch_top_k(pre: Float[Tensor, "rows n_latents"], total: int) -> Float[Tensor, "rows n_latents"]:
    """All but the `total` largest of the whole batch set to zero."""
    values, places = pre.flatten().topk(total)
    return torch.zeros_like(pre).flatten().scatter(0, places, values).reshape(pre.shape)


def adam(
    parameter: Float[Tensor, "n d"],
    grads: list[Float[Tensor, "n d"]],
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    unit_rows: bool,
) -> Float[Tensor, "n d"]:
    """The parameter after one step of Adam per gradient (Kingma & Ba, 2015).

    With `unit_rows`, what would change the norm of a row is taken from its gradient, and rows are rescaled to norm 1.
    """
    mean, square = torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step, given in enumerate(grads, start=1):
        grad = given - (given * parameter).sum(-1, keepdim=True) * parameter if unit_rows else given
        mean = beta1 * mean + (1 - beta1) * grad
        square = beta2 * square + (1 - beta2) * grad**2
        update = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + eps)
        parameter = parameter - lr * update
        if unit_rows:
            parameter = parameter / parameter.pow(2).sum(-1, keepdim=True).sqrt()
    return parameter
