"""Prompts read and mended by their features, and how strongly a feature may be steered."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Named, Words

Answer = Annotated[Words, Field(max_length=100_000)]


class Known(Named):
    """A feature, and its largest activation where it was harvested."""

    max: float | None


class Unusual(TypedDict):
    """A feature that fires more often in a text than it does elsewhere."""

    latent: int
    fires: int
    read: int
    """Tokens that the SAE has read."""
    baseline: float
    surprise: float
    strongest: float
    peak: int
    by_token: list[tuple[int, float]]
    """Of the text's own tokens, from 0."""


class Diagnosed(TypedDict):
    """A text, token by token, and what is unusual in it."""

    texts: list[str]
    unusual: list[Unusual]


class Diagnosis(TypedDict):
    """A prompt and its answers."""

    prompt: Diagnosed
    answers: list[Diagnosed]
    features: dict[str, Known]


class Word(TypedDict):
    """A word of a prompt and its share of what triggers a feature; null: what stands between words."""

    text: str
    share: float | None


class Candidate(TypedDict):
    """An edited prompt."""

    prompt: str
    edit: str
    lowered: float
    changed: float


class Avoidance(TypedDict):
    """Why features fire in a prompt, and prompts in which they fire less."""

    activation: float
    words: list[Word]
    candidates: list[Candidate]


class Dose(TypedDict):
    """What one strength does, a mean over the texts."""

    strength: float
    length: float
    effect: float
    surprise: float
    perplexity: float
    repetition: float
    text: str
    fluent: bool


class AskedDiagnosis(BaseModel):
    """A prompt and answers to it."""

    model_config = ConfigDict(extra="forbid")

    prompt: Words = Field(min_length=1, max_length=100_000)
    chat: bool = False
    """Whether it is said through the model's template."""
    answers: list[Answer] = Field(default=[], max_length=16)
    top: int = Field(default=12, ge=1, le=128)


class AskedAvoidance(BaseModel):
    """A prompt, and features that are not wanted in it."""

    model_config = ConfigDict(extra="forbid")

    prompt: Words = Field(min_length=1, max_length=100_000)
    latents: list[int] = Field(min_length=1, max_length=64)
    words: int = Field(default=3, ge=1, le=16)
    alternatives: int = Field(default=4, ge=0, le=16)


class AskedDoses(BaseModel):
    """How a feature is to be steered, and by what it is told whether it had an effect."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[Answer] = Field(min_length=1, max_length=16)
    words: list[Annotated[Words, Field(max_length=100)]] = Field(default=[], max_length=64)
    """Empty: the tokens that the feature promotes most."""
    strengths: list[Annotated[float, Field(ge=0, le=1e6)]] | None = Field(default=None, max_length=32)
    max_tokens: int = Field(default=30, ge=5, le=200)
    temperature: float = Field(default=0.9, ge=0, le=2)
    seed: int = Field(default=0, ge=0, lt=2**31)
