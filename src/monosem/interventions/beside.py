"""A continuation with edits beside the one without: how far they push, and how fluent it still is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monosem.interventions.generate import Generation, Prompt, generate
from monosem.models import SubjectModel
from monosem.models.edits import Continued, Edit, EditContext

GRAM = 4
"""Tokens in a row by which repetition is told."""


class Fluency(NamedTuple):
    """How likely and how varied a continuation is."""

    perplexity: float
    """By the model without edits: exp of the mean surprise of its tokens, in nats; NaN of no tokens."""
    repetition: float
    """Share of its runs of four tokens that have stood in it before."""


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
    both = fluency(model, plain.prompt_tokens, plain.tokens), fluency(model, steered.prompt_tokens, steered.tokens)
    return Beside(plain, steered, both, strength(model, steered, edits))


@torch.no_grad()
def fluency(model: SubjectModel, prompt: Sequence[int], tokens: Sequence[int]) -> Fluency:
    """Of a continuation, in one forward pass without edits."""
    runs = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    repeated = 1 - len(set(runs)) / len(runs) if runs else 0.0
    if not tokens:
        return Fluency(float("nan"), repeated)
    logits = model(torch.tensor([[*prompt, *tokens]], device=model.device))[0, len(prompt) - 1 : -1].float()
    wanted = torch.tensor(tokens, device=logits.device)
    return Fluency(float(torch.nn.functional.cross_entropy(logits, wanted).exp()), repeated)


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
    return {hook: _share(old, new) for hook, (old, new) in seen.items()}


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
