"""Where the canonical hook points lie: one small table a model family, keyed by `config.model_type`.

A path is a module's inside the base model (below `transformer.`, `model.`, `bert.`, ... or nothing: found by looking),
and the side of it: what goes in or what comes out. What each point means:

    embed       what the first block reads: tokens (or patches) with their positions where the family adds them
    resid_pre   residual stream before block L; resid_post.L-1
    attn_q      queries as they meet keys: after rotary positions and norms, heads side by side
    attn_k      keys, attn_v values: likewise, by their own (in grouped attention smaller) number of heads
    attn_pattern  how much each query takes of each value, (batch, heads, query, key): the softmax as used
    attn_z      heads concatenated, before the output matrix
    attn_out    what attention adds to the residual stream
    resid_mid   residual stream between attention and MLP
    mlp_in      what the MLP reads
    mlp_mid     the neurons: what the MLP's output matrix reads (gated where the family gates)
    mlp_out     what the MLP adds to the residual stream
    resid_post  residual stream after block L
    final_norm  what the head reads

A point that a family does not have is not in its table. Where layers are of several kinds, paths stand side by side,
`one|other:output`, and each layer has the first that it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

Table = Mapping[str, str]


def _within(attention: str) -> Table:
    """The points inside the attention module of that path."""
    sides = {"attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_pattern": "pattern"}
    return {name: f"{attention}:{side}" for name, side in sides.items()}


GPT2: Table = {
    "embed": "drop:output",
    "resid_pre": "h.{layer}:input",
    **_within("h.{layer}.attn"),
    "attn_z": "h.{layer}.attn.c_proj:input",
    "attn_out": "h.{layer}.attn:output",
    "resid_mid": "h.{layer}.ln_2:input",
    "mlp_in": "h.{layer}.mlp:input",
    "mlp_mid": "h.{layer}.mlp.c_proj:input",
    "mlp_out": "h.{layer}.mlp:output",
    "resid_post": "h.{layer}:output",
    "final_norm": "ln_f:output",
}

# Attention and MLP read the same residual stream side by side: nothing lies between them. (A NeoX with
# use_parallel_residual=False, which no Pythia is, has a middle: `...layers.L.post_attention_layernorm:input`.)
GPT_NEOX: Table = {
    "embed": "emb_dropout:output",
    "resid_pre": "layers.{layer}:input",
    **_within("layers.{layer}.attention"),
    "attn_z": "layers.{layer}.attention.dense:input",
    "attn_out": "layers.{layer}.attention:output",
    "mlp_in": "layers.{layer}.mlp:input",
    "mlp_mid": "layers.{layer}.mlp.dense_4h_to_h:input",
    "mlp_out": "layers.{layer}.mlp:output",
    "resid_post": "layers.{layer}:output",
    "final_norm": "final_layer_norm:output",
}

# Parallel like NeoX, and with one norm for both: mlp_in is what attention reads too.
PHI: Table = {
    "embed": "embed_dropout:output",
    "resid_pre": "layers.{layer}:input",
    **_within("layers.{layer}.self_attn"),
    "attn_z": "layers.{layer}.self_attn.dense:input",
    "attn_out": "layers.{layer}.self_attn:output",
    "mlp_in": "layers.{layer}.mlp:input",
    "mlp_mid": "layers.{layer}.mlp.fc2:input",
    "mlp_out": "layers.{layer}.mlp:output",
    "resid_post": "layers.{layer}:output",
    "final_norm": "final_layernorm:output",
}

LLAMA: Table = {
    "embed": "embed_tokens:output",
    "resid_pre": "layers.{layer}:input",
    **_within("layers.{layer}.self_attn"),
    "attn_z": "layers.{layer}.self_attn.o_proj:input",
    "attn_out": "layers.{layer}.self_attn:output",
    "resid_mid": "layers.{layer}.post_attention_layernorm:input",
    "mlp_in": "layers.{layer}.mlp:input",
    "mlp_mid": "layers.{layer}.mlp.down_proj:input",
    "mlp_out": "layers.{layer}.mlp:output",
    "resid_post": "layers.{layer}:output",
    "final_norm": "norm:output",
}

# Sandwich norms: attention's and the MLP's results pass one more norm before they are added, so attn_out and mlp_out
# are what comes out of that norm. `embed` is scaled by sqrt(d) already.
GEMMA2: Table = {
    **LLAMA,
    "attn_out": "layers.{layer}.post_attention_layernorm:output",
    "resid_mid": "layers.{layer}.pre_feedforward_layernorm:input",
    "mlp_out": "layers.{layer}.post_feedforward_layernorm:output",
}

GLM4: Table = {
    **LLAMA,
    "attn_out": "layers.{layer}.post_self_attn_layernorm:output",
    "mlp_out": "layers.{layer}.post_mlp_layernorm:output",
}

# Norms stand behind attention and MLP alone: what these read is the stream itself.
OLMO2: Table = {
    **LLAMA,
    "attn_out": "layers.{layer}.post_attention_layernorm:output",
    "resid_mid": "layers.{layer}.mlp:input",
    "mlp_out": "layers.{layer}.post_feedforward_layernorm:output",
}

# Most layers have a memory of fixed size in place of attention. What it adds is attn_out there; of heads there is none.
HYBRID: Table = {
    **{name: path for name, path in LLAMA.items() if name not in (*_within(""), "attn_z")},
    "attn_out": "layers.{layer}.self_attn|layers.{layer}.linear_attn:output",
}
LFM2: Table = {
    **HYBRID,
    "attn_out": "layers.{layer}.self_attn|layers.{layer}.conv:output",
    "resid_mid": "layers.{layer}.ffn_norm:input",
    "mlp_in": "layers.{layer}.feed_forward:input",
    "mlp_mid": "layers.{layer}.feed_forward.w2:input",
    "mlp_out": "layers.{layer}.feed_forward:output",
    "final_norm": "embedding_norm:output",
}
HYBRID_EXPERTS: Table = {name: path for name, path in HYBRID.items() if name != "mlp_mid"}

# After the MLP a block may add what it reads of the tokens themselves, and it scales the whole stream: resid_post is
# not resid_mid + mlp_out. Later layers take keys and values from earlier ones: of heads there is none here either.
GEMMA4: Table = {name: path for name, path in GEMMA2.items() if name not in (*_within(""), "attn_z")}

# Parallel like Phi, with Llama's names.
COHERE: Table = {name: path for name, path in LLAMA.items() if name != "resid_mid"}

# A norm stands between tokens and the first block. Attention and MLP add what they read the stream for themselves: what
# they add is what their matrices give.
BLOOM: Table = {
    "embed": "word_embeddings_layernorm:output",
    "resid_pre": "h.{layer}:input",
    **_within("h.{layer}.self_attention"),
    "attn_z": "h.{layer}.self_attention.dense:input",
    "attn_out": "h.{layer}.self_attention.dense:output",
    "resid_mid": "h.{layer}.post_attention_layernorm:input",
    "mlp_in": "h.{layer}.mlp:input",
    "mlp_mid": "h.{layer}.mlp.dense_4h_to_h:input",
    "mlp_out": "h.{layer}.mlp.dense_4h_to_h:output",
    "resid_post": "h.{layer}:output",
    "final_norm": "ln_f:output",
}

GPT_NEO: Table = {
    **GPT2,
    **_within("h.{layer}.attn.attention"),
    "attn_z": "h.{layer}.attn.attention.out_proj:input",
}

# Parallel, with one norm for both: mlp_in is what attention reads too.
GPTJ: Table = {
    "embed": "drop:output",
    "resid_pre": "h.{layer}:input",
    **_within("h.{layer}.attn"),
    "attn_z": "h.{layer}.attn.out_proj:input",
    "attn_out": "h.{layer}.attn:output",
    "mlp_in": "h.{layer}.mlp:input",
    "mlp_mid": "h.{layer}.mlp.fc_out:input",
    "mlp_out": "h.{layer}.mlp:output",
    "resid_post": "h.{layer}:output",
    "final_norm": "ln_f:output",
}

# Norms before attention and MLP, as all but OPT-350m have them: that one's stream is normed, and it is in no table.
OPT: Table = {
    "embed": "layers.0:input",
    "resid_pre": "layers.{layer}:input",
    **_within("layers.{layer}.self_attn"),
    "attn_z": "layers.{layer}.self_attn.out_proj:input",
    "attn_out": "layers.{layer}.self_attn:output",
    "resid_mid": "layers.{layer}.final_layer_norm:input",
    "mlp_in": "layers.{layer}.fc1:input",
    "mlp_mid": "layers.{layer}.fc2:input",
    "mlp_out": "layers.{layer}.fc2:output",
    "resid_post": "layers.{layer}:output",
    "final_norm": "final_layer_norm:output",
}
FLAT = {"opt": ("resid_mid", "mlp_in", "mlp_mid", "mlp_out")}
"""Points at which a family has all texts' positions in one column: (batch pos, d)."""

