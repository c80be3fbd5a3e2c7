"""The game: on which of several images (or passages) does a feature fire?"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Named
from monosem.explorer.shapes.feature import Example
from monosem.explorer.shapes.ratings import Share

ROUNDS = 10
LARGEST_SEED = 2**31 - 1


class GuessRound(TypedDict):
    """One round: where a feature fires, and what it may fire on; which feature it is is not told."""

    seed: int
    round: int
    rounds: int
    chance: float
    max: float | None
    shown: list[Example]
    options: list[Example]
    """With neither activations nor labels."""


class Guesses(BaseModel):
    """What a player has chosen in every round so far."""

    model_config = ConfigDict(extra="forbid")

    seed: int = Field(ge=0, le=LARGEST_SEED)
    choices: list[int] = Field(min_length=1, max_length=ROUNDS)


class GuessScore(TypedDict):
    """The last round solved, and the score of all so far."""

    right: int
    machine: int
    feature: Named
    options: list[Example]
    you: Share
    by_machine: Share
    machine_is: str
    """How the machine guesses, in words."""
    chance: float
    p: float
    """Of so many right guesses or more by chance."""
