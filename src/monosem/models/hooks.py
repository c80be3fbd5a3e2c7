"""Hook points: canonical names, one small table a model family, raw module paths for everything else."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Literal

from torch import nn

from monosem.errors import HookError

Side = Literal["input", "output"]

FAMILIES: dict[str, dict[str, str]] = {
    "gpt2": {
        "embed": "transformer.drop:output",
        "resid_pre": "transformer.h.{layer}:input",
        "resid_mid": "transformer.h.{layer}.ln_2:input",
        "resid_post": "transformer.h.{layer}:output",
        "attn_z": "transformer.h.{layer}.attn.c_proj:input",
        "attn_out": "transformer.h.{layer}.attn:output",
        "mlp_in": "transformer.h.{layer}.mlp:input",
        "mlp_mid": "transformer.h.{layer}.mlp.c_proj:input",
        "mlp_out": "transformer.h.{layer}.mlp:output",
        "final_norm": "transformer.ln_f:output",
    },
}
"""Where each canonical hook point lies, by `config.model_type`."""

TRANSFORMER_LENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "attn.hook_z": "attn_z",
    "hook_attn_out": "attn_out",
    "ln2.hook_normalized": "mlp_in",
    "mlp.hook_post": "mlp_mid",
    "hook_mlp_out": "mlp_out",
}


@dataclass(frozen=True)
class HookPoint:
    """A place in a model: the input or the output of one of its modules."""

    name: str
    """Canonical name, or the raw path."""
    path: str
    side: Side


def canonical_names(family: str | None, n_layers: int) -> list[str]:
    """All canonical hook points of a model, in the order of its forward pass."""
    if family not in FAMILIES:
        return []
    table = FAMILIES[family]
    per_layer = [name for name, path in table.items() if "{layer}" in path]
    blocks = [f"{name}.{layer}" for layer in range(n_layers) for name in per_layer]
    return ["embed", *blocks, "final_norm"]


def resolve(name: str, module: nn.Module, family: str | None, n_layers: int) -> HookPoint:
    """Find a hook point by canonical name, TransformerLens name or raw path (`path`, `path:input`, `path:output`).

    Raises:
        HookError: the model has no such place; the message lists near names.
    """
    canonical = _from_transformer_lens(name)
    names = canonical_names(family, n_layers)
    if canonical in names and family is not None:
        kind, _, layer = canonical.partition(".")
        path, _, side = FAMILIES[family][kind].format(layer=layer).partition(":")
        return HookPoint(canonical, path, "input" if side == "input" else "output")
    path, _, side = name.partition(":")
    modules = dict(module.named_modules())
    if path and path in modules and side in ("", "input", "output"):
        return HookPoint(name, path, "input" if side == "input" else "output")
    paths = [path for path in modules if path]
    near = difflib.get_close_matches(canonical, [*names, *paths], n=4, cutoff=0.5)
    layers = f" Layers are 0 to {n_layers - 1}." if re.fullmatch(r"[a-z_]+\.\d+", canonical) and n_layers else ""
    listing = f" Near: {', '.join(near)}." if near else f" Hook points: {', '.join((names or paths)[:12])}, ..."
    raise HookError(f"the model has no hook point {name!r}.{layers}{listing}")


def _from_transformer_lens(name: str) -> str:
    if name == "ln_final.hook_normalized":  # hook_embed is no alias of ours: it has no positions yet
        return "final_norm"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match and match[2] in TRANSFORMER_LENS:
        return f"{TRANSFORMER_LENS[match[2]]}.{match[1]}"
    return name
