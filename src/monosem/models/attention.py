"""What lies inside attention: queries, keys, values and the pattern, of any model that transformers attends for.

Between its matrices a transformers model leaves attention to a function that it looks up by name at every call
(`transformers.AttentionInterface`). A layer that is watched finds ours there, for as long as it is watched; every other
layer, and this one afterwards, goes on as before. Ours calls the function that the model would have called, so that no
bit changes; only of a pattern that comes back changed it mixes the values itself.

GPT-J, GPT-Neo and BLOOM attend in methods of their own: ours stands in the place of one while it is watched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from monosem.errors import HookError

Inner = Literal["query", "key", "value", "pattern"]
INNER: tuple[Inner, ...] = ("query", "key", "value", "pattern")
NAME = "monosem"
"""What ours is called in the register of attention functions."""

Function = Callable[[Tensor], "Tensor | None"]
"""Is given what lies there; gives what shall stand in its place, or None."""


@dataclass
class Watched:
    """An attention module that is watched."""

    functions: dict[Inner, list[Function]] = field(default_factory=dict[Inner, list[Function]])
    keepers: list[Callable[[Looked], None]] = field(default_factory=list[Callable[["Looked"], None]])
    """Are given what its pattern is made of."""
    own: str = ""
    """The name of the function that its config asks for."""
    hooks: list[Any] = field(default_factory=list[Any])

    @property
    def idle(self) -> bool:
        """Whether nobody asks any longer."""
        return not self.keepers and not any(self.functions.values())

    def asked(self, inner: Inner, x: Tensor) -> Tensor:
        """What stands there after all functions have been asked, in the order in which they came."""
        for function in list(self.functions.get(inner, ())):
            new = function(x)
            x = x if new is None else new
        return x


_WATCHED: WeakKeyDictionary[nn.Module, Watched] = WeakKeyDictionary()


class Handle:
    """Takes a function away again."""

    def __init__(self, module: nn.Module, inner: Inner, function: Function) -> None:
        self.module, self.function = module, function
        self.inner: Inner = inner

    def remove(self) -> None:
        """Take it away; of the last one of a module, all traces."""
        watched = _WATCHED.get(self.module)
        if watched is None or self.function not in watched.functions.get(self.inner, ()):
            return
        watched.functions[self.inner].remove(self.function)
        _leave(self.module)


def _leave(module: nn.Module) -> None:
    """Take away all traces of a module that nobody asks any longer."""
    watched = _WATCHED[module]
    if watched.idle:
        for hook in watched.hooks:
            hook.remove()
        del _WATCHED[module]


def attends(module: nn.Module) -> bool:
    """Whether a module leaves attention to a function of that register, or to a method that is known."""
    return _registered(module) or _method(module) is not None


def _registered(module: nn.Module) -> bool:
    return hasattr(getattr(module, "config", None), "_attn_implementation") and _home(module) is not None


def _method(module: nn.Module) -> Literal["_attn", "_reshape"] | None:
    """The method in which queries, keys and values meet (GPT-J, GPT-Neo), or are told apart (BLOOM)."""
    if hasattr(module, "_attn") and hasattr(module, "attn_dropout") and "Flash" not in type(module).__name__:
        return "_attn"
    return "_reshape" if hasattr(module, "_reshape") and hasattr(module, "attention_dropout") else None


def scale_of(module: nn.Module) -> float:
    """By what the product of a query and a key, as they meet, is multiplied: the score before cap, mask and ALiBi."""
    if _method(module) == "_reshape":
        return module.inv_norm_factor  # type: ignore[return-value]
    if _method(module) == "_attn":
        return 1 / getattr(module, "scale_attn", 1.0)
    return 1.0 if type(module).__name__ == "OPTAttention" else module.scaling  # type: ignore[return-value]


def watch(module: nn.Module, inner: Inner, function: Function, name: str) -> Handle:
    """Call a function within a module's attention, and let what it gives stand there.

    Args:
        module: an attention module of a transformers model.
        inner: `query`, `key`, `value`: (batch, pos, heads x width), heads side by side, after rotary positions and
            norms, as they meet; keys and values by their own number of heads, of the tokens of this pass alone.
            `pattern`: (batch, heads, query, key), after the softmax; keys of earlier passes come first.
        function: what to call.
        name: of the place, for messages.

    Raises:
        HookError: it is no such module.
    """
    _watched(module, name).functions.setdefault(inner, []).append(function)
    return Handle(module, inner, function)


def _watched(module: nn.Module, name: str) -> Watched:
    """A module as it is watched, from now on if it was not."""
    if not attends(module):
        raise HookError(
            f"{name}: {type(module).__name__} is no attention of a transformers model, which alone can be looked into"
        )
    if module not in _WATCHED:
        watched = _WATCHED[module] = Watched()
        watched.hooks = _opened(module, watched)
    return _WATCHED[module]


def _opened(module: nn.Module, watched: Watched) -> list[Any]:
    """Let what is watched be seen; gives what takes that away again."""
    if _registered(module):
        from transformers.modeling_utils import AttentionInterface

        AttentionInterface.register(NAME, _attention)
        return [module.register_forward_pre_hook(_begin), module.register_forward_hook(_end, always_call=True)]
    if _method(module) == "_attn":
        return [_Instead(module, "_attn", _meeting(module, watched))]

    def pattern(_module: nn.Module, _args: Any, x: Tensor) -> Tensor:
        return _as_asked(watched, x)

    dropout: Any = module.attention_dropout
    return [_Instead(module, "_reshape", _told_apart(module, watched)), dropout.register_forward_hook(pattern)]


class _Instead:
    """A function in the place of a module's method, until it is taken away."""

    def __init__(self, module: nn.Module, name: str, function: Callable[..., Any]) -> None:
        self.module, self.name = module, name
        setattr(module, name, function)

    def remove(self) -> None:
        delattr(self.module, self.name)


