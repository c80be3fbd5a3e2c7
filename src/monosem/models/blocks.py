"""How the blocks of each causal family are put together: where their matrices and norms stand.

Names are of modules inside a block. Attention's values are read off the module that makes them, which in some families
makes queries and keys too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from monosem.errors import ConfigError
from monosem.models.families import main_config
from monosem.models.subject import SubjectModel

HUGE = 1e30
"""An epsilon beside which no activation counts."""
EPSILONS = ("eps", "variance_epsilon")
"""What modules of norms call their epsilon."""


@dataclass(frozen=True)
class Block:
    """One family's block."""

    attention_norm: str | None
    """None where attention reads the stream as it is."""
    values: str
    """The module that makes values."""
    packed: Literal["alone", "behind", "interleaved"]
    """How they stand in it: by themselves, behind all queries and keys, or each head's three together."""
    output: str
    """The matrix behind attention."""
    mlp_norm: str | None
    """None where the MLP reads what attention reads, or where it does not lie beside it, the stream as it is."""
    mlp_output: str
    """The matrix behind the neurons; of several MLPs there is none."""
    after_attention: str | None = None
    """A norm that attention's result passes before it is added."""
    after_mlp: str | None = None
    parallel: bool = False
    """Whether the MLP reads the stream before attention has been added."""
    neurons: str | None = None
    """The matrix before the neurons; None where the family gates."""
    gate: str | None = None
    up: str | None = None
    """The two matrices before gated neurons."""
    norm_of_tokens: bool = False
    """Whether a norm stands between tokens and the first block."""


_LLAMA = Block(
    "input_layernorm",
    "self_attn.v_proj",
    "alone",
    "self_attn.o_proj",
    "post_attention_layernorm",
    "mlp.down_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
)
_SANDWICH = Block(
    "input_layernorm",
    "self_attn.v_proj",
    "alone",
    "self_attn.o_proj",
    "pre_feedforward_layernorm",
    "mlp.down_proj",
    after_attention="post_attention_layernorm",
    after_mlp="post_feedforward_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
)
_NORMS_BEHIND = replace(_SANDWICH, attention_norm=None, mlp_norm=None)
BLOCKS: dict[str, Block] = {
    "gpt2": Block("ln_1", "attn.c_attn", "behind", "attn.c_proj", "ln_2", "mlp.c_proj", neurons="mlp.c_fc"),
    "gpt_neox": Block(
        "input_layernorm",
        "attention.query_key_value",
        "interleaved",
        "attention.dense",
        "post_attention_layernorm",
        "mlp.dense_4h_to_h",
        parallel=True,
        neurons="mlp.dense_h_to_4h",
    ),
    "phi": Block(
        "input_layernorm",
        "self_attn.v_proj",
        "alone",
        "self_attn.dense",
        None,
        "mlp.fc2",
        parallel=True,
        neurons="mlp.fc1",
    ),
    "phi3": Block(
        "input_layernorm",
        "self_attn.qkv_proj",
        "behind",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.down_proj",
    ),
    **dict.fromkeys(("llama", "mistral", "ministral3", "qwen2", "qwen3", "gemma", "smollm3"), _LLAMA),
    "starcoder2": replace(_LLAMA, mlp_output="mlp.c_proj", neurons="mlp.c_fc", gate=None, up=None),
    **dict.fromkeys(("cohere", "cohere2"), replace(_LLAMA, mlp_norm=None, parallel=True)),
    **dict.fromkeys(("olmo2", "olmo3"), _NORMS_BEHIND),
    "glm4": replace(
        _SANDWICH,
        mlp_norm="post_attention_layernorm",
        after_attention="post_self_attn_layernorm",
        after_mlp="post_mlp_layernorm",
        gate=None,
        up=None,
    ),
    **dict.fromkeys(
        ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss"), replace(_LLAMA, mlp_output="", gate=None, up=None)
    ),
    "opt": Block(
        "self_attn_layer_norm",
        "self_attn.v_proj",
        "alone",
        "self_attn.out_proj",
        "final_layer_norm",
        "fc2",
        neurons="fc1",
    ),
    "gptj": Block(
        "ln_1", "attn.v_proj", "alone", "attn.out_proj", None, "mlp.fc_out", parallel=True, neurons="mlp.fc_in"
    ),
    "gpt_neo": Block(
        "ln_1",
        "attn.attention.v_proj",
        "alone",
        "attn.attention.out_proj",
        "ln_2",
        "mlp.c_proj",
        neurons="mlp.c_fc",
    ),
    "bloom": Block(
        "input_layernorm",
        "self_attention.query_key_value",
        "interleaved",
        "self_attention.dense",
        "post_attention_layernorm",
        "mlp.dense_4h_to_h",
        neurons="mlp.dense_h_to_4h",
        norm_of_tokens=True,
    ),
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
}


def block_of(model: SubjectModel) -> Block:
    """How the model's blocks are put together.

    Raises:
        ConfigError: its family has no table, or it is no model that predicts the next token.
    """
    if not model.writes_text:
        raise ConfigError(f"{model.name} does not predict the next token: this is of causal models alone")
    found = BLOCKS.get(model.family or "")
    if found is None:
        raise ConfigError(
            f"circuits are traced in models of these families: {', '.join(BLOCKS)}; {model.name} is "
            f"{model.family or 'of no known family'}"
        )
    config = main_config(model.module)
    normed = getattr(config, "apply_residual_connection_post_layernorm", False)
    if normed or not model.hook_points or not model.hook_points[0].startswith("embed"):
        raise ConfigError(
            f"circuits are not traced in {model.name}: its blocks are put together otherwise than those of its family, "
            f"{model.family}"
        )
    if model.family == "gpt_neox" and not getattr(config, "use_parallel_residual", True):
        return replace(found, parallel=False)
    return found


