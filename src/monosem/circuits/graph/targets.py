"""What a graph explains: logits, differences, directions, features, probes, the loss, a reward, at any position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.circuits.frozen.frozen import Frozen
from monosem.errors import ConfigError, DataError
from monosem.kernels import index_add_
from monosem.models.blocks import matrix
from monosem.models.families import main_config

MOST_LOGITS, ENOUGH = 10, 0.95
"""Without a target: the likeliest next tokens, so many at most, and no more than have this probability together."""

Target = str | int | tuple[Any, ...] | None
"""A token by id or text; two of them (the difference of their logits); `(hook, direction)`, a probe `(hook, direction,
bias)`; `("feature", hook, latent)`; "loss"; "reward"; None for the likeliest next tokens."""


@dataclass
class Goal:
    """One number that a row adds up to: vectors read at one site, at one or several positions, and a constant."""

    label: str
    site: int
    positions: Int[Tensor, " n"] = field(repr=False)
    vectors: Float[Tensor, "n d"] = field(repr=False)
    constant: float = 0.0
    probability: float | None = None
    weight: float = 1.0
    """How much it counts among several."""
    hook: str = "logits"
    latent: int = -1
    """A token's id, or a latent."""
    last: int = -1
    """The position that it is shown at."""

    def value(self, frozen: Frozen) -> float:
        """The number."""
        rows = frozen.sites[self.site].value[self.positions]
        return float((rows.double() * self.vectors.double()).sum()) + self.constant

    def cotangent(self, frozen: Frozen) -> Float[Tensor, "1 pos d"]:
        """By what it grows with its site."""
        found = self.vectors.new_zeros(1, int(self.positions.max()) + 1, self.vectors.shape[1])
        index_add_(found[0], self.positions, self.vectors)
        return found


def goals_of(frozen: Frozen, target: Target | Sequence[Target], position: int = -1) -> list[Goal]:
    """What is asked for as goals.

    Raises:
        ConfigError: it is not known what is meant.
        DataError: a position outside the prompt, a feature that is off there.
    """
    at = position + frozen.length if position < 0 else position
    if not 0 <= at < frozen.length:
        raise DataError(f"position {position} is outside the prompt, which has {frozen.length} tokens")
    if target is None:
        return _likeliest(frozen, at)
    several = target if isinstance(target, list) else [target]
    if not several:
        raise ConfigError("target is an empty list: name a token, or leave it out")
    return [_goal(frozen, one, at) for one in several]


def _goal(frozen: Frozen, target: Any, at: int) -> Goal:
    if target == "loss" and isinstance(target, str):
        return _loss(frozen)
    if target == "reward" and isinstance(target, str):
        return _reward(frozen, at)
    if isinstance(target, tuple) and len(target) == 3 and target[0] == "feature":
        return _feature(frozen, target[1], target[2], at)
    if isinstance(target, tuple) and len(target) in (2, 3) and isinstance(target[1], Tensor):
        return _direction(frozen, str(target[0]), target[1], at, float(target[2]) if len(target) == 3 else 0.0)
    head = _Head(frozen, at)
    if isinstance(target, tuple) and len(target) == 2:
        first, second = (_token(frozen, one) for one in target)
        return head.difference(first, second)
    return head.logit(_token(frozen, target))


def _token(frozen: Frozen, token: Any) -> int:
    model = frozen.model
    size = int(main_config(model.module).vocab_size)
    if isinstance(token, int) and not isinstance(token, bool):
        if not 0 <= token < size:
            raise ConfigError(f"there is no token {token}: the vocabulary has 0 to {size - 1}")
        return token
    if not isinstance(token, str):
        raise ConfigError(
            f"a target is a token, two tokens, (hook, direction), ('feature', hook, latent), 'loss' or 'reward', got "
            f"{token!r}"
        )
    ids = model.tokens(token, prepend_bos=False)[0].tolist()
    if len(ids) != 1:
        pieces = ", ".join(repr(model.tokenizer.decode([i])) for i in ids)
        raise ConfigError(f"{token!r} is not one token but {len(ids)}: {pieces}")
    return ids[0]


class _Head:
    """The matrix from the last norm to logits, at one position."""

    def __init__(self, frozen: Frozen, at: int) -> None:
        module: Any = frozen.model.module
        output = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
        if output is None:
            raise ConfigError(f"{frozen.model.name} has no head that predicts tokens: give a direction, or 'reward'")
        self.frozen, self.at = frozen, at
        weight, bias = matrix(output)
        factor = frozen.model.logit_scale
        self.weight = weight if factor == 1 else weight * factor
        self.bias = bias if bias is None or factor == 1 else bias * factor
        self.site = frozen.at["final_norm"]
        self.cap: float | None = getattr(main_config(module), "final_logit_softcapping", None)

    def mean(self) -> tuple[Tensor, float]:
        """The mean of all rows, and of biases: logits count beside their mean, which no probability depends on."""
        mean = self.weight.mean(0, dtype=torch.float64).to(self.frozen.dtype)
        return mean, 0.0 if self.bias is None else float(self.bias.double().mean())

    def logits(self) -> Float[Tensor, "pos vocabulary"]:
        """Before they are capped, where they are."""
        logits = self.frozen.sites[self.site].value @ self.weight.to(self.frozen.dtype).T
        return logits if self.bias is None else logits + self.bias.to(logits.dtype)

    def capped(self, logits: Tensor) -> Tensor:
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def goal(self, label: str, vector: Tensor, constant: float, **more: Any) -> Goal:
        at = torch.tensor([self.at], device=vector.device)
        return Goal(label, self.site, at, vector[None].to(self.frozen.dtype), constant, last=self.at, **more)

    def logit(self, token: int, probability: float | None = None, weight: float = 1.0) -> Goal:
        mean, middle = self.mean()
        bias = 0.0 if self.bias is None else float(self.bias[token])
        vector = self.weight[token].to(self.frozen.dtype) - mean
        if probability is None:
            whole = self.capped(self.logits()[self.at]).double().softmax(-1)
            probability = float(whole[token])
        label = said_token(self.frozen, token)
        return self.goal(label, vector, bias - middle, probability=probability, weight=weight, latent=token)

    def difference(self, first: int, second: int) -> Goal:
        bias = 0.0 if self.bias is None else float(self.bias[first] - self.bias[second])
        label = f"{said_token(self.frozen, first)} - {said_token(self.frozen, second)}"
        return self.goal(label, self.weight[first] - self.weight[second], bias, hook="difference")


