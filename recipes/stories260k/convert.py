"""Turn the 260K-parameter story model into a checkpoint folder that transformers (and `monosem.load_model`) reads.

    python recipes/stories260k/convert.py SOURCE_FOLDER OUTPUT_FOLDER

SOURCE_FOLDER holds `weights.npz` (the matrices of a Llama as y = W @ x, layers stacked), `config.json` (its sizes) and
`tokenizer.json` (512 pieces; ids of bytes, merges and single characters; a greedy generation to compare with).
The result is compared with that generation, token by token; the script ends with an error if they differ.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

BOS = "<s>"
"""Stands between stories in the training text, so it ends them too; `</s>` was never trained."""

LAYER_NAMES = {
    "attention_norm": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}


def halves(weight: Tensor, n_heads: int) -> Tensor:
    """Reorder the rows of each head: rotary positions turn rows (i, i + width/2) in transformers, (2i, 2i + 1) here."""
    return weight.unflatten(0, (n_heads, -1, 2)).transpose(1, 2).reshape(weight.shape)


def convert_model(weights: dict[str, np.ndarray], sizes: dict[str, Any]) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["dim"],
        intermediate_size=sizes["hidden_dim"],
        num_hidden_layers=sizes["n_layers"],
        num_attention_heads=sizes["n_heads"],
        num_key_value_heads=sizes["n_kv_heads"],
        max_position_embeddings=sizes["max_seq_len"],
        rms_norm_eps=sizes["norm_eps"],
        rope_parameters={"rope_type": "default", "rope_theta": sizes["rope_theta"]},
        tie_word_embeddings=sizes["tied_output"],
        bos_token_id=sizes["bos_id"],
        eos_token_id=sizes["bos_id"],
    )
    model = LlamaForCausalLM(config)
    heads = {"wq": sizes["n_heads"], "wk": sizes["n_kv_heads"]}
    state = {"model.embed_tokens.weight": weights["tok_embeddings"], "model.norm.weight": weights["norm"]}
    state = {name: torch.from_numpy(array) for name, array in state.items()}
    for theirs, ours in LAYER_NAMES.items():
        for layer, array in enumerate(weights[theirs]):
            weight = torch.from_numpy(array)
            weight = halves(weight, heads[theirs]) if theirs in heads else weight
            state[f"model.layers.{layer}.{ours}.weight"] = weight
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    return model.eval()


def convert_tokenizer(described: dict[str, Any], context_length: int) -> PreTrainedTokenizerFast:
    """A BPE of characters: pieces merge lowest id first, what no piece spells goes through bytes."""
    pieces = [piece or f"<unused{i}>" for i, piece in enumerate(described["pieces"])]
    ids = {piece: i for i, piece in enumerate(pieces)}
    first, last = described["merge_ids"]
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces[first : last + 1]
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    space = described["space_symbol"]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(space), normalizers.Replace(" ", space)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(space, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True) for piece in pieces[: described["n_special"]]])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, ids[BOS])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, unk_token="<unk>", model_max_length=context_length
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    sizes = json.loads((options.source / "config.json").read_text())
    described = json.loads((options.source / "tokenizer.json").read_text(encoding="utf-8"))
    with np.load(options.source / "weights.npz") as weights:
        model = convert_model(dict(weights), sizes)
    tokenizer = convert_tokenizer(described, sizes["max_seq_len"])

    known = described["greedy_from_bos"]
    written = model.generate(  # pyright: ignore[reportAttributeAccessIssue]
        torch.tensor([known[:1]]),
        attention_mask=torch.ones(1, 1, dtype=torch.int64),
        max_length=len(known),
        do_sample=False,
        pad_token_id=0,
    )[0].tolist()
    if written != known:
        raise SystemExit(f"the converted model does not write the known story:\n{written}\n{known}")
    text = str(tokenizer.decode(written, skip_special_tokens=True))
    if tokenizer(text)["input_ids"] != known:
        raise SystemExit("the converted tokenizer does not read its own text back into the same tokens")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    print(
        f"{options.output}: {sum(p.numel() for p in model.parameters()):,} parameters; the known story, again:\n{text}"
    )


if __name__ == "__main__":
    main()
