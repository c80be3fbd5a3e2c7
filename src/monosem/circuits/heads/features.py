"""Heads described by features: those that each reads and writes by its weights, those that it writes on a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.circuits.heads.weights import attention_of, head_weights, n_heads, output_matrix
from monosem.errors import ConfigError
from monosem.interventions.base import joined_once
from monosem.models import SubjectModel
from monosem.sae import SAE

Strengths = list[tuple[int, float]]
"""Latents with a number each, the largest first."""


@dataclass(frozen=True)
class HeadFeatures:
    """The features that a head reads and writes by its weights.

    Each number is |W d| / (||W|| |d|), of 1 where the matrix does nothing but this, and about `chance` for a direction
    at random. Of what a head reads, only features of the stream before it count; of what it writes, those behind it.
    """

    layer: int
    head: int
    queries: Strengths
    """Features (decoder rows) that change what it looks for."""
    keys: Strengths
    """That change whether it is looked at."""
    values: Strengths
    """That change what it takes."""
    writes: Strengths
    """Features (encoder rows) that read what it writes."""
    chance: float
    """1 / sqrt(d_model)."""


def stream_layer(model: SubjectModel, sae: SAE, hook: str | None = None) -> tuple[float, str]:
    """Where in the pass an SAE of the residual stream stands, in layers: resid_post.2 at 3, resid_mid.2 at 2.5.

    Raises:
        ConfigError: it is of another place.
    """
    place = hook or sae.metadata.hook
    name = model.hook_point(place).name if place is not None else ""
    site, _, layer = name.rpartition(".")
    shift = {"resid_pre": 0.0, "resid_mid": 0.5, "resid_post": 1.0}.get(site)
    if shift is None or not sae.autoencodes:
        raise ConfigError(f"heads read and write the residual stream: give an SAE of resid_post.L, not of {place}")
    return int(layer) + shift, name


@torch.no_grad()
def head_features(
    model: SubjectModel, sae: SAE, layer: int, head: int, *, n: int = 10, hook: str | None = None
) -> HeadFeatures:
    """The features that a head reads and writes most, by weights alone.

    Args:
        model: a causal model of a known family.
        sae: an SAE of the residual stream. One that stands before the head says what it reads, one behind what it
            writes; the other lists are empty.
        layer: of the head.
        head: its number.
        n: of each list.
        hook: the SAE's hook point, if it does not know it.

    Raises:
        ConfigError: the SAE is of another place, or there is no such head.
        MismatchError: the SAE does not fit the model.
    """
    attention_of(model, layer)
    if not 0 <= head < n_heads(model):
        raise ConfigError(f"layer {layer} has heads 0 to {n_heads(model) - 1}, not {head}")
    at, place = stream_layer(model, sae, hook)
    joined_once(sae, model, place)
    weights = head_weights(model, layer)
    lists: dict[str, Strengths] = {"queries": [], "keys": [], "values": [], "writes": []}
    if at <= layer:
        rows = sae.decoder_directions()
        for name, matrix in (("queries", weights.W_Q), ("keys", weights.W_K), ("values", weights.W_V)):
            lists[name] = _largest(rows, matrix[head], n)
    else:
        lists["writes"] = _largest(sae.encoder_directions(), weights.W_O[head].T, n)
    return HeadFeatures(layer, head, **lists, chance=model.d_model**-0.5)


def _largest(rows: Float[Tensor, "latents d"], matrix: Float[Tensor, "d_head d"], n: int) -> Strengths:
    matrix = matrix.to(rows)
    scale = matrix.norm() * rows.norm(dim=1).clamp(min=1e-12)
    found = ((rows @ matrix.T).norm(dim=1) / scale).topk(min(n, len(rows)))
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


@torch.no_grad()
def written_features(
    model: SubjectModel, sae: SAE, inputs: Any, layer: int, head: int, position: int, *, n: int = 10
) -> Strengths:
    """What a head adds directly to the pre-activations of features at one position of a text, the largest first.

    What it writes meets each encoder row as it is; what later layers make of it does not count. For features that are
    on the number can be compared with their activation.

    Raises:
        ConfigError: the SAE stands before the head, or is of another place.
    """
    at, place = stream_layer(model, sae)
    if at <= layer:
        raise ConfigError(f"head {layer}.{head} writes behind {place}: give an SAE of resid_post.{layer} or later")
    tokens = model.tokens(inputs) if isinstance(inputs, str) else inputs
    z = model.capture(tokens, [f"attn_z.{layer}"])[f"attn_z.{layer}"][0, position]
    written = output_matrix(model, layer)[head] @ z.unflatten(-1, (n_heads(model), -1))[head]
    effects = sae.encoder_directions() @ written.to(sae.W_enc)
    order = effects.abs().topk(min(n, len(effects))).indices
    return list(zip(order.tolist(), effects[order].tolist(), strict=True))
