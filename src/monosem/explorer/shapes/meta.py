"""What latents are made of."""

from __future__ import annotations

from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Named
from monosem.explorer.shapes.site import MeasuredColumn


class Weighted(Named):
    """A latent and a weight: its decoder row at norm 1 is about the sum of weights times directions of meta-latents."""

    weight: float


class MetaPart(TypedDict):
    """A meta-latent of a latent."""

    meta: int
    weight: float
    count: int
    others: list[Weighted]


class MadeOf(TypedDict):
    """What a latent is made of."""

    cosine: float
    parts: list[MetaPart]


class MetaLatent(TypedDict):
    """A meta-latent and its strongest latents."""

    meta: int
    count: int
    latents: list[Weighted]


class MetaExplained(TypedDict):
    """Shares of the variance of some rows that their meta-latents explain, of those trained on and those held out."""

    rows: str
    trained: MeasuredColumn
    held_out: MeasuredColumn


class MetaLatents(TypedDict):
    """All meta-latents of a dictionary, those of most latents first."""

    latents: int
    each: float
    explained: list[MetaExplained]
    metas: list[MetaLatent]
