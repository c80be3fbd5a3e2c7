"""A continuation with edits beside the one without: how far they push, and how fluent it still is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.interventions.generate import Generation, Prompt, generate
from monosem.models import SubjectModel
from monosem.models.edits import Continued, Edit, EditContext

GRAM = 4
"""Tokens in a row by which repetition is told."""
MOST_NATS = 80
"""From which on a perplexity is said to be no larger."""


class Fluency(NamedTuple):
    """How likely and how varied a continuation is."""

    surprise: float
    """Of its tokens, by the model without edits: their mean in nats; NaN of no tokens."""
    repetition: float
    """Share of its runs of four tokens that have stood in it before."""

    @property
    def perplexity(self) -> float:
        """Exp of the surprise."""
        return math.exp(min(self.surprise, MOST_NATS))


class Beside(NamedTuple):
    """Two continuations of one prompt, drawn with the same seed."""

    plain: Generation
    steered: Generation
    fluency: tuple[Fluency, Fluency]
    strength: dict[str, float]
    """By hook point: mean length of the changes over mean length of activations, on the steered text."""


def beside(model: SubjectModel, prompt: Prompt, edits: Sequence[Edit], **options: Any) -> Beside:
    """Continue one prompt without and with edits; `options` are those of `generate`."""
    plain = generate(model, prompt, **options)
    steered = generate(model, prompt, edits=edits, **options)
    of_plain, of_steered = fluency(model, [plain, steered])
    return Beside(plain, steered, (of_plain, of_steered), strength(model, steered, edits))


@torch.no_grad()
def fluency(model: SubjectModel, texts: Sequence[Generation]) -> list[Fluency]:
    """Of continuations, in one forward pass without edits."""
    batch, is_new = as_batch(model, texts)
    logits = model(batch)[:, :-1].float().transpose(1, 2)
    surprise = torch.nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:], reduction="none")
    means = (surprise * is_new).sum(1) / is_new.sum(1)
    return [Fluency(mean, repetition(text.tokens)) for mean, text in zip(means.tolist(), texts, strict=True)]


def as_batch(
    model: SubjectModel, texts: Sequence[Generation]
) -> tuple[dict[str, Tensor], Float[Tensor, "batch pos-1"]]:
    """Prompts and their continuations as one batch; 1 where the next token was written."""
    ids = [text.prompt_tokens + text.tokens for text in texts]
    width, pad = max(map(len, ids)), getattr(model.tokenizer, "pad_token_id", None) or 0
    batch = {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in ids], device=model.device),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=model.device),
    }
    column = torch.arange(1, width, device=model.device)
    first = torch.tensor([len(text.prompt_tokens) for text in texts], device=model.device)
    return batch, ((column >= first[:, None]) & batch["attention_mask"][:, 1:].bool()).float()


def repetition(tokens: Sequence[int]) -> float:
    """The share of runs of four tokens that have stood before."""
    runs = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


@torch.no_grad()
def strength(model: SubjectModel, text: Generation, edits: Sequence[Edit]) -> dict[str, float]:
    """How far edits move activations where they do, at each hook point, relative to the length of activations."""
    hooks = list(dict.fromkeys(hook for edit in edits for hook in edit.hooks))
    prompt = torch.tensor([text.prompt_tokens], device=model.device)
    written = torch.tensor([text.tokens], dtype=prompt.dtype, device=model.device)
    seen: dict[str, list[Tensor]] = {hook: [] for hook in hooks}
    looks = [_Look(hook, seen[hook]) for hook in hooks]
    before, model.continued = model.continued, Continued(prompt.shape[1], torch.tensor([prompt.shape[1]]))
    try:
        with model.edit([*looks, *edits, *looks]):
            model(torch.cat([prompt, written], dim=1))
    finally:
        model.continued = before
    shares = {hook: _share(old, new) for hook, (old, new) in seen.items()}
    return {hook: share for hook, share in shares.items() if share} or shares


def _share(old: Tensor, new: Tensor) -> float:
    moved = (new - old).norm(dim=-1)
    return float(moved[moved > 0].mean() / old.norm(dim=-1).mean()) if bool((moved > 0).any()) else 0.0


class _Look:
    """An edit that changes nothing and keeps what it sees; not the first token, whose length is out of proportion."""

    def __init__(self, hook: str, seen: list[Tensor]) -> None:
        self.hooks, self._seen = [hook], seen

    def apply(self, x: Tensor, context: EditContext) -> Tensor:
        self._seen.append(x[:, 1:].float())
        return x
