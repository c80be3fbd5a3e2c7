"""Two dictionaries beside each other."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Histogram

Kind = Literal["matched", "split", "merged", "missing"]


class Side(TypedDict):
    """One dictionary's latents beside another's."""

    dictionary: str
    other: str
    counts: dict[str, int]
    too_rare: int
    mean: float
    histogram: Histogram
    latents: list[int]
    matches: list[int]
    similarities: list[float]
    kinds: list[Kind]
    names: list[str]
    match_names: list[str]


class Comparison(TypedDict):
    """Two dictionaries."""

    a: str
    b: str
    by: Literal["decoder", "activations"]
    method: str
    caution: str | None
    threshold: float
    sides: tuple[Side, Side]