# Several MLPs, of which each token is sent to a few: what they do together is one MLP, whose neurons have no point.
EXPERTS: Table = {name: path for name, path in LLAMA.items() if name != "mlp_mid"}

# Post-norm: the residual stream itself is normed after each addition. resid_mid = LN(resid_pre + attn_out) and
# resid_post = LN(resid_mid + mlp_out); mlp_in is resid_mid, and there is no norm at the end.
BERT: Table = {
    "embed": "embeddings:output",
    "resid_pre": "encoder.layer.{layer}:input",
    **_within("encoder.layer.{layer}.attention.self"),
    "attn_z": "encoder.layer.{layer}.attention.output.dense:input",
    "attn_out": "encoder.layer.{layer}.attention.output.dense:output",
    "resid_mid": "encoder.layer.{layer}.attention.output:output",
    "mlp_in": "encoder.layer.{layer}.intermediate:input",
    "mlp_mid": "encoder.layer.{layer}.output.dense:input",
    "mlp_out": "encoder.layer.{layer}.output.dense:output",
    "resid_post": "encoder.layer.{layer}:output",
}

# Norms before attention and MLP, as in a decoder; in the first block attention reads what the norm of tokens gives.
MODERNBERT: Table = {
    "embed": "embeddings:output",
    "resid_pre": "layers.{layer}:input",
    **_within("layers.{layer}.attn"),
    "attn_z": "layers.{layer}.attn.Wo:input",
    "attn_out": "layers.{layer}.attn:output",
    "resid_mid": "layers.{layer}.mlp_norm:input",
    "mlp_in": "layers.{layer}.mlp:input",
    "mlp_mid": "layers.{layer}.mlp.Wo:input",
    "mlp_out": "layers.{layer}.mlp:output",
    "resid_post": "layers.{layer}:output",
    "final_norm": "final_norm:output",
}

