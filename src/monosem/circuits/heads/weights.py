"""What attention heads are by their weights: the matrices of every head, composition and similarity of heads.

Found where `monosem.models.blocks` says that they stand. Matrices act on columns: `W_O[h] @ z` is what head h adds to
the stream. Norm gains are multiplied in; the division by a norm's scale,
which differs from token to token, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.errors import ConfigError
from monosem.models import SubjectModel
from monosem.models.blocks import block_module, block_norm, block_of, matrix, projections
from monosem.models.families import main_config


@dataclass(frozen=True)
class HeadWeights:
    """The matrices of the heads of one layer; queries share keys and values in groups."""

    W_Q: Float[Tensor, "heads d_head d_model"]
    W_K: Float[Tensor, "heads d_head d_model"]
    W_V: Float[Tensor, "heads d_head d_model"]
    W_O: Float[Tensor, "heads d_model d_head"]


def attention_of(model: SubjectModel, layer: int) -> Any:
    """The attention module of a layer.

    Raises:
        ConfigError: the model's family is not known, or it is no causal language model.
    """
    points = model.hook_points
    if f"attn_q.{layer}" not in points or not model.writes_text:
        mixed = "embed" in points and "attn_q.0" not in points
        raise ConfigError(
            f"heads are read in language models of a known family; {model.name} is {model.family or 'of none'}"
            + (", whose layers do not all have attention and keys of their own" if mixed else "")
            + (f" and has layers 0 to {model.n_layers - 1}" if "attn_q.0" in points else "")
        )
    return model.module.get_submodule(model.hook_point(f"attn_q.{layer}").path)


def n_heads(model: SubjectModel) -> int:
    """Query heads in each layer."""
    return main_config(model.module).num_attention_heads


@torch.no_grad()
def output_matrix(model: SubjectModel, layer: int) -> Float[Tensor, "heads d_model d_head"]:
    """What each head's result is multiplied by before it is added to the stream.

    Where a norm stands behind attention, its gain is multiplied in.
    """
    attention_of(model, layer)
    block = block_of(model)
    weight, _ = matrix(block_module(model, layer, block.output))
    if block.after_attention is not None:
        after = block_norm(model, layer, block.after_attention)
        weight = (weight - weight.mean(0) if after.centred else weight) * after.weight.to(weight)[:, None]
    return weight.unflatten(1, (n_heads(model), -1)).transpose(0, 1)


@torch.no_grad()
def head_weights(model: SubjectModel, layer: int) -> HeadWeights:
    """The matrices of all heads of a layer, with the gain of the norm before attention multiplied in.

    Raises:
        ConfigError: the model's family is not known, or it is no causal language model.
    """
    attention_of(model, layer)
    heads, block = n_heads(model), block_of(model)
    shared: int = getattr(main_config(model.module), "num_key_value_heads", None) or heads
    norm = block_norm(model, layer, block.attention_norm)
    parts = [norm.read_before(part) for part in projections(model, block, layer)]
    W_Q, W_K, W_V = (part.unflatten(0, (n, -1)) for part, n in zip(parts, (heads, shared, shared), strict=True))
    W_K, W_V = (part.repeat_interleave(heads // shared, dim=0) for part in (W_K, W_V))
    return HeadWeights(W_Q, W_K, W_V, output_matrix(model, layer))


@dataclass(frozen=True)
class Composition:
    """How strongly each head reads what each earlier one writes, and how alike heads are. Heads in order of layers."""

    heads: list[tuple[int, int]]
    """Layer and number of each."""
    query: Float[Tensor, "reader writer"]
    """||W_QK^T W_OV|| / (||W_QK|| ||W_OV||), Frobenius norms; 0 where the writer is not in an earlier layer."""
    key: Float[Tensor, "reader writer"]
    value: Float[Tensor, "reader writer"]
    chance: float
    """What two random matrices would have, about: 1 / sqrt(d_model)."""
    similarity_qk: Float[Tensor, "head head"]
    """Cosine of the heads' d_model x d_model matrices W_Q^T W_K; rotary positions are left out."""
    similarity_ov: Float[Tensor, "head head"]

    def strongest(self, kind: str, n: int = 10) -> list[tuple[tuple[int, int], tuple[int, int], float]]:
        """(reader, writer, score), of "query", "key" or "value" composition."""
        scores: Tensor = getattr(self, kind)
        top = scores.flatten().topk(min(n, scores.numel()))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        return [(self.heads[i // len(self.heads)], self.heads[i % len(self.heads)], value) for i, value in pairs]


@torch.no_grad()
def composition(model: SubjectModel) -> Composition:
    """Q-, K- and V-composition of every pair of heads, and their similarity, from weights alone.

    No d_model x d_model matrix is made: every norm is that of products of d_head x d_head ones.

    Source: Elhage et al., A Mathematical Framework for Transformer Circuits, 2021.

    Raises:
        ConfigError: the model's family is not known.
    """
    layers = [head_weights(model, layer) for layer in range(model.n_layers)]
    names = ("W_Q", "W_K", "W_V", "W_O")
    W_Q, W_K, W_V, W_O = (torch.cat([getattr(weights, name) for weights in layers]).float() for name in names)
    of = n_heads(model)
    heads = [(layer, head) for layer in range(model.n_layers) for head in range(of)]
    layer = torch.arange(len(heads)) // of
    norm_qk, norm_ov = _norm(W_Q.transpose(1, 2), W_K), _norm(W_O, W_V)
    values = W_V @ W_V.transpose(1, 2)
    grams = {"query": W_K @ W_K.transpose(1, 2), "key": W_Q @ W_Q.transpose(1, 2), "value": W_O.transpose(1, 2) @ W_O}
    reading = {"query": (W_Q, norm_qk), "key": (W_K, norm_qk), "value": (W_V, norm_ov)}
    found = {name: torch.zeros(len(heads), len(heads)) for name in reading}
    for name, (rows, norms) in reading.items():
        for reader in range(len(heads)):
            inner = rows[reader] @ W_O
            square = ((grams[name][reader] @ inner @ values) * inner).sum((1, 2))
            found[name][reader] = (square.clamp(min=0).sqrt() / (norms[reader] * norm_ov)).cpu()
        found[name] *= layer[:, None] > layer
    alike_qk = _cosines(W_Q, W_K, norm_qk)
    alike_ov = _cosines(W_O.transpose(1, 2), W_V, norm_ov)
    chance = W_Q.shape[-1] ** -0.5
    return Composition(heads, **found, chance=chance, similarity_qk=alike_qk, similarity_ov=alike_ov)


def _norm(left: Tensor, right: Tensor) -> Tensor:
    """Frobenius norms of left @ right, (n, d, d_head) by (n, d_head, d)."""
    gram = left.transpose(1, 2) @ left
    return torch.einsum("nab,nab->n", gram, right @ right.transpose(1, 2)).clamp(min=0).sqrt()


def _cosines(left: Tensor, right: Tensor, norms: Tensor) -> Float[Tensor, "head head"]:
    """Of matrices left^T @ right, (n, d_head, d) each."""
    rows = [((left @ left[i].T) * (right @ right[i].T)).sum((1, 2)) for i in range(len(left))]
    return (torch.stack(rows) / (norms[:, None] * norms)).cpu()
