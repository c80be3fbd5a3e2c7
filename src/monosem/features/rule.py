"""Rules: what a latent fires on, said so that it can be looked up in any text."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Clause(BaseModel):
    """Conditions on a token, all of which hold; what is not given is not asked. Case does not count in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: tuple[str, ...] = ()
    """The word that the token is of is one of these, in small letters."""
    kinds: tuple[str, ...] = ()
    """It is in one of these lists of words, by their names."""
    tokens: tuple[str, ...] = ()
    """The token's own text, spaces and capitals included, is one of these."""
    begins: str | None = None
    """How the word begins ..."""
    ends: str | None = None
    """... and ends."""
    capitals: Literal["first", "all", "none"] | None = None
    """Which letters of the word are capitals."""
    piece: Literal["first", "later"] | None = None
    """Whether the token begins the word."""
    behind: tuple[str, ...] = ()
    """The token right before it, in the same word, has one of these texts."""
    after: tuple[str, ...] = ()
    """The word before it is one of these ..."""
    after_kinds: tuple[str, ...] = ()
    """... or in one of these lists."""
    following: tuple[str, ...] = ()
    """One of these words stands somewhere among the ten before."""
    line_start: bool = False
    """It is the first word of a line."""
    positions: tuple[int, int] | None = None
    """The token's place in its context: from the first of these, before the second."""
    share: float = Field(default=0, ge=0, le=1)
    """Of the latent's firings that it holds for, in what the rule was made from."""


class Rule(BaseModel):
    """A latent fires where any of these clauses holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    clauses: tuple[Clause, ...]
