"""What features do."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Target, Words


class Ablated(TypedDict):
    """What ablating a feature does to each token of a context."""

    effects: list[float | None]
    """Change of the token's log-likelihood, in nats; None for the first, which nothing predicts."""
    document: list[int | None]
    position: list[int | None]


class Totals(TypedDict):
    """What features add to the logit of a next token, by all that they do."""

    target: Target
    totals: dict[str, float]
    """By latent: logit of the target relative to the mean logit, as it is less with the latent ablated."""


class AskedTotal(BaseModel):
    """A prompt, a next token, and the features whose total effects are wanted."""

    model_config = ConfigDict(extra="forbid")

    text: Words = Field(min_length=1, max_length=100_000)
    target: Words = Field(min_length=1, max_length=200)
    latents: list[int] = Field(min_length=1, max_length=256)
