"""The model itself, run with sources changed: held still, with dictionaries that answer, or free.

- frozen: patterns, norm scales and everything that dictionaries and MLPs give stay; only what is changed moves.
- iterative: patterns and norm scales stay; dictionaries read what is there now, their errors stay.
- free: the model does what it does.

The run is of the model's own modules, so that a graph is tested against the model and not against itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.circuits.frozen.frozen import Frozen, Site
from monosem.circuits.frozen.pattern import Pattern
from monosem.circuits.frozen.steps import Norm, Scaled
from monosem.kernels import index_add_

Regime = Literal["frozen", "iterative", "free"]
REGIMES: tuple[Regime, ...] = ("frozen", "iterative", "free")
Function = Callable[[Tensor, Any], Tensor]


class Intervened:
    """Runs of one prompt with sources changed."""

    def __init__(self, frozen: Frozen) -> None:
        self.frozen, self.model = frozen, frozen.model
        self._sites: dict[str, list[int]] = {}
        for number, site in enumerate(frozen.sites):
            hook = self._hook(site.name)
            if hook is not None:
                self._sites.setdefault(hook, []).append(number)

    def _hook(self, name: str) -> str | None:
        if name.startswith("mlp_raw"):
            block = self.model.hook_point(f"resid_post.{name.rpartition('.')[2]}").path
            return f"{block}.mlp:output"
        if name == "resid_pre.0":
            return "embed"
        return name if name in self.model.hook_points else None

    @torch.no_grad()
    def run(self, changes: dict[int, Float[Tensor, "pos d"]], regime: Regime) -> dict[int, Float[Tensor, "pos d"]]:
        """Values at all sites that are hook points, with changes added at some sites.

        Args:
            changes: by site, what is added to what the model, or what stands in for it, has there.
            regime: what else may move.
        """
        values: dict[int, Tensor] = {}
        edits: dict[str, Function] = {}
        inputs: dict[str, Tensor] = {}
        if regime != "free":
            for path, norm in self._norms():
                edits[f"{path}:output"] = _held(inputs, path, norm)
            for layer in range(self.model.n_layers):
                step: Any = self.frozen.sites[self.frozen.at_of(f"attn_z.{layer}")].steps[0]
                edits[f"attn_pattern.{layer}"] = _whole(step.pattern)
        for hook, numbers in self._sites.items():
            edits[hook] = self._at(hook, numbers, changes, regime, values)
        if regime != "free":
            for path, _ in self._norms():
                edits[f"{path}:input"] = _kept(inputs, path)
        with self.model.edit(edits):
            self.model(self.frozen.tokens)
        return values

    def _norms(self) -> list[tuple[str, Norm]]:
        """Module paths of the norms, with the scales that are held."""
        return list(self.frozen.norms.items())

    def _at(
        self,
        hook: str,
        numbers: list[int],
        changes: dict[int, Tensor],
        regime: Regime,
        values: dict[int, Tensor],
    ) -> Function:
        """What stands at a hook point."""

        def function(x: Tensor, _: Any) -> Tensor:
            value = x[0].to(self.frozen.dtype)
            for number in numbers:
                site = self.frozen.sites[number]
                if regime != "free" and (site.features or site.error is not None):
                    value = self._filled(site, regime, values)
                if number in changes:
                    value = value + changes[number]
                values[number] = value
            return value[None].to(x.dtype)

        return function

    def _filled(self, site: Site, regime: Regime, values: dict[int, Tensor]) -> Tensor:
        """What a site has in the place of what the model put there."""
        if regime == "frozen" or not site.features:
            value = site.value
            for step in site.steps:
                if isinstance(step, Scaled):
                    moved = values[step.source] - self.frozen.sites[step.source].value
                    value = value + step.apply(moved[None])[0]
            return value
        value = torch.zeros_like(site.value) if site.error is None else site.error[1].clone()
        for number, write in site.features:
            read, unit = self.frozen.read_at[number], copy.copy(self.frozen.units[number])
            kept = self.frozen.kept[number]
            unit.look(values[read], kept)
            entries = torch.arange(len(unit.positions), device=value.device)
            for chunk in entries.split(16_384):
                index_add_(value, unit.positions[chunk], unit.written(write, chunk).to(value.dtype))
            bias, skip = unit.bias(write), unit.skip(write)
            value = value if bias is None else value + bias.to(value.dtype)
            if skip is not None:
                weight, inner, outer = (part.to(value.dtype) for part in skip)
                value = value + ((values[read] * inner) @ weight.T) * outer
        return value


def _whole(pattern: Pattern) -> Function:
    return lambda x, _: pattern.square(x.shape[-1])[None].to(x.dtype)


def _held(inputs: dict[str, Tensor], path: str, norm: Norm) -> Function:
    def function(x: Tensor, _: Any) -> Tensor:
        out = norm.apply(inputs[path].to(norm.weight.dtype))
        return (out if norm.bias is None else out + norm.bias).to(x.dtype)

    return function


def _kept(inputs: dict[str, Tensor], path: str) -> Function:
    def function(x: Tensor, _: Any) -> Tensor:
        inputs[path] = x
        return x

    return function