def _meeting(module: nn.Module, watched: Watched) -> Callable[..., tuple[Tensor, Tensor]]:
    own: Any = getattr(type(module), "_attn")  # noqa: B009

    def attn(query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        n = query.shape[2]
        query, key = _shown(watched, "query", query, n), _shown(watched, "key", key, n)
        value = _shown(watched, "value", value, n)
        output, as_used = own(module, query, key, value, attention_mask)
        pattern = _as_asked(watched, as_used)
        return (output, as_used) if pattern is as_used else (pattern.to(value.dtype) @ value, pattern)

    return attn


def _told_apart(module: nn.Module, watched: Watched) -> Callable[[Tensor], tuple[Tensor, ...]]:
    own: Any = getattr(type(module), "_reshape")  # noqa: B009

    def reshape(fused: Tensor) -> tuple[Tensor, ...]:
        kinds: tuple[Inner, ...] = ("query", "key", "value")
        found = zip(kinds, own(module, fused), strict=True)
        return tuple(_shown(watched, kind, x, x.shape[2]) for kind, x in found)

    return reshape


def _as_asked(watched: Watched, as_used: Tensor) -> Tensor:
    """A pattern that is there as a whole, shown; itself, unless it comes back changed."""
    pattern = as_used
    if watched.functions.get("pattern"):
        pattern = watched.asked("pattern", as_used.clone())
        pattern = as_used if torch.equal(pattern, as_used) and not pattern.requires_grad else pattern
    _put_down(watched, Laid(pattern.detach()))
    return pattern


@dataclass(frozen=True)
class Attended:
    """What a causal attention has looked at in one pass, from which its pattern is made again, in parts.

    Queries and keys are kept, not the pattern: of a long text they are far smaller.
    """

    module: nn.Module = field(repr=False)
    query: Float[Tensor, "batch heads pos d"] = field(repr=False)
    key: Float[Tensor, "batch kv_heads pos d"] = field(repr=False)
    mask: Tensor | None = field(repr=False)
    own: str
    options: dict[str, Any] = field(repr=False)

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def length(self) -> int:
        return self.query.shape[2]

    @property
    def device(self) -> torch.device:
        return self.query.device

    def pattern(self, queries: Int[Tensor, " n"], n_keys: int) -> Float[Tensor, "batch heads n keys"]:
        """How some queries look at the first keys; no query may look at later ones."""
        mask = self.mask
        if mask is None:
            mask = queries[:, None] >= torch.arange(n_keys, device=queries.device)
        else:
            mask = mask[..., queries, :n_keys]
        query, key = self.query[:, :, queries], self.key[:, :, :n_keys]
        if self.own == "sdpa":
            return pattern_of(self.module, query, key, mask, self.own, self.options)
        home = _home(self.module)
        function = home.ALL_ATTENTION_FUNCTIONS.get_interface(self.own, home.eager_attention_forward)
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
        _, found = function(self.module, query, key, key[..., :1], mask, **self.options)
        if found is None:
            raise HookError(_silent(self.module, self.own))
        return found


@dataclass(frozen=True)
class Laid:
    """What an attention has looked at, as a whole: where somebody had changed it, or it is made in a method."""

    whole: Float[Tensor, "batch heads query key"] = field(repr=False)

    @property
    def heads(self) -> int:
        return self.whole.shape[1]

    @property
    def length(self) -> int:
        return self.whole.shape[2]

    @property
    def device(self) -> torch.device:
        return self.whole.device

    def pattern(self, queries: Int[Tensor, " n"], n_keys: int) -> Float[Tensor, "batch heads n keys"]:
        """How some queries look at the first keys."""
        return self.whole[:, :, queries, :n_keys]


Looked = Attended | Laid


@contextmanager
def keeping(modules: dict[Any, nn.Module]) -> Iterator[dict[Any, Looked]]:
    """Within this block every pass puts down what the attention modules look at, each under its key.

    Raises:
        HookError: one is no attention of a transformers model.
    """
    found: dict[Any, Looked] = {}
    keepers: list[tuple[nn.Module, Callable[[Looked], None]]] = []
    try:
        for key, module in modules.items():
            keeper = _putting_down(found, key)
            _watched(module, str(key)).keepers.append(keeper)
            keepers.append((module, keeper))
        yield found
    finally:
        for module, keeper in keepers:
            _WATCHED[module].keepers.remove(keeper)
            _leave(module)


def _putting_down(found: dict[Any, Looked], key: Any) -> Callable[[Looked], None]:
    def function(attended: Looked) -> None:
        found[key] = attended

    return function


def _begin(module: Any, _args: Any) -> None:
    watched = _WATCHED[module]
    if module.config._attn_implementation != NAME:
        watched.own = module.config._attn_implementation
        module.config._attn_implementation = NAME


def _end(module: Any, _args: Any, _output: Any) -> None:
    module.config._attn_implementation = _WATCHED[module].own


def _home(module: nn.Module) -> Any:
    """The Python module where a class of transformers finds its attention functions."""
    for kind in type(module).__mro__:
        home = sys.modules.get(kind.__module__)
        if hasattr(home, "ALL_ATTENTION_FUNCTIONS") and hasattr(home, "eager_attention_forward"):
            return home
    return None


def _attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads query d"],
    key: Float[Tensor, "batch kv_heads key d"],
    value: Float[Tensor, "batch kv_heads key d_value"],
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as the model does it, with what is watched shown and, where it comes back changed, replaced."""
    watched, new = _WATCHED[module], query.shape[2]
    query = _shown(watched, "query", query, new)
    key = _shown(watched, "key", key, new)
    value = _shown(watched, "value", value, new)
    home = _home(module)
    own = home.ALL_ATTENTION_FUNCTIONS.get_interface(watched.own, home.eager_attention_forward)
    output, as_used = own(module, query, key, value, attention_mask, **options)
    seen = Attended(module, query, key, attention_mask, watched.own, options)
    if not watched.functions.get("pattern"):
        _put_down(watched, seen)
        return output, as_used
    if as_used is None:
        as_used = pattern_of(module, query, key, attention_mask, watched.own, options)
    pattern = watched.asked("pattern", as_used.clone())
    if torch.equal(pattern, as_used) and not pattern.requires_grad:
        _put_down(watched, seen)
        return output, as_used
    _put_down(watched, Laid(pattern.detach()))
    mixed = pattern.to(value.dtype) @ value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return mixed.transpose(1, 2).contiguous(), pattern


def _put_down(watched: Watched, attended: Looked) -> None:
    if watched.keepers:
        kept = attended
        if isinstance(attended, Attended):
            kept = replace(attended, query=attended.query.detach().clone(), key=attended.key.detach().clone())
        for keeper in watched.keepers:
            keeper(kept)


def _shown(watched: Watched, inner: Inner, x: Float[Tensor, "batch heads pos d"], new: int) -> Tensor:
    """Show the last `new` positions. What comes back stands in the cache too, where keys and values are kept."""
    if not watched.functions.get(inner):
        return x
    recent = x[:, :, x.shape[2] - new :]
    flat = recent.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(2)
    heads = watched.asked(inner, flat).unflatten(2, (x.shape[1], x.shape[3])).transpose(1, 2)
    if not torch.is_grad_enabled():
        recent.copy_(heads)
        return x
    return torch.cat([x[:, :, : x.shape[2] - new], heads], dim=2)


def _silent(module: nn.Module, own: str) -> str:
    return (
        f"the attention of {type(module).__name__} is {own!r}, which does not tell its pattern: "
        "load the model with attn_implementation='eager'"
    )


def pattern_of(
    module: nn.Module,
    query: Float[Tensor, "batch heads query d"],
    key: Float[Tensor, "batch kv_heads key d"],
    mask: Tensor | None,
    own: str,
    options: dict[str, Any],
) -> Float[Tensor, "batch heads query key"]:
    """The softmax of scaled and masked scores that `sdpa` takes and does not tell; computed in float32 at least.

    A query that may see nothing (padding) gets zeros.

    Raises:
        HookError: the attention is another, or adds what this does not know.
    """
    if own != "sdpa" or options.get("position_bias") is not None:
        raise HookError(_silent(module, own))
    scale = options.get("scaling")
    exact = torch.promote_types(query.dtype, torch.float32)
    keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    scores = (query @ keys.transpose(2, 3)).to(exact) * (query.shape[-1] ** -0.5 if scale is None else scale)
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if mask is None and causal and query.shape[2] > 1:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype != torch.bool:
        scores, mask = scores + mask[..., : scores.shape[-1]], None
    if mask is None:
        return scores.softmax(-1).to(query.dtype)
    hidden = ~mask
    return scores.masked_fill(hidden, -torch.inf).softmax(-1).masked_fill(hidden, 0).to(query.dtype)
