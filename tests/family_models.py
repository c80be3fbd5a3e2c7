"""A tiny random model of every family that has a table: real transformers classes, float64, all parameters random.

`FAMILY_MODELS[name]` says how its block is put together, so that tests can follow the stream by themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

D, LAYERS, VOCABULARY, POSITIONS, IMAGE = 16, 2, 40, 24, 8


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter random and, after that, in float64 and ready to be studied."""
    generator = torch.Generator().manual_seed(seed)
    module = module.to(torch.float64).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            if parameter.ndim == 1 and name.endswith(("weight", "lambda1")):
                parameter.add_(1)
    return module


@dataclass(frozen=True)
class FamilyModel:
    """How one family's block is built; module paths are inside the block."""

    family: str
    config: str
    head: str
    """Name of the transformers class with a head."""
    sizes: dict[str, Any]
    attn: str
    """Attention's output matrix."""
    mlp: str
    """The MLP's output matrix."""
    mlp_norm: str | None
    """The norm before the MLP; None in a post-norm block."""
    attn_after: str | None = None
    """What attention's result passes before it is added."""
    mlp_after: str | None = None
    order: Literal["serial", "parallel", "post-norm"] = "serial"
    sum_norms: tuple[str, str] | None = None
    """Of a post-norm block: the norms of the two sums."""
    n_heads: int = 4
    head_width: int = 4
    experts: bool = False
    """Whether its MLP is several, whose neurons have no point."""

    def build(self, head: str | None = None, seed: int = 0, **changes: Any) -> nn.Module:
        import transformers

        config = getattr(transformers, self.config)(**{**self.sizes, **changes})
        if self.experts:
            config._experts_implementation = "eager"  # the grouped one has no float64
        return randomise(getattr(transformers, head or self.head)(config), seed)

    @property
    def causal(self) -> bool:
        """Whether a token sees none behind it."""
        return self.head.endswith(("LMHeadModel", "ForCausalLM"))

    @property
    def reads_images(self) -> bool:
        return "image_size" in self.sizes

    def inputs(self, batch: int = 2, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if self.reads_images:
            return torch.randn(batch, 3, IMAGE, IMAGE, generator=generator, dtype=torch.float64)
        return torch.randint(3, VOCABULARY, (batch, 9), generator=generator)


TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
BIASED = {**GROUPED, "attention_bias": True, "mlp_bias": True}
WIDE_HEADS = {**GROUPED, "head_dim": 6}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
GEMMA = {**WIDE_HEADS, "query_pre_attn_scalar": 6, "sliding_window": 4}
PIXELS = {
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "image_size": IMAGE,
    "patch_size": 4,
}
LLAMA = {"attn": "self_attn.o_proj", "mlp": "mlp.down_proj", "mlp_norm": "post_attention_layernorm"}
SANDWICH = {
    **LLAMA,
    "mlp_norm": "pre_feedforward_layernorm",
    "attn_after": "post_attention_layernorm",
    "mlp_after": "post_feedforward_layernorm",
    "head_width": 6,
}
POST_NORM: dict[str, Any] = {
    "attn": "attention.output.dense",
    "mlp": "output.dense",
    "mlp_norm": None,
    "order": "post-norm",
    "sum_norms": ("attention.output.LayerNorm", "output.LayerNorm"),
}
BESIDE: dict[str, Any] = {**LLAMA, "mlp_norm": "input_layernorm", "order": "parallel"}
BEHIND: dict[str, Any] = {**SANDWICH, "mlp_norm": None, "head_width": 4}
EXPERTS: dict[str, Any] = {**LLAMA, "mlp": "", "experts": True}
MIXED = {**GROUPED, "num_experts_per_tok": 2}
DINO: dict[str, Any] = {
    "attn": "attention.o_proj",
    "mlp_norm": "norm2",
    "attn_after": "layer_scale1",
    "mlp_after": "layer_scale2",
}
GPT2_SIZES = {
    "vocab_size": VOCABULARY,
    "n_embd": D,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": POSITIONS,
    **{f"{kind}_token_id": i for i, kind in enumerate(("pad", "bos", "eos"))},
}

FAMILY_MODELS: dict[str, FamilyModel] = {
    "gpt2": FamilyModel("gpt2", "GPT2Config", "GPT2LMHeadModel", GPT2_SIZES, "attn.c_proj", "mlp.c_proj", "ln_2"),
    "gpt_neox": FamilyModel(
        "gpt_neox",
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        TEXT,
        "attention.dense",
        "mlp.dense_4h_to_h",
        "post_attention_layernorm",
        order="parallel",
    ),
    "llama": FamilyModel("llama", "LlamaConfig", "LlamaForCausalLM", GROUPED, **LLAMA),
    "llama with biases": FamilyModel("llama", "LlamaConfig", "LlamaForCausalLM", BIASED, **LLAMA),
    "mistral": FamilyModel("mistral", "MistralConfig", "MistralForCausalLM", {**GROUPED, "sliding_window": 4}, **LLAMA),
    "ministral3": FamilyModel(
        "ministral3", "Ministral3Config", "Ministral3ForCausalLM", WIDE_HEADS, **LLAMA, head_width=6
    ),
    "qwen2": FamilyModel("qwen2", "Qwen2Config", "Qwen2ForCausalLM", GROUPED, **LLAMA),
    "qwen3": FamilyModel("qwen3", "Qwen3Config", "Qwen3ForCausalLM", WIDE_HEADS, **LLAMA, head_width=6),
    "gemma": FamilyModel("gemma", "GemmaConfig", "GemmaForCausalLM", WIDE_HEADS, **LLAMA, head_width=6),
    "gemma2": FamilyModel("gemma2", "Gemma2Config", "Gemma2ForCausalLM", GEMMA, **SANDWICH),
    "gemma3_text": FamilyModel("gemma3_text", "Gemma3TextConfig", "Gemma3ForCausalLM", GEMMA, **SANDWICH),
    "phi": FamilyModel(
        "phi",
        "PhiConfig",
        "PhiForCausalLM",
        TEXT,
        "self_attn.dense",
        "mlp.fc2",
        "input_layernorm",
        order="parallel",
    ),
    "phi3": FamilyModel("phi3", "Phi3Config", "Phi3ForCausalLM", GROUPED, **LLAMA),
    "smollm3": FamilyModel("smollm3", "SmolLM3Config", "SmolLM3ForCausalLM", GROUPED, **LLAMA),
    "starcoder2": FamilyModel(
        "starcoder2", "Starcoder2Config", "Starcoder2ForCausalLM", GROUPED, **{**LLAMA, "mlp": "mlp.c_proj"}
    ),
    "cohere": FamilyModel("cohere", "CohereConfig", "CohereForCausalLM", GROUPED, **BESIDE),
    "cohere2": FamilyModel("cohere2", "Cohere2Config", "Cohere2ForCausalLM", GROUPED, **BESIDE),
    "glm4": FamilyModel(
        "glm4",
        "Glm4Config",
        "Glm4ForCausalLM",
        {**GROUPED, "head_dim": 4},
        **LLAMA,
        attn_after="post_self_attn_layernorm",
        mlp_after="post_mlp_layernorm",
    ),
    "olmo2": FamilyModel("olmo2", "Olmo2Config", "Olmo2ForCausalLM", GROUPED, **BEHIND),
    "olmo3": FamilyModel("olmo3", "Olmo3Config", "Olmo3ForCausalLM", {**GROUPED, "sliding_window": 4}, **BEHIND),
    "gptj": FamilyModel(
        "gptj",
        "GPTJConfig",
        "GPTJForCausalLM",
        {**GPT2_SIZES, "rotary_dim": 2},
        "attn.out_proj",
        "mlp.fc_out",
        "ln_1",
        order="parallel",
    ),
    "gpt_neo": FamilyModel(
        "gpt_neo",
        "GPTNeoConfig",
        "GPTNeoForCausalLM",
        {
            **{k: v for k, v in TEXT.items() if k not in ("num_hidden_layers", "num_attention_heads")},
            "num_layers": LAYERS,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
        },
        "attn.attention.out_proj",
        "mlp.c_proj",
        "ln_2",
    ),
    "bloom": FamilyModel(
        "bloom",
        "BloomConfig",
        "BloomForCausalLM",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": D,
            "n_layer": LAYERS,
            "n_head": 4,
            **{f"{kind}_token_id": i for i, kind in enumerate(("pad", "bos", "eos"))},
        },
        "self_attention.dense",
        "mlp.dense_4h_to_h",
        "post_attention_layernorm",
    ),
    "opt": FamilyModel(
        "opt",
        "OPTConfig",
        "OPTForCausalLM",
        {**{k: v for k, v in TEXT.items() if k != "intermediate_size"}, "ffn_dim": 20, "word_embed_proj_dim": D},
        "self_attn.out_proj",
        "fc2",
        "final_layer_norm",
    ),
    "mixtral": FamilyModel(
        "mixtral", "MixtralConfig", "MixtralForCausalLM", {**MIXED, "num_local_experts": 4}, **EXPERTS
    ),
    "qwen2_moe": FamilyModel(
        "qwen2_moe",
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        {**MIXED, "num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12},
        **EXPERTS,
    ),
    "olmoe": FamilyModel("olmoe", "OlmoeConfig", "OlmoeForCausalLM", {**MIXED, "num_experts": 4}, **EXPERTS),
    "gpt_oss": FamilyModel(
        "gpt_oss",
        "GptOssConfig",
        "GptOssForCausalLM",
        {**MIXED, "num_local_experts": 4, "head_dim": 4, "sliding_window": 4, "rope_parameters": PLAIN},
        **EXPERTS,
    ),
    "qwen3_moe": FamilyModel(
        "qwen3_moe",
        "Qwen3MoeConfig",
        "Qwen3MoeForCausalLM",
        {**MIXED, "num_experts": 4, "moe_intermediate_size": 12, "head_dim": 4},
        **EXPERTS,
    ),
    "bert": FamilyModel(
        "bert",
        "BertConfig",
        "BertForMaskedLM",
        TEXT,
        **POST_NORM,
    ),
    "roberta": FamilyModel(
        "roberta",
        "RobertaConfig",
        "RobertaForMaskedLM",
        {**TEXT, "max_position_embeddings": POSITIONS + 1},
        **POST_NORM,
    ),
    "xlm-roberta": FamilyModel(
        "xlm-roberta",
        "XLMRobertaConfig",
        "XLMRobertaForMaskedLM",
        {**TEXT, "max_position_embeddings": POSITIONS + 1},
        **POST_NORM,
    ),
    "modernbert": FamilyModel(
        "modernbert",
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        {**TEXT, "local_attention": 4, "cls_token_id": 1, "sep_token_id": 2},
        "attn.Wo",
        "mlp.Wo",
        "mlp_norm",
    ),
    "vit": FamilyModel(
        "vit", "ViTConfig", "ViTForImageClassification", PIXELS, "attention.o_proj", "mlp.fc2", "layernorm_after"
    ),
    "clip_vision_model": FamilyModel(
        "clip_vision_model",
        "CLIPVisionConfig",
        "CLIPVisionModelWithProjection",
        {**PIXELS, "projection_dim": 12},
        "self_attn.out_proj",
        "mlp.fc2",
        "layer_norm2",
    ),
    "siglip_vision_model": FamilyModel(
        "siglip_vision_model",
        "SiglipVisionConfig",
        "SiglipVisionModel",
        PIXELS,
        "self_attn.out_proj",
        "mlp.fc2",
        "layer_norm2",
    ),
    "dinov2": FamilyModel("dinov2", "Dinov2Config", "Dinov2ForImageClassification", PIXELS, mlp="mlp.fc2", **DINO),
    "dinov2 gated": FamilyModel(
        "dinov2",
        "Dinov2Config",
        "Dinov2ForImageClassification",
        {**PIXELS, "use_swiglu_ffn": True},
        mlp="mlp.down_proj",
        **DINO,
    ),
    "dinov2_with_registers": FamilyModel(
        "dinov2_with_registers",
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersForImageClassification",
        {**PIXELS, "num_register_tokens": 2},
        mlp="mlp.fc2",
        **DINO,
    ),
    "dinov3_vit": FamilyModel("dinov3_vit", "DINOv3ViTConfig", "DINOv3ViTModel", PIXELS, mlp="mlp.down_proj", **DINO),
}


def pooled(out: Any) -> Tensor:
    """What an image model without a classifier says of a whole image."""
    return out.image_embeds if "image_embeds" in out else out.pooler_output


@cache
def family_module(name: str) -> nn.Module:
    """One module a family for all tests of a session; nobody changes it."""
    return FAMILY_MODELS[name].build()


SMALL = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
LINEAR = {f"linear_{of}": size for of, size in {"num_value_heads": 4, "num_key_heads": 2, "key_head_dim": 8}.items()}
LINEAR["linear_value_head_dim"] = 8


@dataclass(frozen=True)
class Mixed:
    """A family whose layers are of two kinds, in turn."""

    config: str
    head: str
    kind: str
    """Of the first and third layer; the others are of full attention."""
    sizes: dict[str, Any]
    mixes: str
    """What those layers have in place of attention."""
    attn_after: str | None = None
    mlp_norm: str = "post_attention_layernorm"

    def build(self) -> nn.Module:
        import transformers

        torch.manual_seed(0)
        settings = {**self.sizes, "layer_types": [self.kind, "full_attention"] * 2}
        return getattr(transformers, self.head)(getattr(transformers, self.config)(**settings)).eval()


FEW = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 12}
MIXED_MODELS = {
    "qwen3_5_moe_text": Mixed(
        "Qwen3_5MoeTextConfig",
        "Qwen3_5MoeForCausalLM",
        "linear_attention",
        {**SMALL, **LINEAR, **FEW},
        "linear_attn",
    ),
    "qwen3_next": Mixed(
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        "linear_attention",
        {**SMALL, **LINEAR, **FEW},
        "linear_attn",
    ),
    "qwen3_5_text": Mixed(
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        "linear_attention",
        {**SMALL, **LINEAR},
        "linear_attn",
    ),
    "lfm2": Mixed(
        "Lfm2Config",
        "Lfm2ForCausalLM",
        "conv",
        {**{name: size for name, size in SMALL.items() if name != "head_dim"}, "block_auto_adjust_ff_dim": False},
        "conv",
        mlp_norm="ffn_norm",
    ),
    "gemma4_text": Mixed(
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        "sliding_attention",
        {
            **SMALL,
            "sliding_window": 4,
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 4096,
            "hidden_size_per_layer_input": 8,
        },
        "self_attn",
        attn_after="post_attention_layernorm",
        mlp_norm="pre_feedforward_layernorm",
    ),
}
