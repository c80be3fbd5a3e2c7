"""One number of each context, that features are asked about: a loss, a logit, a difference, a direction, a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monosem.errors import ConfigError, DataError
from monosem.interventions.effects import log_likelihood
from monosem.models import EditContext, SubjectModel

Metric = Callable[[Any], Tensor]
Of = str | int | tuple[int | str, int | str] | tuple[str, Tensor] | Metric
"""A number of each context: "loss"; a token, by its id or text; two tokens, whose logits are subtracted; a hook point
and a direction there; or a function of what the model returns that gives one number, or one for each context."""


@dataclass
class Number:
    """One number of each context."""

    of: Callable[[Any, SubjectModel, Any], Tensor]
    """From what the model returns, the model, and its inputs."""
    hooks: dict[str, Callable[[Tensor, EditContext], Tensor]]
    """What must be looked at on the way."""


def number_of(model: SubjectModel, of: Of, position: int = -1) -> Number:
    """What is asked for, taken apart.

    Raises:
        ConfigError: it is not known what is asked for.
    """
    if callable(of):
        return Number(lambda out, _model, _inputs: _one_each(of(out)), {})
    if isinstance(of, str) and of == "loss":
        return Number(_loss, {})
    if isinstance(of, tuple) and len(of) == 2 and isinstance(of[1], Tensor):
        return _along(model, str(of[0]), of[1], position)
    tokens = [_token(model, one) for one in (of if isinstance(of, tuple) else (of,))]
    if len(tokens) > 2:
        raise ConfigError(f"of is one token, or two, got {len(tokens)}")

    def logits_of(out: Any, model: SubjectModel, inputs: Any) -> Tensor:
        logits = getattr(out, "logits", out)
        if logits.ndim == 2:
            last = logits
        else:
            at = _places(model, inputs, logits.shape[:2], position)
            last = logits[torch.arange(len(logits), device=logits.device), at]
        return last[:, tokens[0]] - (last[:, tokens[1]] if len(tokens) == 2 else 0)

    return Number(logits_of, {})


def _loss(out: Any, model: SubjectModel, inputs: Any) -> Tensor:
    given = model._arguments(inputs)
    tokens = given["input_ids"] if isinstance(given, Mapping) else given
    mask = (
        given.get("attention_mask", torch.ones_like(tokens)) if isinstance(given, Mapping) else torch.ones_like(tokens)
    )
    read = {"input_ids": tokens, "attention_mask": mask}
    predicted = (mask[:, 1:].bool() & mask[:, :-1].bool()).sum(1)
    return -log_likelihood(getattr(out, "logits", out), read).sum(1) / predicted.clamp(min=1)


def _along(model: SubjectModel, hook: str, direction: Tensor, position: int) -> Number:
    place = model.hook_point(hook).name
    seen: list[Tensor] = []

    def look(x: Tensor, _: EditContext) -> Tensor:
        if x.shape[-1] != len(direction):
            raise DataError(f"the direction has width {len(direction)}, {place} has width {x.shape[-1]}")
        seen.append(x)
        return x

    def of(_out: Any, model: SubjectModel, inputs: Any) -> Tensor:
        x = seen.pop()
        at = _places(model, inputs, x.shape[:2], position)
        return x[torch.arange(len(x), device=x.device), at] @ direction.to(x)

    return Number(of, {hook: look})


def _places(model: SubjectModel, inputs: Any, shape: tuple[int, ...], position: int) -> Tensor:
    """Which column of each context is meant."""
    given = model._arguments(inputs)
    mask = given.get("attention_mask") if isinstance(given, Mapping) else None
    mask = torch.ones(*shape, dtype=torch.int64, device=model.device) if mask is None else mask.long()
    first, lengths = mask.argmax(1), mask.sum(1)
    at = position + (lengths if position < 0 else 0)
    if bool(((at < 0) | (at >= lengths)).any()):
        raise DataError(f"position {position} is outside the text, which has {int(lengths.min())} tokens")
    return first + at


def _token(model: SubjectModel, token: Any) -> int:
    if isinstance(token, int) and not isinstance(token, bool):
        vocabulary = model.inputs.vocabulary
        if vocabulary is not None and not 0 <= token < vocabulary:
            raise ConfigError(f"{model.name} has no token {token}: its tokens are 0 to {vocabulary - 1}")
        return token
    if not isinstance(token, str):
        raise ConfigError(f'of is "loss", tokens, (hook, direction) or a function, got {token!r}')
    ids = model.tokens(token, prepend_bos=False)[0].tolist()
    if len(ids) != 1:
        raise ConfigError(f"{token!r} is {len(ids)} tokens, not one: the model reads it in pieces")
    return ids[0]


def _one_each(values: Any) -> Tensor:
    if not isinstance(values, Tensor) or values.ndim > 1 or not torch.is_floating_point(values):
        raise ConfigError("the function must give one number, or one for each context, as a tensor")
    return values.reshape(-1)
