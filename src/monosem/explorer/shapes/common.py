"""What several kinds of answers are made of."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator
from typing_extensions import TypedDict

from monosem.text import well_formed

Words = Annotated[str, BeforeValidator(lambda words: well_formed(words) if isinstance(words, str) else words)]
"""Text that came as JSON: lone surrogates are read as U+FFFD."""


class Problem(TypedDict):
    """Every answer that is no success."""

    error: str


class Histogram(TypedDict):
    """Counts between edges."""

    edges: list[float]
    counts: list[int]


class ListCount(TypedDict):
    """A list of the notes."""

    name: str
    count: int


class Target(TypedDict):
    """A token."""

    token: int
    text: str


class Said(TypedDict):
    """What a latent means in a line, who says so, and how well it did: its score, or the mean of several."""

    text: str
    explainer: str
    side: Literal["input", "output"]
    value: float | None
    low: float | None
    high: float | None


class Named(TypedDict):
    """A latent and how to call it; the piece are characters of the name, at which it fires."""

    latent: int
    explanation: Said | None
    name: str | None
    name_piece: list[int] | None
    label: str | None
    rate: float