# Images: positions are the class token, then the patches row by row.
VIT: Table = {
    "embed": "embeddings:output",
    "resid_pre": "layers.{layer}:input",
    **_within("layers.{layer}.attention"),
    "attn_z": "layers.{layer}.attention.o_proj:input",
    "attn_out": "layers.{layer}.attention:output",
    "resid_mid": "layers.{layer}.layernorm_after:input",
    "mlp_in": "layers.{layer}.mlp:input",
    "mlp_mid": "layers.{layer}.mlp.fc2:input",
    "mlp_out": "layers.{layer}.mlp:output",
    "resid_post": "layers.{layer}:output",
    "final_norm": "layernorm:output",
}

# A norm stands before the first block; the last one (`post_layernorm`) sees the class token alone, so it is no
# final_norm of all positions.
CLIP_VISION: Table = {
    "embed": "pre_layrnorm:output",
    "resid_pre": "encoder.layers.{layer}:input",
    **_within("encoder.layers.{layer}.self_attn"),
    "attn_z": "encoder.layers.{layer}.self_attn.out_proj:input",
    "attn_out": "encoder.layers.{layer}.self_attn:output",
    "resid_mid": "encoder.layers.{layer}.layer_norm2:input",
    "mlp_in": "encoder.layers.{layer}.mlp:input",
    "mlp_mid": "encoder.layers.{layer}.mlp.fc2:input",
    "mlp_out": "encoder.layers.{layer}.mlp:output",
    "resid_post": "encoder.layers.{layer}:output",
}

# There is no class token, and the last norm sees all positions.
SIGLIP_VISION: Table = {**CLIP_VISION, "embed": "embeddings:output", "final_norm": "post_layernorm:output"}

# A learned scale for each channel stands between attention (or MLP) and the sum: attn_out and mlp_out come after it.
DINOV2: Table = {
    "embed": "embeddings:output",
    "resid_pre": "encoder.layer.{layer}:input",
    **_within("encoder.layer.{layer}.attention"),
    "attn_z": "encoder.layer.{layer}.attention.o_proj:input",
    "attn_out": "encoder.layer.{layer}.layer_scale1:output",
    "resid_mid": "encoder.layer.{layer}.norm2:input",
    "mlp_in": "encoder.layer.{layer}.mlp:input",
    "mlp_mid": "encoder.layer.{layer}.mlp.fc2:input",
    "mlp_out": "encoder.layer.{layer}.layer_scale2:output",
    "resid_post": "encoder.layer.{layer}:output",
    "final_norm": "layernorm:output",
}
DINOV2_GATED: Table = {**DINOV2, "mlp_mid": "encoder.layer.{layer}.mlp.down_proj:input"}
DINOV3: Table = {
    **{name: path.replace("encoder.layer.", "model.layer.") for name, path in DINOV2_GATED.items()},
    "final_norm": "norm:output",
}

