"""The norms of a model, removed one by one: each divides by a constant from then on, until the constant is a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from monosem.errors import ConfigError
from monosem.models.blocks import Block, block_module, block_of, epsilon_of, norm_weights, value_rows
from monosem.models.families import main_config
from monosem.models.subject import SubjectModel
from monosem.training.norm_schedule import Removal

FAMILIES = ("gpt2", "gpt_neox", "phi", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3")
"""Of whose models it is proven, or of which it is known which norms stand in the way."""
EPSILON = 1e12
"""Of a norm that was removed: beside it no variance counts, so that it divides by its root."""
EPSILON_NAMES = ("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps")
"""What configs call the epsilon of all norms."""
ORDINARY, FIRST, SEPARATOR = 0, 1, 2
"""Kinds of positions, each with a scale of its own: the first of a context, separators behind it, all others."""


class Switches:
    """All norms of a model, in `with`: its module has others in their places there."""

    def __init__(self, model: SubjectModel) -> None:
        """Find them.

        Raises:
            ConfigError: the model has none, or of a kind or in places that are not known.
        """
        self.model, module = model, model.module
        block = block_of(model)
        if model.family not in FAMILIES:
            raise ConfigError(
                f"norms are removed in these families: {', '.join(FAMILIES)}; {model.name} is {model.family}"
            )
        last = model.hook_point("final_norm").path if "final_norm" in model.hook_points else ""
        self.norms: dict[str, SwitchedNorm] = {}
        for layer in range(model.n_layers):
            names = {"attention": block.attention_norm, "mlp": block.mlp_norm}
            for what, name in names.items():
                if name is not None:
                    self.norms[f"{what}.{layer}"] = SwitchedNorm(block_module(model, layer, name))
        self.norms["final"] = SwitchedNorm(module.get_submodule(last))
        self._require_all(block)
        self._readers = [
            (
                block_module(model, layer, block.values),
                value_rows(model, block, layer),
                self.norms[f"attention.{layer}"],
            )
            for layer in range(model.n_layers)
        ]
        self.paths = {key: _path(module, each.norm) for key, each in self.norms.items()}
        self.separators = torch.tensor(model._special.tolist(), dtype=torch.int64)

    def _require_all(self, block: Block) -> None:
        known = {id(each.norm) for each in self.norms.values()}
        others = [
            path
            for path, each in self.model.module.named_modules()
            if epsilon_of(each) is not None and id(each) not in known
        ]
        if others:
            raise ConfigError(
                f"{self.model.name} has norms in places that this cannot remove, as {others[0]}: it removes those "
                "before attention, before MLPs and before the head"
            )

    @contextmanager
    def within(self) -> Iterator[None]:
        """In this block the model's norms are those that can be switched."""
        module = self.model.module
        handles = [reader.register_forward_hook(_of_values(rows, norm)) for reader, rows, norm in self._readers]
        try:
            for key, path in self.paths.items():
                _put(module, path, self.norms[key])
            yield
        finally:
            for key, path in self.paths.items():
                _put(module, path, self.norms[key].norm)
            for handle in handles:
                handle.remove()

    def see(self, tokens: Int[Tensor, "batch pos"]) -> None:
        """Before a forward pass: which of its positions are of which kind."""
        kinds = torch.where(torch.isin(tokens, self.separators.to(tokens.device)), SEPARATOR, ORDINARY)
        kinds[:, 0] = FIRST
        for norm in self.norms.values():
            norm.kinds = kinds

    def remove(self, removals: Sequence[Removal], run: Callable[[], object]) -> None:
        """Remove some parts; `run` makes a forward pass, which says what scales are usual."""
        named = {_key(removal) for removal in removals}
        new = [key for key, norm in self.norms.items() if key in named and not norm.removed]
        for key in new:
            self.norms[key].seen = []
        if new:
            with torch.no_grad():
                run()
        for key in new:
            self.norms[key].measure()
        for removal in removals:
            kind = {"separators": SEPARATOR, "first": FIRST}.get(removal.part)
            for key, norm in self.norms.items():
                if kind is not None:
                    norm.sigma[kind] = norm.sigma[ORDINARY]
                elif key == _key(removal):
                    norm.removed.add(removal.part)

    def state(self) -> dict[str, Tensor]:
        """The scales, by norm."""
        return {f"sigma.{key}": norm.sigma for key, norm in self.norms.items()}

    def load(self, state: dict[str, Tensor], done: Sequence[Removal]) -> None:
        """Go on where another was, which had removed some parts."""
        for key, norm in self.norms.items():
            norm.sigma = state[f"sigma.{key}"]
            norm.removed = {removal.part for removal in done if _key(removal) == key}

    @torch.no_grad()
    def fold(self) -> None:
        """Make the scales weights: the model is one of its own class then, whose epsilon beats every variance."""
        for norm in self.norms.values():
            norm.fold()
        config = main_config(self.model.module)
        for name in EPSILON_NAMES:
            if hasattr(config, name):
                setattr(config, name, EPSILON)


