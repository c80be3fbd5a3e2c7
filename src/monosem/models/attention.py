"""What lies inside attention: queries, keys, values and the pattern, of any model that transformers attends for.

Between its matrices a transformers model leaves attention to a function that it looks up by name at every call
(`transformers.AttentionInterface`). A layer that is watched finds ours there, for as long as it is watched; every other
layer, and this one afterwards, goes on as before. Ours calls the function that the model would have called, so that no
bit changes; only of a pattern that comes back changed it mixes the values itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
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
    own: str = ""
    """The name of the function that its config asks for."""
    hooks: list[Any] = field(default_factory=list[Any])

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
        if not any(watched.functions.values()):
            for hook in watched.hooks:
                hook.remove()
            del _WATCHED[self.module]


def attends(module: nn.Module) -> bool:
    """Whether a module leaves attention to a function of that register."""
    home = _home(module)
    return hasattr(getattr(module, "config", None), "_attn_implementation") and home is not None


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
    if not attends(module):
        raise HookError(
            f"{name}: {type(module).__name__} is no attention of a transformers model, which alone can be looked into"
        )
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    if module not in _WATCHED:
        watched = _WATCHED[module] = Watched()
        watched.hooks = [
            module.register_forward_pre_hook(_begin),
            module.register_forward_hook(_end, always_call=True),
        ]
    _WATCHED[module].functions.setdefault(inner, []).append(function)
    return Handle(module, inner, function)


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
    if not watched.functions.get("pattern"):
        return output, as_used
    if as_used is None:
        as_used = pattern_of(module, query, key, attention_mask, watched.own, options)
    pattern = watched.asked("pattern", as_used.clone())
    if torch.equal(pattern, as_used) and not pattern.requires_grad:
        return output, as_used
    mixed = pattern.to(value.dtype) @ value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
    return mixed.transpose(1, 2).contiguous(), pattern


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
        raise HookError(
            f"the attention of {type(module).__name__} is {own!r}, which does not tell its pattern: "
            "load the model with attn_implementation='eager'"
        )
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