FAMILIES: dict[str, tuple[Table, ...]] = {
    "gpt2": (GPT2,),
    "gpt_neox": (GPT_NEOX,),
    "llama": (LLAMA,),
    "mistral": (LLAMA,),
    "ministral3": (LLAMA,),
    "qwen2": (LLAMA,),
    "qwen3": (LLAMA,),
    "gemma": (LLAMA,),
    "gemma2": (GEMMA2,),
    "gemma3_text": (GEMMA2,),
    "gemma4_text": (GEMMA4,),
    "qwen3_5_text": (HYBRID,),
    "qwen3_5_moe_text": (HYBRID_EXPERTS,),
    "qwen3_next": (HYBRID_EXPERTS,),
    "lfm2": (LFM2,),
    "smollm3": (LLAMA,),
    "starcoder2": ({**LLAMA, "mlp_mid": "layers.{layer}.mlp.c_proj:input"},),
    "cohere": (COHERE,),
    "cohere2": (COHERE,),
    "glm4": (GLM4,),
    "olmo2": (OLMO2,),
    "olmo3": (OLMO2,),
    "phi": (PHI,),
    "bloom": (BLOOM,),
    "gptj": (GPTJ,),
    "gpt_neo": (GPT_NEO,),
    "opt": (OPT,),
    "mixtral": (EXPERTS,),
    "qwen2_moe": (EXPERTS,),
    "qwen3_moe": (EXPERTS,),
    "olmoe": (EXPERTS,),
    "gpt_oss": (EXPERTS,),
    "phi3": (LLAMA,),
    "bert": (BERT,),
    "roberta": (BERT,),
    "xlm-roberta": (BERT,),
    "modernbert": (MODERNBERT,),
    "vit": (VIT,),
    "clip_vision_model": (CLIP_VISION,),
    "siglip_vision_model": (SIGLIP_VISION,),
    "dinov2": (DINOV2, DINOV2_GATED),
    "dinov2_with_registers": (DINOV2, DINOV2_GATED),
    "dinov3_vit": (DINOV3,),
}
"""The tables of a family. Where there are several, a model has the first whose paths it has."""


def main_config(module: nn.Module) -> Any:
    """The config of what is studied in a module: of several models in one, of that whose family is known."""
    config: Any = getattr(module, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return config
    inner = [config.get_text_config(), getattr(config, "vision_config", None)]
    known = [c for c in (config, *inner) if getattr(c, "model_type", None) in FAMILIES]
    return known[0] if known else inner[0]


def hook_table(module: nn.Module, family: str | None, n_layers: int) -> dict[str, str]:
    """Every canonical hook point of a model in the order of its forward pass, and its full path with its side.

    Empty for a family that is not known, or a module that is not built like its family.
    """
    for table in FAMILIES.get(family or "", ()):
        for prefix in _prefixes(module, table["resid_pre"].format(layer=0)):
            modules = dict(module.named_modules())
            places = {name: _place(prefix, path, modules) for name, path in _by_layer(table, n_layers)}
            if all(places.values()):
                return places
    return {}


def _place(prefix: str, path: str, modules: Mapping[str, nn.Module]) -> str:
    """The full path and side of the first of some paths where there is a module; empty if there is none."""
    paths, _, side = path.partition(":")
    return next((f"{prefix}{one}:{side}" for one in paths.split("|") if prefix + one in modules), "")


def _by_layer(table: Table, n_layers: int) -> Iterator[tuple[str, str]]:
    yield "embed", table["embed"]
    for layer in range(n_layers):
        for name, path in table.items():
            if "{layer}" in path:
                yield f"{name}.{layer}", path.format(layer=layer)
    if "final_norm" in table:
        yield "final_norm", table["final_norm"]


def _prefixes(module: nn.Module, block: str) -> Iterator[str]:
    """What stands before the path of the first block, wherever there is a module of that path."""
    path = block.partition(":")[0]
    for name, _ in module.named_modules():
        if name == path or name.endswith("." + path):
            yield name.removesuffix(path)