def said_token(frozen: Frozen, token: int) -> str:
    """A token as text, or its number."""
    tokenizer = frozen.model.tokenizer
    return str(token) if tokenizer is None else str(tokenizer.decode([token]))


def _likeliest(frozen: Frozen, at: int) -> list[Goal]:
    head = _Head(frozen, at)
    chances = head.capped(head.logits()[at]).double().softmax(-1)
    top = chances.topk(min(MOST_LOGITS, len(chances)))
    enough = int((top.values.cumsum(0) < ENOUGH).sum()) + 1
    values, tokens = top.values[:enough].tolist(), top.indices[:enough].tolist()
    return [head.logit(token, chance, chance) for token, chance in zip(tokens, values, strict=True)]


def _loss(frozen: Frozen) -> Goal:
    """The slope of the mean cross-entropy by the last norm's output, times that output."""
    if frozen.length < 2:
        raise DataError("a prompt of one token has no loss")
    head = _Head(frozen, frozen.length - 1)
    logits = head.logits()[:-1]
    slope = head.capped(logits).softmax(-1)
    slope[torch.arange(len(slope)), frozen.tokens[0, 1:]] -= 1
    if head.cap is not None:
        slope = slope * (1 - torch.tanh(logits / head.cap).square())
    slope = slope / len(slope)
    constant = 0.0 if head.bias is None else float((slope @ head.bias.to(slope.dtype)).sum())
    vectors = slope @ head.weight.to(slope.dtype)
    places = torch.arange(len(vectors), device=vectors.device)
    return Goal("loss", head.site, places, vectors, constant, hook="loss", last=frozen.length - 1)


def _reward(frozen: Frozen, at: int) -> Goal:
    score = getattr(frozen.model.module, "score", None)
    if not isinstance(score, torch.nn.Module):
        raise ConfigError(f"{frozen.model.name} has no reward head (a module `score`): give a token or a direction")
    weight, bias = matrix(score)
    constant = 0.0 if bias is None else float(bias[0])
    places = torch.tensor([at], device=weight.device)
    vectors = weight[:1].to(frozen.dtype)
    return Goal("reward", frozen.at["final_norm"], places, vectors, constant, hook="reward", last=at)


def _site_of(frozen: Frozen, hook: str) -> tuple[str, int]:
    name = frozen.model.hook_point(hook).name
    place = frozen._canonical(name)
    if place not in frozen.at:
        raise ConfigError(f"no graph leads to {hook}: choose one of {', '.join(frozen.choices())}")
    return name, frozen.at[place]


def _direction(frozen: Frozen, hook: str, direction: Tensor, at: int, bias: float) -> Goal:
    name, site = _site_of(frozen, hook)
    width = frozen.sites[site].value.shape[1]
    if direction.shape != (width,):
        raise ConfigError(f"the direction has shape {tuple(direction.shape)}, {name} has width {width}")
    vectors = direction.detach().to(frozen.sites[site].value)[None]
    places = torch.tensor([at], device=vectors.device)
    return Goal(f"direction at {name}", site, places, vectors, bias, hook=name, last=at)


def _feature(frozen: Frozen, hook: str, latent: int, at: int) -> Goal:
    name = frozen.model.hook_point(hook).name
    for number, unit in enumerate(frozen.units):
        if name in (unit.name, unit.read):
            entries = ((unit.positions == at) & (unit.latents == latent)).nonzero()[:, 0]
            if not len(entries):
                places = unit.positions[unit.latents == latent].tolist()
                where = f"it is on at {', '.join(map(str, places[:8]))}" if places else "it is on nowhere"
                raise DataError(f"feature {latent} of {unit.name} is off at position {at}: {where}")
            vectors = unit.readers(entries).to(frozen.dtype)
            site = frozen.read_at[number]
            rows = frozen.sites[site].value[[at]]
            constant = float(unit.goals()[entries[0]].double() - (rows.double() * vectors.double()).sum())
            places = torch.tensor([at], device=vectors.device)
            return Goal(f"feature {latent}", site, places, vectors, constant, hook=unit.name, latent=latent, last=at)
    raise ConfigError(f"no dictionary stands at {hook}: there are {', '.join(unit.name for unit in frozen.units)}")
