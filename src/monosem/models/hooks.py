"""Hook points: places in a model by canonical name, TransformerLens name or raw module path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from monosem.errors import ConfigError, HookError
from monosem.hook_names import from_transformer_lens
from monosem.models.attention import INNER, Inner

Side = Literal["input", "output", Inner]
SIDES: tuple[Side, ...] = ("input", "output", *INNER)


@dataclass(frozen=True)
class HookPoint:
    """A place in a model: the input or the output of one of its modules, or what lies within one of attention."""

    name: str
    """Canonical name, or the raw path."""
    path: str
    side: Side

    @property
    def is_pattern(self) -> bool:
        """Whether what lies there is (batch, heads, query, key), not (batch, pos, d)."""
        return self.side == "pattern"

    def require_rows(self) -> None:
        """See that there is a vector for each position.

        Raises:
            ConfigError: it is a pattern.
        """
        if self.is_pattern:
            beside = self.name.replace("attn_pattern", "attn_z")
            raise ConfigError(f"{self.name} has a number for every pair of tokens, no vector for each: read {beside}")


def resolve(name: str, module: nn.Module, places: Mapping[str, str]) -> HookPoint:
    """Find a hook point by canonical name, TransformerLens name or raw path (`path`, `path:input`, `path:output`;
    of attention modules also `:query`, `:key`, `:value`, `:pattern`).

    Of a path its end is enough where one module alone ends so: `layers.0.mlp` for `model.layers.0.mlp`.

    Args:
        name: the name to look for.
        module: where raw paths are looked up.
        places: canonical names and the paths of these, `hook_table(module, ...)`.

    Raises:
        HookError: the model has no such place; the message lists near names.
    """
    canonical = from_transformer_lens(name)
    if canonical in places:
        path, _, side = places[canonical].partition(":")
        return HookPoint(canonical, path, _side(side))
    path, _, side = name.partition(":")
    modules = dict(module.named_modules())
    if path and side in ("", *SIDES):
        ends = [path] if path in modules else [each for each in modules if each.endswith("." + path)]
        if len(ends) == 1:  # what stands before it may be left out where one module alone ends so
            return HookPoint(name, ends[0], _side(side))
    raise HookError(_unknown(name, canonical, list(places), [path for path in modules if path]))


def _side(name: str) -> Side:
    for side in SIDES:
        if side == name:
            return side
    return "output"


def _unknown(name: str, canonical: str, names: list[str], paths: list[str]) -> str:
    near = difflib.get_close_matches(canonical, [*names, *paths], n=4, cutoff=0.5)
    last = max((int(layer) for layer in re.findall(r"\.(\d+)$", "\n".join(names), re.MULTILINE)), default=None)
    layered = last is not None and re.fullmatch(r"[a-z_]+\.\d+", canonical)
    layers = f" Layers are 0 to {last}." if layered else ""
    listing = f" Near: {', '.join(near)}." if near else f" Hook points: {', '.join((names or paths)[:12])}, ..."
    return f"the model has no hook point {name!r}.{layers}{listing}"
