"""One prompt's forward pass, held still: sites in their order, linear steps between them, and what fills the rest.

Attention patterns and norm scales are constants, and so is what an MLP gives where nothing stands in for it. Where a
dictionary does, its features, its bias, its linear path and its error fill the site in the place of what the model put
there. Values are those of the model; sums of sources give them back exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.circuits.frozen.pattern import HELD_BYTES, Pattern
from monosem.circuits.frozen.steps import Linear, Mix, Norm, Same, Scaled, Step
from monosem.circuits.frozen.units import DictionaryUnit, NeuronUnit, Unit
from monosem.errors import ConfigError
from monosem.interventions.base import reads
from monosem.kernels import index_add_
from monosem.models import EditContext, SubjectModel
from monosem.models.attention import keeping
from monosem.models.blocks import block_module, block_of, matrix, norm_weights, value_matrix


@dataclass
class Site:
    """A place in the pass, with its value and what comes to it."""

    name: str
    value: Float[Tensor, "pos d"]
    steps: list[Step] = field(default_factory=list[Step])
    """What it gets from earlier sites."""
    constants: list[tuple[str, Float[Tensor, "pos_or_1 d"]]] = field(default_factory=list[tuple[str, Tensor]])
    """Biases, by the name of their node."""
    features: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Units that write here, and which of their writings it is."""
    error: tuple[str, Float[Tensor, "pos d"]] | None = None
    """What is not explained, by the name of its nodes."""
    leaves: list[tuple[str, Float[Tensor, "pos d"]]] = field(default_factory=list[tuple[str, Tensor]])
    """What the pass begins with: "token", "position"."""

    @property
    def has_sources(self) -> bool:
        return bool(self.constants or self.features or self.leaves) or self.error is not None


