"""Hook points: places in a model by canonical name, TransformerLens name or raw module path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from monosem.errors import HookError

Side = Literal["input", "output"]

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


def resolve(name: str, module: nn.Module, places: Mapping[str, str]) -> HookPoint:
    """Find a hook point by canonical name, TransformerLens name or raw path (`path`, `path:input`, `path:output`).

    Args:
        name: the name to look for.
        module: where raw paths are looked up.
        places: canonical names and the paths of these, `hook_table(module, ...)`.

    Raises:
        HookError: the model has no such place; the message lists near names.
    """
    canonical = _from_transformer_lens(name)
    if canonical in places:
        path, _, side = places[canonical].partition(":")
        return HookPoint(canonical, path, "input" if side == "input" else "output")
    path, _, side = name.partition(":")
    modules = dict(module.named_modules())
    if path and path in modules and side in ("", "input", "output"):
        return HookPoint(name, path, "input" if side == "input" else "output")
    raise HookError(_unknown(name, canonical, list(places), [path for path in modules if path]))


def _unknown(name: str, canonical: str, names: list[str], paths: list[str]) -> str:
    near = difflib.get_close_matches(canonical, [*names, *paths], n=4, cutoff=0.5)
    last = max((int(layer) for layer in re.findall(r"\.(\d+)$", "\n".join(names), re.MULTILINE)), default=None)
    layered = last is not None and re.fullmatch(r"[a-z_]+\.\d+", canonical)
    layers = f" Layers are 0 to {last}." if layered else ""
    listing = f" Near: {', '.join(near)}." if near else f" Hook points: {', '.join((names or paths)[:12])}, ..."
    return f"the model has no hook point {name!r}.{layers}{listing}"


def _from_transformer_lens(name: str) -> str:
    if name == "ln_final.hook_normalized":  # hook_embed is no alias of ours: it has no positions yet
        return "final_norm"
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    if match and match[2] in TRANSFORMER_LENS:
        return f"{TRANSFORMER_LENS[match[2]]}.{match[1]}"
    return name
