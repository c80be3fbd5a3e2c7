"""Which directions are near which: cosines of many with many, a tile at a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.errors import MismatchError
from monosem.intervals import Interval
from monosem.sae import SAE

TILE_ENTRIES = 2**24
"""Cosines that are held at a time."""


class Nearest(NamedTuple):
    """Of each row the largest cosine with another, and which that is; NaN and -1 where there is none."""

    cosines: Float[Tensor, " k"]
    indices: Int[Tensor, " k"]


def unit_rows(rows: Tensor) -> Float[Tensor, "n d"]:
    """Rows of norm 1, those of several sources laid end to end; zeros stay."""
    rows = rows.detach().float().flatten(1)
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)


@torch.no_grad()
def nearest(
    rows: Float[Tensor, "n d"],
    others: Float[Tensor, "m d"] | None = None,
    *,
    sign: bool = True,
    chosen: Int[Tensor, " k"] | None = None,
) -> Nearest:
    """The nearest of the others to each row; without others, of the rest.

    Args:
        rows: of norm 1.
        others: of norm 1.
        sign: whether opposite directions count as far apart; else as the same one.
        chosen: of which rows, if not of all.

    Raises:
        MismatchError: they have other widths.
    """
    against = rows if others is None else others.to(rows.device)
    if rows.shape[1] != against.shape[1]:
        raise MismatchError(
            f"directions of width {rows.shape[1]} and {against.shape[1]} have no cosines: compare dictionaries of one "
            "hook point"
        )
    numbers = torch.arange(len(rows), device=rows.device) if chosen is None else chosen.to(rows.device)
    found = torch.full((len(numbers),), math.nan, dtype=rows.dtype, device=rows.device)
    which = torch.full((len(numbers),), -1, dtype=torch.int64, device=rows.device)
    if not len(against) or (others is None and len(rows) < 2):
        return Nearest(found, which)
    step = max(1, TILE_ENTRIES // len(against))
    for start in range(0, len(numbers), step):
        own = numbers[start : start + step]
        cosines = rows[own] @ against.T
        cosines = cosines if sign else cosines.abs()
        if others is None:
            cosines[torch.arange(len(own), device=rows.device), own] = -torch.inf
        found[start : start + step], which[start : start + step] = cosines.max(1)
    return Nearest(found, which)


def random_directions(n: int, like: Float[Tensor, "m d"] | int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Random rows of norm 1: of a width, or of mean and covariance of other rows, before their norms are made 1."""
    if isinstance(like, int):
        return unit_rows(torch.randn(n, like, generator=generator))
    mean = like.double().mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(like.double().T))
    drawn = torch.randn(n, like.shape[1], generator=generator, dtype=torch.float64)
    return unit_rows(mean + drawn * values.clamp_min(0).sqrt() @ vectors.T)


def over_latents(values: Tensor) -> Interval:
    """A mean and its 95 % interval, for latents as a sample of those that training could have found."""
    values = values.detach().double().flatten()
    if len(values) < 2:
        return Interval(float(values.mean()) if len(values) else math.nan)
    mean, half = float(values.mean()), 1.959964 * float(values.std()) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def require_one_place(small: SAE, large: SAE) -> None:
    """Ask whether the directions of two dictionaries are of one place, before they are compared.

    Raises:
        MismatchError: they are not.
    """
    mine, others = small.metadata, large.metadata
    for what, own, other in (
        ("hook points", mine.target_hook or mine.hook, others.target_hook or others.hook),
        ("models", mine.model_fingerprint, others.model_fingerprint),
    ):
        if own is not None and other is not None and own != other:
            raise MismatchError(f"the two dictionaries are of different {what}, {own} and {other}: take two of one")
    if small.out_shape != large.out_shape:
        widths = " and ".join(" x ".join(map(str, sae.out_shape)) for sae in (small, large))
        raise MismatchError(f"the two dictionaries write activations of width {widths}: take two of one hook point")
