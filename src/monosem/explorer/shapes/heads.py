"""Attention heads: what each does, where it did most, what it reads and writes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Named, Words


class HeadScore(TypedDict):
    """One score of every head, by layer."""

    name: str
    meaning: str
    value: list[list[float | None]]
    low: list[list[float | None]]
    high: list[list[float | None]]
    chance: float | None


class HeadScores(TypedDict):
    """What every head does."""

    documents: int
    tokens: int
    scores: list[HeadScore]


class HeadsView(TypedDict):
    """The heads of a dictionary's model."""

    model: str
    why_not: str | None
    """Why they cannot be measured; null if they can."""
    measured: HeadScores | None
    """Null until somebody asks for it."""


class Beside(TypedDict):
    """Another head, and how strongly it is tied to this one."""

    layer: int
    head: int
    kind: Literal["query", "key", "value", "like_qk", "like_ov"]
    score: float


class HeadFeature(Named):
    """A feature that a head reads or writes."""

    strength: float


class HeadExample(TypedDict):
    """Where a head moved most in a document."""

    texts: list[str]
    """Tokens, to a few behind the query."""
    query: int
    key: int
    attention: list[float]
    """Of the query, to each token up to it."""


class HeadView(TypedDict):
    """One head."""

    layer: int
    head: int
    examples: list[HeadExample]
    reads: list[Beside]
    """Earlier heads that write what it reads."""
    read_by: list[Beside]
    alike: list[Beside]
    chance: float
    """Composition of two matrices at random, and how much a head reads of a direction at random."""
    queries: list[HeadFeature]
    keys: list[HeadFeature]
    values: list[HeadFeature]
    writes: list[HeadFeature]


class TokenLogit(TypedDict):
    """A token, and what is added to its logit."""

    text: str
    logit: float


class HeadPair(TypedDict):
    """What a pair of parts brings to the score; a feature's number, or what else it is."""

    query: Named | None
    query_is: str
    key: Named | None
    key_is: str
    value: float


class HeadLook(TypedDict):
    """Why it looks there."""

    key: int
    score: float
    pairs: list[HeadPair]
    rest: float
    """What all other pairs bring."""


class HeadPattern(TypedDict):
    """A head on a prompt."""

    texts: list[str]
    pattern: list[list[float]]
    """Of each query, to each key up to it."""
    query: int
    promoted: list[TokenLogit]
    """By what it writes at the query."""
    suppressed: list[TokenLogit]
    written: list[HeadFeature]
    """Features whose pre-activation at the query it changes most; of a dictionary that stands behind it."""
    look: HeadLook | None
    """Of a dictionary that stands where the head reads."""


class AskedHead(BaseModel):
    """A prompt, and where to look in it."""

    model_config = ConfigDict(extra="forbid")

    text: Annotated[Words, Field(min_length=1, max_length=20_000)]
    query: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    key: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
