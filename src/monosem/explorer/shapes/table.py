"""Rows of the table, and what a search finds."""

from __future__ import annotations

from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Named


class Row(Named):
    """A row of the table."""

    clarity: float | None
    count: int
    mean: float | None
    deviation: float | None
    max: float | None
    top_token: int | None
    top_token_text: str | None
    top_token_share: float | None
    peak_token: int | None
    peak_token_text: str | None
    decoder_norm: float
    nearest: int | None
    nearest_cosine: float | None
    encoder_cosine: float | None
    output_score: float | None
    confidence_change: float | None
    partner: int | None
    partner_lift: float | None
    logit_mean: float | None
    logit_deviation: float | None
    logit_skew: float | None
    logit_kurtosis: float | None
    promoted_text: str | None
    suppressed_text: str | None
    starred: bool


class Page(TypedDict):
    """Some rows of the table."""

    total: int
    offset: int
    rows: list[Row]


class WordEvidence(TypedDict):
    """How reliably a latent fires on a word; low and high: 95 % interval of the recall, itself where it was counted."""

    text: str
    occurrences: int
    fires: int
    recall: float
    low: float
    high: float
    strength: float
    share: float


class SearchPassage(TypedDict):
    """Some tokens that show what was asked for."""

    texts: list[str]
    activations: list[float]
    peak: int


class FiredOn(TypedDict):
    """A latent that fires on a word."""

    latent: int
    score: float
    word: WordEvidence
    passage: SearchPassage


class FoundRow(Row):
    """A row that a search has found."""

    score: float
    how: str
    why: str | None
    word: WordEvidence | None
    passage: SearchPassage | None


class Group(TypedDict):
    """All that were found one way; the kind of search that lists them, in pages."""

    how: str
    total: int
    kind: str | None


class Found(TypedDict):
    """What a search has found, in order."""

    query: str
    kind: str
    groups: list[Group]
    results: list[FoundRow]
    words: str | None


class FoundIn(TypedDict):
    """What a search has found in one of several dictionaries, or why it cannot look there."""

    name: str
    found: Found | None
    error: str | None


class FoundEverywhere(TypedDict):
    """What a search has found in all dictionaries."""

    query: str
    kind: str
    dictionaries: list[FoundIn]
