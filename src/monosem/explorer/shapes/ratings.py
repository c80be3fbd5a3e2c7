"""What people say of explanations."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Words
from monosem.explorer.shapes.feature import Example


class ToRate(TypedDict):
    """A feature to rate: passages (the strongest, then random ones) and explanations whose authors are not told."""

    rater: str
    done: int
    total: int
    latent: int | None
    max: float | None
    options: list[str]
    passages: list[Example]


class RatingGiven(BaseModel):
    """What somebody says of a feature: which of the options fits, None if none does; whether it fires on one thing."""

    model_config = ConfigDict(extra="forbid")

    rater: Words = Field(min_length=1, max_length=100)
    latent: int = Field(ge=0)
    choice: int | None
    monosemantic: Literal["yes", "no", "unsure"]


class Share(TypedDict):
    """Some of several, with the 95 % interval (Wilson)."""

    hits: int
    n: int
    share: float
    low: float
    high: float


class ExplainerRated(TypedDict):
    """How often an explainer's text was chosen where it was shown; the mean automatic score on the same features."""

    explainer: str
    chosen: Share
    score: float | None
    scored: int


class Agreement(TypedDict):
    """Of pairs of raters of one feature, how many said the same, and how many would by chance."""

    of: str
    same: Share
    chance: float


class Rated(TypedDict):
    """What all ratings say together."""

    file: str
    raters: list[str]
    ratings: int
    explainers: list[ExplainerRated]
    none: Share
    monosemantic: Share
    agreement: list[Agreement]