def block_module(model: SubjectModel, layer: int, name: str) -> nn.Module:
    """A module inside a block."""
    block = model.hook_point(f"resid_post.{layer}").path
    return model.module.get_submodule(f"{block}.{name}")


def matrix(module: nn.Module) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, " d_out"] | None]:
    """Weight and bias of a linear module, whichever way it stores them."""
    weight: Tensor = module.weight.detach()  # type: ignore[assignment, operator]
    if type(module).__name__ == "Conv1D":
        weight = weight.T
    bias: Tensor | None = getattr(module, "bias", None)
    return weight, None if bias is None else bias.detach()


def value_rows(model: SubjectModel, block: Block, layer: int) -> Bool[Tensor, " d_out"]:
    """Which of the numbers that `block.values` makes are values; the others are queries and keys."""
    return _rows(model, block, len(matrix(block_module(model, layer, block.values))[0]), 2)


def _rows(model: SubjectModel, block: Block, n: int, part: int) -> Bool[Tensor, " d_out"]:
    """Which of n numbers that come out of one module are queries, keys or values: part 0, 1 or 2."""
    config = main_config(model.module)
    heads: int = config.num_attention_heads
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    rows = torch.zeros(n, dtype=torch.bool)
    if block.packed == "alone":
        rows[:] = True
    elif block.packed == "interleaved":
        rows.unflatten(0, (heads, 3, -1))[:, part] = True
    else:
        width = n // (heads + 2 * kv_heads)
        bounds = [0, heads * width, (heads + kv_heads) * width, n]
        rows[bounds[part] : bounds[part + 1]] = True
    return rows


def projections(model: SubjectModel, block: Block, layer: int) -> list[Float[Tensor, "heads_d_head d_in"]]:
    """The matrices that make queries, keys and values; the last two for as many heads as have their own."""
    found: list[Tensor] = []
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        module = block.values.replace("v_proj", name) if block.packed == "alone" else block.values
        weight, _ = matrix(block_module(model, layer, module))
        found.append(weight[_rows(model, block, len(weight), part).to(weight.device)])
    return found


def value_matrix(model: SubjectModel, block: Block, layer: int) -> tuple[Tensor, Tensor | None, int]:
    """What makes values: weight (kv_heads * d_head, d_in), bias, and how many heads have their own."""
    config = main_config(model.module)
    kv_heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    weight, bias = matrix(block_module(model, layer, block.values))
    rows = value_rows(model, block, layer).to(weight.device)
    return weight[rows], None if bias is None else bias[rows], kv_heads


@dataclass(frozen=True)
class NormWeights:
    """A norm's parts.

    Where epsilon is above 1, its root is in the weight and not in the scale: a norm that was removed, whose epsilon is
    huge, has scale 1 everywhere.
    """

    weight: Float[Tensor, " d"]
    bias: Float[Tensor, " d"] | None
    epsilon: float
    centred: bool

    def scale(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... 1"]:
        """By what it divides rows."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return ((x.pow(2).mean(-1, keepdim=True) + self.epsilon) / max(1.0, self.epsilon)).sqrt()

    def read_before(self, rows: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """Rows that read what comes out, as rows that read what goes in, but for the scale."""
        rows = rows * self.weight.to(rows)
        return rows - rows.mean(-1, keepdim=True) if self.centred else rows


def block_norm(model: SubjectModel, layer: int, name: str | None) -> NormWeights:
    """A norm inside a block; where there is none, one that changes nothing."""
    if name is None:
        like = next(model.module.parameters())
        return NormWeights(torch.ones(model.d_model, dtype=like.dtype, device=like.device), None, HUGE, False)
    return norm_weights(block_module(model, layer, name))


def norm_weights(module: nn.Module) -> NormWeights:
    """The parts of a LayerNorm or of an RMS norm of any family.

    Raises:
        ConfigError: it is another norm.
    """
    weight, epsilon = getattr(module, "weight", None), epsilon_of(module)
    if not isinstance(weight, Tensor) or epsilon is None:
        raise ConfigError(f"{type(module).__name__} is no norm that is known: a LayerNorm or an RMS norm")
    weight, unit = weight.detach(), max(1.0, math.sqrt(epsilon))
    if isinstance(module, nn.LayerNorm):
        bias: Tensor | None = module.bias
        return NormWeights(weight / unit, None if bias is None else bias.detach(), epsilon, True)
    with torch.no_grad():
        seen = module(torch.ones_like(weight)[None])[0] * math.sqrt(1 + epsilon) / unit
    if not seen.any():  # equal numbers come to nothing: the mean is subtracted
        return NormWeights(weight / unit, None, epsilon, True)
    candidates = (weight / unit, (1 + weight) / unit)  # families differ
    far = [(seen - candidate).abs().max() for candidate in candidates]
    if min(far) > 1e-2 * (1 + candidates[0].abs().max()):
        raise ConfigError(f"{type(module).__name__} is no norm that is known: a LayerNorm or an RMS norm")
    return NormWeights(candidates[0] if far[0] <= far[1] else candidates[1], None, epsilon, False)


def epsilon_of(module: nn.Module) -> float | None:
    """What a norm adds to the variance; None for what is no norm."""
    return next((getattr(module, name) for name in EPSILONS if hasattr(module, name)), None)
