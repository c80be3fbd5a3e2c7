"""Logit lens: the tokens that a latent promotes and suppresses if its direction reaches the output unchanged."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosem.arguments import Positive, checked
from monosem.errors import ConfigError
from monosem.models import SubjectModel
from monosem.sae import SAE


class TokenEffects(NamedTuple):
    """Tokens and their logit weights, strongest first."""

    promoted: list[tuple[str, float]]
    suppressed: list[tuple[str, float]]


@checked
@torch.no_grad()
def logit_lens(sae: SAE, model: SubjectModel, latents: Sequence[int], n_tokens: Positive = 8) -> list[TokenEffects]:
    """For each latent, the tokens with the highest and lowest logit weights.

    A latent's decoder row in raw units (`sae.decoder_directions`) is multiplied by the gain of the final norm (and
    centred before, if the norm is one that centres) and by the unembedding; weights are given relative to their mean
    over the vocabulary. The norm's division by the residual's own size is left out, and so is a soft cap of the logits.

    Source: nostalgebraist, Interpreting GPT: the logit lens, 2020; Bloom & Lin, 2024, for decoder rows.

    Raises:
        ConfigError: the model has no output embeddings or no tokenizer, or the SAE writes another width.
    """
    logits = logit_weights(sae, model, latents)
    if model.tokenizer is None:
        raise ConfigError(f"{model.name} has no tokenizer to name tokens with: load_model(module, tokenizer=...)")
    logits = logits - logits.mean(-1, keepdim=True)
    effects: list[TokenEffects] = []
    n_tokens = min(n_tokens, logits.shape[1])
    for row in logits:
        high, low = row.topk(n_tokens), row.topk(n_tokens, largest=False)
        effects.append(TokenEffects(*(_named(model, t.indices, t.values) for t in (high, low))))
    return effects


@torch.no_grad()
def logit_weights(sae: SAE, model: SubjectModel, latents: Sequence[int]) -> Float[Tensor, "latents vocabulary"]:
    """What one unit of each latent adds to every logit, as in `logit_lens`, not yet relative to the mean.

    Raises:
        ConfigError: the model has no output embeddings, or the SAE writes another width, or several places.
    """
    if len(sae.out_shape) > 1:
        raise ConfigError(f"a {sae.architecture} writes to several places: the logit lens needs one")
    W_U = _unembedding(model)
    if W_U.shape[1] != sae.d_out:
        raise ConfigError(f"the SAE writes width {sae.d_out}, the model's output embeddings read {W_U.shape[1]}")
    return direction_logits(sae.decoder_directions(list(latents)), model)


@torch.no_grad()
def direction_logits(directions: Float[Tensor, "m d_model"], model: SubjectModel) -> Float[Tensor, "m vocabulary"]:
    """What directions of the residual stream add to every logit, as `logit_weights`.

    Raises:
        ConfigError: the model has no output embeddings, or of another width.
    """
    W_U = _unembedding(model)
    rows = directions.to(W_U)
    if W_U.shape[1] != rows.shape[1]:
        raise ConfigError(f"directions have width {rows.shape[1]}, the model's output embeddings read {W_U.shape[1]}")
    norm = _final_norm(model)
    if norm is not None:
        gain, centres = norm_of(norm, rows.shape[1])
        rows = (rows - rows.mean(-1, keepdim=True) if centres else rows) * gain.to(rows)
    return rows @ W_U.T if model.logit_scale == 1 else rows @ W_U.T * model.logit_scale


def moments(weights: Float[Tensor, "m tokens"]) -> Float[Tensor, "m 4"]:
    """Mean, deviation, skew and kurtosis (3: a normal distribution) of each row."""
    mean = weights.mean(-1, keepdim=True)
    centred = weights - mean
    squares = centred.square()
    second, third, fourth = squares.mean(-1), (squares * centred).mean(-1), squares.square_().mean(-1)
    safe = second.clamp_min(1e-30)
    return torch.stack([mean[:, 0], second.sqrt(), third / safe**1.5, fourth / safe**2], 1)


def _unembedding(model: SubjectModel) -> Float[Tensor, "vocabulary d_model"]:
    find = getattr(model.module, "get_output_embeddings", None)
    unembedding = find() if find is not None else None
    if unembedding is None:
        raise ConfigError(f"{model.name} has no output embeddings: the logit lens needs a language model")
    return unembedding.weight


def _final_norm(model: SubjectModel) -> nn.Module | None:
    if model.family is None or "final_norm" not in model.hook_points:
        return None
    return model.module.get_submodule(model.hook_point("final_norm").path)


@torch.no_grad()
def norm_of(norm: nn.Module, d: int) -> tuple[Float[Tensor, " d"], bool]:
    """The gain of a LayerNorm or RMSNorm at variance 1, and whether it subtracts the mean, by what it makes of vectors.

    So no family has to be known: what multiplies is the weight in most, 1 + weight in Gemma, and where the norm was
    removed (`remove_layer_norm`), weight and epsilon are both huge.
    """
    norm = copy.deepcopy(norm).double()
    like = next(norm.parameters(), torch.zeros((), dtype=torch.float64))
    probe = torch.ones(d, device=like.device, dtype=like.dtype)
    probe[1::2] = -1
    probe = probe - probe.mean()
    probe = probe / probe.pow(2).mean().sqrt()
    out = (norm(probe[None]) - norm(-probe[None]))[0] / 2
    raised = norm(probe[None] + 4) - norm(probe[None])
    return out / probe, bool(raised.norm() < 1e-2 * out.norm())


def _named(model: SubjectModel, tokens: Tensor, weights: Tensor) -> list[tuple[str, float]]:
    return [(model.tokenizer.decode([t]), w) for t, w in zip(tokens.tolist(), weights.tolist(), strict=True)]