class SwitchedNorm(nn.Module):
    """A norm, or what is left of it: centring where it centres, weight, bias, and a constant in its scale's place."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.parts = norm_weights(norm)
        self.sigma = torch.ones(3, device=self.parts.weight.device, dtype=self.parts.weight.dtype)
        """By what it divides positions of each kind, once removed."""
        self.removed = set[str]()
        self.kinds = torch.zeros(0, dtype=torch.int64)
        self.seen: list[tuple[Tensor, Tensor]] | None = None
        self.for_values: Tensor | None = None
        """What values read, where that is not what queries and keys do."""

    def forward(self, x: Float[Tensor, "batch pos d"]) -> Float[Tensor, "batch pos d"]:
        out = self.norm(x)
        if self.seen is not None:
            self.seen.append((self.parts.scale(x)[..., 0], self.kinds))
        self.for_values = None
        if not self.removed:
            return out
        bias: Any = getattr(self.norm, "bias", None)
        bias = 0 if bias is None else bias
        held = bias + (out - bias) * (self.parts.scale(x) / self.sigma[self.kinds][..., None])
        if self.removed == {"queries and keys"}:
            self.for_values = out
        return held.to(out.dtype)

    def measure(self) -> None:
        """Take the mean scale of each kind of position that was seen; of one that was not, that of the kind before."""
        seen, self.seen = self.seen or [], None
        scales, kinds = (torch.cat([part[i].flatten() for part in seen]) for i in range(2))
        for kind in (ORDINARY, FIRST, SEPARATOR):
            of_kind = scales[kinds == kind]
            self.sigma[kind] = of_kind.mean() if len(of_kind) else self.sigma[max(kind - 1, 0)]

    def fold(self) -> None:
        weight: Tensor = self.norm.weight  # type: ignore[assignment]
        parts = norm_weights(self.norm)
        offset = (parts.weight * max(1.0, parts.epsilon) ** 0.5 - weight).mean().round()  # 1 in families of 1 + weight
        weight.copy_((weight + offset) * (EPSILON**0.5 / self.sigma[ORDINARY]) - offset)
        for name in ("eps", "variance_epsilon"):
            if hasattr(self.norm, name):
                setattr(self.norm, name, EPSILON)


def _key(removal: Removal) -> str:
    """The norm that a removal is of, where there is one; where MLPs have none of their own, they follow attention's."""
    if removal.layer is None:
        return removal.part
    return f"{'mlp' if removal.part == 'mlp' else 'attention'}.{removal.layer}"


def _of_values(rows: Bool[Tensor, " d_out"], norm: SwitchedNorm) -> Callable[..., Tensor | None]:
    def hook(module: Any, _args: Any, out: Tensor) -> Tensor | None:
        if norm.for_values is None:
            return None
        return torch.where(rows.to(out.device), module.forward(norm.for_values), out)

    return hook


def _path(module: nn.Module, part: nn.Module) -> str:
    return next(path for path, each in module.named_modules() if each is part)


def _put(module: nn.Module, path: str, part: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, part)
