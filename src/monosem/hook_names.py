"""What other libraries call the hook points."""

from __future__ import annotations

import re

TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "attn.hook_rot_q": "attn_q",
    "attn.hook_rot_k": "attn_k",
    "attn.hook_v": "attn_v",
    "attn.hook_pattern": "attn_pattern",
    "attn.hook_z": "attn_z",
    "hook_attn_out": "attn_out",
    "ln2.hook_normalized": "mlp_in",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "mlp_mid",
    "hook_mlp_out": "mlp_out",
    "hook_mlp_in": "resid_mid",
}
"""Inside a block, in ours."""


def layer_of(name: str | None) -> int | None:
    """`2` of `resid_post.2`; None of a name that ends in no layer's number."""
    end = (name or "").rpartition(".")[2]
    return int(end) if re.fullmatch("[0-9]{1,9}", end) else None


def from_transformer_lens(name: str) -> str:
    """`resid_post.2` of `blocks.2.hook_resid_post`; any other name as it is."""
    if name == "ln_final.hook_normalized":  # hook_embed is no alias of ours: it has no positions yet
        return "final_norm"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match and match[2] in TRANSFORMER_LENS:
        return f"{TRANSFORMER_LENS[match[2]]}.{match[1]}"
    return name


def to_transformer_lens(name: str) -> str | None:
    """`blocks.2.hook_resid_post` of `resid_post.2`; None where TransformerLens has no such place."""
    if name == "final_norm":
        return "ln_final.hook_normalized"
    site, _, layer = name.rpartition(".")
    return next((f"blocks.{layer}.{theirs}" for theirs, ours in TRANSFORMER_LENS.items() if ours == site), None)
