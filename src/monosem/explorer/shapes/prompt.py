"""A text through model and dictionary."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Named, Target, Words


class PromptToken(TypedDict):
    """A token, and (latent, activation, rarity) of each feature on it, strongest first."""

    token: int
    text: str
    special: bool
    features: list[tuple[int, float, float]]


class PromptFeature(Named):
    """A feature of a prompt."""

    max: float | None
    effect: float | None


class TokenChance(Target):
    """A token and its probability."""

    probability: float


class Prompt(TypedDict):
    """A text through model and dictionary."""

    text: str
    tokens: list[PromptToken]
    truncated: int
    features: dict[str, PromptFeature]
    next: list[TokenChance]
    target: Target | None
    refused: str | None
    choices: list[Target]


class Question(BaseModel):
    """A prompt."""

    model_config = ConfigDict(extra="forbid")

    text: Words = Field(min_length=1, max_length=100_000)
    top: int = Field(default=32, ge=1, le=128)
    """Features to give per token, the strongest."""
    target: Words | None = Field(default=None, max_length=200)
    """A next token, to rank features by their direct effect on it."""
    latents: list[int] | None = Field(default=None, max_length=1000)
    """Only these features, off or on; None: the strongest of all."""
