"""How fluent a continuation is: how likely to the model as it is, and how little it repeats itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.interventions.generate import Generation
from monosem.models import SubjectModel

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