class Frozen:
    """One prompt's pass held still, with units in it."""

    def __init__(self, model: SubjectModel, tokens: Int[Tensor, "1 pos"], units: Sequence[Unit]) -> None:
        """Run the model once and hold still what it did.

        Raises:
            ConfigError: the model's family is not known, or a unit lies where nothing linear leads.
        """
        self.model, self.tokens, self.block = model, tokens, block_of(model)
        self.dtype = torch.promote_types(next(model.module.parameters()).dtype, torch.float32)
        self.units = list(units)
        self.sites: list[Site] = []
        self.at: dict[str, int] = {}
        """Where a hook point's activations are read: behind what stands in for them."""
        self.norms: dict[str, Norm] = {}
        """By module path, with the scale that is held."""
        self.read_at: list[int] = [-1] * len(self.units)
        """The site that each unit reads."""
        self.kept: list[Tensor] = [torch.zeros(0, dtype=torch.bool)] * len(self.units)
        """The positions that each unit reads."""
        self._build()

    @property
    def length(self) -> int:
        return self.tokens.shape[1]

    def at_of(self, name: str) -> int:
        """The site that the model itself fills at a hook point, before anything stands in for it."""
        return next(number for number, site in enumerate(self.sites) if site.name == name)

    # Putting it together ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _build(self) -> None:
        model, layers = self.model, range(self.model.n_layers)
        hooks = ["embed", *(f"mlp_out.{i}" for i in layers)]
        if any(isinstance(unit, NeuronUnit) or unit.read.startswith("mlp_mid") for unit in self.units):
            hooks += [f"mlp_mid.{i}" for i in layers]
        paths = {layer: model.hook_point(f"attn_pattern.{layer}").path for layer in layers}
        with keeping({layer: model.module.get_submodule(path) for layer, path in paths.items()}) as attended:
            self._captured = {name: x[0].to(self.dtype) for name, x in model.capture(self.tokens, hooks).items()}
        self._patterns = [Pattern(attended[layer], self.dtype) for layer in layers]
        room = HELD_BYTES
        for pattern in self._patterns:
            room -= pattern.size
            if room >= 0:
                pattern.hold()
        self._by_write = self._writers()
        self._begin()
        for layer in layers:
            self._layer(layer)
        last = model.hook_point("final_norm").path
        self._add("final_norm", [self._norm(model.module.get_submodule(last), self.at["resid_pre"])])
        missing = [unit.read for unit, at in zip(self.units, self.read_at, strict=True) if at < 0]
        missing += [name for name in self._by_write if name not in self.at]
        if missing:
            raise ConfigError(f"no graph leads through {missing[0]}: choose one of {', '.join(self.choices())}")
        del self._captured

    def choices(self) -> list[str]:
        """The points at which dictionaries may stand, without their layers."""
        return list(dict.fromkeys(name.rpartition(".")[0] or name for name in self.at if "raw" not in name))

    def _writers(self) -> dict[str, list[tuple[int, int]]]:
        found: dict[str, list[tuple[int, int]]] = {}
        for number, unit in enumerate(self.units):
            for write, hook in enumerate(unit.writes):
                found.setdefault(self._canonical(hook), []).append((number, write))
        return found

    def _canonical(self, hook: str) -> str:
        """Of two names of one place the one used here."""
        point, _, layer = hook.partition(".")
        if hook == "embed":
            return "resid_pre.0"
        if point == "resid_post" and int(layer) + 1 < self.model.n_layers:
            return f"resid_pre.{int(layer) + 1}"
        if point == "mlp_raw" and self.block.after_mlp is None:
            return f"mlp_out.{layer}"
        if point == "resid_mid" and self.block.parallel:
            raise ConfigError(f"{hook}: attention and MLP of {self.model.name} lie side by side, nothing between them")
        return hook

    def _begin(self) -> None:
        embedding = self.model.module.get_input_embeddings()  # type: ignore[operator]
        whole = self._captured["embed"]
        tokens = embedding(self.tokens)
        if self.block.norm_of_tokens:
            tokens = self.model.module.get_submodule(self.model.hook_point("embed").path)(tokens)
        tokens = tokens[0].to(self.dtype)
        positions = whole - tokens
        site = Site("resid_pre.0", whole, leaves=[("token", tokens)])
        if bool(positions.abs().max() > 1e-6 * whole.abs().max()):
            site.leaves.append(("position", positions))
        self._place(site)
        self.at["resid_pre"] = self.at["resid_pre.0"]

    def _layer(self, layer: int) -> None:
        block, model, start = self.block, self.model, self.at["resid_pre"]
        weight, bias, kv_heads = value_matrix(model, block, layer)
        norm = self._norm_of(layer, block.attention_norm, start)
        mix = _mixed(norm, weight.to(self.dtype), _cast(bias, self.dtype), self._patterns[layer], kv_heads)
        self._add(f"attn_z.{layer}", [mix])
        output = block_module(model, layer, block.output)
        self._matrix(f"attn_raw.{layer}", f"attn_out.{layer}", self.at[f"attn_z.{layer}"], output)
        self._after(f"attn_raw.{layer}", f"attn_out.{layer}", layer, block.after_attention)
        attn_out = self.at[f"attn_out.{layer}"]
        if block.parallel:
            before = start
        else:
            self._add(f"resid_mid.{layer}", [Same(start, 0), Same(attn_out, 0)])
            before = self.at[f"resid_mid.{layer}"]
        beside = block.parallel and block.mlp_norm is None
        self._add(f"mlp_in.{layer}", [replace(norm) if beside else self._norm_of(layer, block.mlp_norm, before)])
        self._mlp(layer)
        mlp_out = self.at[f"mlp_out.{layer}"]
        parts: list[Step] = [Same(before, 0), Same(mlp_out, 0)]
        if block.parallel:
            parts.append(Same(attn_out, 0))
        name = f"resid_pre.{layer + 1}" if layer + 1 < model.n_layers else f"resid_post.{layer}"
        self._add(name, parts)
        self.at["resid_pre"] = self.at[name]

    def _mlp(self, layer: int) -> None:
        """What the MLP gives: filled by what stands in for it, or by an error alone."""
        block, out, raw = self.block, f"mlp_out.{layer}", f"mlp_raw.{layer}"
        writers = self._by_write.get(out, [])
        inside = [hook for hook in (f"mlp_mid.{layer}", raw) if hook in self._by_write]
        if inside == [raw]:  # neurons, with a norm behind
            module = block_module(self.model, layer, block.mlp_output)
            weight, bias = matrix(module)
            mid = self._captured[f"mlp_mid.{layer}"]
            value = mid @ weight.to(self.dtype).T + (0 if bias is None else bias.to(self.dtype))
            self._place(Site(raw, value))
        elif inside:
            mid = f"mlp_mid.{layer}"
            self._place(Site(mid, self._captured[mid], error=(f"mlp.{layer}", self._captured[mid])))
            self._matrix(raw, out, self.at[mid], block_module(self.model, layer, block.mlp_output))
        else:
            value = self._captured[out]
            rebuilt = any(self.units[number].rebuilds for number, _ in writers)
            opaque = (f"mlp.{layer}" if rebuilt else out, value)
            self._place(Site(out, value, error=None if writers and not rebuilt else opaque))
            return
        self._after(raw, out, layer, block.after_mlp)

    def _matrix(self, raw: str, out: str, source: int, module: torch.nn.Module) -> None:
        """An output matrix; its site has the name of what is added to the stream, unless a norm comes between."""
        weight, bias = matrix(module)
        behind = self.block.after_attention if out.startswith("attn") else self.block.after_mlp
        self._add(raw if behind else out, [Linear(source, 0, weight.to(self.dtype), _cast(bias, self.dtype))])

    def _after(self, raw: str, out: str, layer: int, norm: str | None) -> None:
        if norm is not None:
            self._add(out, [self._norm(block_module(self.model, layer, norm), self.at[raw])])

    def _norm_of(self, layer: int, name: str | None, source: int) -> Norm:
        """A norm inside a block, or what stands there where the stream is read as it is."""
        if name is not None:
            return self._norm(block_module(self.model, layer, name), source)
        width = self.sites[source].value.shape[1]
        ones = torch.ones(width, dtype=self.dtype, device=self.tokens.device)
        return Norm(source, 0, ones, None, ones.new_ones(self.length, 1), False)

    def _norm(self, module: torch.nn.Module, source: int) -> Norm:
        parts = norm_weights(module)
        parts = replace(parts, weight=parts.weight.to(self.dtype), bias=_cast(parts.bias, self.dtype))
        found = Norm(source, 0, parts.weight, parts.bias, parts.scale(self.sites[source].value), parts.centred)
        path = next(name for name, each in self.model.module.named_modules() if each is module)
        self.norms[path] = found
        return found

    def _add(self, name: str, steps: list[Step]) -> None:
        """A site that steps lead to."""
        value = steps[0].apply(self.sites[steps[0].source].value[None])[0]
        for step in steps[1:]:
            value = value + step.apply(self.sites[step.source].value[None])[0]
        constants: list[tuple[str, Tensor]] = []
        for step in steps:
            constant = step.constant()
            if constant is not None:
                value = value + constant
                constants.append((name, constant))
        self._place(Site(name, value, steps, constants))

    def _place(self, site: Site) -> None:
        """Put a site into the pass: units that predict it fill it, one that rebuilds it stands behind it."""
        number = len(self.sites)
        writers = self._by_write.get(site.name, [])
        predicting = [pair for pair in writers if not self.units[pair[0]].rebuilds]
        rebuilding = [pair for pair in writers if self.units[pair[0]].rebuilds]
        if predicting:
            site = self._filled(Site(site.name, site.value), predicting)
        for step in site.steps:
            step.to = number
        self.sites.append(site)
        self.at[site.name] = number
        for pair in rebuilding:
            self._look(pair[0], number)
            self.sites.append(self._filled(Site(site.name, site.value), [pair]))
            self.at[site.name] = len(self.sites) - 1
        for other, unit in enumerate(self.units):
            if not unit.rebuilds and self._canonical(unit.read) == site.name:
                self._look(other, self.at[site.name])

    def _look(self, number: int, at: int) -> None:
        unit = self.units[number]
        self.read_at[number] = at
        value = self.sites[at].value
        self.kept[number] = self._kept(unit, value)
        unit.look(value, self.kept[number])

    def _kept(self, unit: Unit, value: Float[Tensor, "pos d"]) -> Bool[Tensor, " pos"]:
        """The positions that a unit reads."""
        if not isinstance(unit, DictionaryUnit):
            return torch.ones(len(value), dtype=torch.bool, device=value.device)
        context: EditContext = replace(self.model._context((self.tokens,), {}), hook=unit.read)
        return reads(unit.sae.metadata, value[None], context)[0]

    def _filled(self, site: Site, writers: list[tuple[int, int]]) -> Site:
        """A site filled by units, with what they leave unexplained."""
        rest, exact = site.value.clone(), True
        for number, write in writers:
            unit = self.units[number]
            if self.read_at[number] < 0:
                raise ConfigError(f"{unit.name} writes before it has read {unit.read}")
            exact &= isinstance(unit, NeuronUnit)
            site.features.append((number, write))
            every = torch.arange(len(unit.positions), device=rest.device)
            for chunk in every.split(16_384):
                index_add_(rest, unit.positions[chunk], -unit.written(write, chunk).to(rest.dtype))
            bias, skip = unit.bias(write), unit.skip(write)
            if bias is not None:
                rest = rest - bias.to(rest.dtype)
                site.constants.append((unit.name if unit.rebuilds else site.name, bias.to(rest.dtype)))
            if skip is not None:
                path = Scaled(self.read_at[number], len(self.sites), *(part.to(rest.dtype) for part in skip))
                site.steps.append(path)
                rest = rest - path.apply(self.sites[path.source].value[None])[0]
        if exact:  # but for the rounding of norms within the model
            site.value = site.value - rest
        else:
            unit = self.units[writers[0][0]]
            site.error = (unit.name if unit.rebuilds else site.name, rest)
        return site

    # Going through it -------------------------------------------------------------------------------------------------

    def pull(
        self,
        site: int,
        cotangent: Float[Tensor, "batch pos d"],
        visit: Callable[[int, Float[Tensor, "batch pos d"]], None],
    ) -> None:
        """Take cotangents at one site backwards to all that feeds it, and show them at each site that has sources."""
        self._pull({site: cotangent}, visit)

    def pull_one(
        self,
        site: int,
        positions: Int[Tensor, " batch"],
        cotangent: Float[Tensor, "batch d"],
        visit: Callable[[int, Float[Tensor, "batch pos d"]], None],
        visit_one: Callable[[int, Float[Tensor, "batch d"]], None],
    ) -> None:
        """The same from one position each. What does not go through attention stays at that position all the way."""
        alone, waiting = {site: cotangent}, dict[int, Tensor]()
        for number in range(site, -1, -1):
            g = alone.pop(number, None)
            if g is not None:
                here = self.sites[number]
                if here.has_sources:
                    visit_one(number, g)
                for step in here.steps:
                    to = waiting if isinstance(step, Mix) else alone
                    _add_to(to, step.source, step.transpose_one(g, positions))
            self._back(number, waiting, visit)

    def _pull(self, waiting: dict[int, Tensor], visit: Callable[[int, Tensor], None]) -> None:
        for number in range(max(waiting), -1, -1):
            self._back(number, waiting, visit)

    def _back(self, number: int, waiting: dict[int, Tensor], visit: Callable[[int, Tensor], None]) -> None:
        """One site back, if anything waits there."""
        g = waiting.pop(number, None)
        if g is None:
            return
        here = self.sites[number]
        if here.has_sources:
            visit(number, g)
        for step in here.steps:
            _add_to(waiting, step.source, step.transpose(g))

    def push(self, changes: dict[int, Float[Tensor, "batch pos d"]]) -> dict[int, Float[Tensor, "batch pos d"]]:
        """Take changes at sites forwards: what changes at every site, all features as they are."""
        found: dict[int, Tensor] = {}
        for number, here in enumerate(self.sites):
            change = changes.get(number)
            for step in here.steps:
                if step.source in found:
                    moved = step.apply(found[step.source])
                    change = moved if change is None else change + moved
            if change is not None:
                found[number] = change
        return found


def _add_to(waiting: dict[int, Tensor], number: int, g: Tensor) -> None:
    waiting[number] = waiting[number] + g if number in waiting else g


def _mixed(norm: Norm, weight: Tensor, bias: Tensor | None, pattern: Pattern, kv_heads: int) -> Mix:
    """Attention's values with the norm before them in one matrix."""
    inner = weight * norm.weight
    if norm.centred:
        inner = inner - inner.mean(-1, keepdim=True)
    if norm.bias is not None:
        bias = weight @ norm.bias + (0 if bias is None else bias)
    return Mix(norm.source, 0, inner, bias, pattern, kv_heads, norm.scale)


def _cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)
