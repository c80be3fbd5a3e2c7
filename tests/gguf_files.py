"""A tiny random Llama written as a GGUF file, as llama.cpp's converter does it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from family_models import FAMILY_MODELS

HEADS, BLOCK = 4, 32
SIZES = {
    "vocab_size": 260,
    "hidden_size": BLOCK,
    "intermediate_size": 2 * BLOCK,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}


def written(path: Path, kind: str = "F32", **facts: Any) -> Any:
    """A random Llama of two layers as a GGUF file with a tokenizer of bytes; and the Llama itself."""
    import gguf

    spec = FAMILY_MODELS["llama"]
    llama = spec.build(**SIZES, num_key_value_heads=2, tie_word_embeddings=False).float()
    writer = gguf.GGUFWriter(path, "llama")
    config = llama.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(facts.pop("block_count", config.num_hidden_layers))
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // HEADS)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    write_tokenizer(writer)
    for name, value in facts.items():
        writer.add_uint16(name, value)
    kind = getattr(gguf.GGMLQuantizationType, kind)
    for name, weight in llama.state_dict().items():
        if name.endswith("bias"):
            continue
        if heads := {"q_proj": HEADS, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2]):
            halves = weight.reshape(heads, 2, -1, weight.shape[1])  # llama.cpp rotates neighbours, transformers halves
            weight = halves.transpose(1, 2).reshape(weight.shape)
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        matrix = weight.ndim == 2
        data = gguf.quantize(weight.numpy(), kind if matrix else gguf.GGMLQuantizationType.F32)
        writer.add_tensor(name, data, raw_dtype=kind if matrix and kind > 1 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return llama


def write_tokenizer(writer: Any) -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    tokens = ["<s>", "</s>", "<unk>", *bytes_to_unicode().values(), "he"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
