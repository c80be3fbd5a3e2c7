"""Two answers, what a reward model gives them, and the features that make the difference."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Words
from monosem.explorer.shapes.doctor import Known


class Rewarded(TypedDict):
    """A prompt with an answer, token by token."""

    texts: list[str]
    first: int
    """Number of the answer's first token."""
    reward: float
    features: float
    """The part of the reward that goes away without all features."""


class RewardFeature(Known):
    """A feature of either answer."""

    parts: tuple[float, float]
    """Of each reward."""
    by_token: tuple[list[tuple[int, float, float]], list[tuple[int, float, float]]]
    """In each text: token, activation, part of the reward."""


class Rewards(TypedDict):
    """Two answers side by side."""

    model: str
    answers: tuple[Rewarded, Rewarded]
    features: list[RewardFeature]
    """Those whose parts differ most."""
    total: int
    """How many fire in either."""


class AskedRewards(BaseModel):
    """A prompt and two answers."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[Words, Field(max_length=100_000)] = ""
    answers: tuple[
        Annotated[Words, Field(min_length=1, max_length=100_000)],
        Annotated[Words, Field(min_length=1, max_length=100_000)],
    ]
    chat: bool = True
    """Whether the prompt is said through the model's template, if it has one."""
    top: int = Field(default=40, ge=1, le=500)
