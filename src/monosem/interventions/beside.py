"""A continuation with edits beside the one without: how far they push, and how fluent it still is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from monosem.interventions.fluency import Fluency, fluency
from monosem.interventions.generate import Generation, Prompt, generate
from monosem.models import SubjectModel
from monosem.models.edits import Continued, Edit, EditContext


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
