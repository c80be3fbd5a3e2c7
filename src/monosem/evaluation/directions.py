"""What a dictionary's directions say by themselves: how near each is to another, and to what it reads with."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosem.errors import MismatchError
from monosem.intervals import Interval
from monosem.sae import SAE

TILE_ENTRIES = 2**24
"""Cosines that are held at a time."""
ULTRA_RARE = 1e-5
"""Latents that are on less often than this, or never."""


def unit_rows(rows: Tensor) -> Float[Tensor, "n d"]:
    """Rows of norm 1, those of several sources laid end to end; zeros stay."""
    rows = rows.detach().float().flatten(1)
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)


@torch.no_grad()
def max_cosines(
    rows: Float[Tensor, "n d"], others: Float[Tensor, "m d"] | None = None, *, sign: bool = True
) -> Float[Tensor, " n"]:
    """The largest cosine of each row with any of the others; without others, with any of the rest.

    Args:
        rows: of norm 1.
        others: of norm 1.
        sign: whether opposite directions count as far apart; else as the same one.

    Raises:
        MismatchError: they have other widths.
    """
    against = rows if others is None else others
    if rows.shape[1] != against.shape[1]:
        raise MismatchError(
            f"directions of width {rows.shape[1]} and {against.shape[1]} have no cosines: compare dictionaries of one "
            "hook point"
        )
    found = torch.full((len(rows),), math.nan, dtype=rows.dtype, device=rows.device)
    if not len(against) or (others is None and len(rows) < 2):
        return found
    step = max(1, TILE_ENTRIES // len(against))
    for start in range(0, len(rows), step):
        cosines = rows[start : start + step] @ against.T
        cosines = cosines if sign else cosines.abs()
        if others is None:
            own = torch.arange(len(cosines), device=rows.device)
            cosines[own, start + own] = -torch.inf
        found[start : start + step] = cosines.amax(1)
    return found


def one_way(rows: Float[Tensor, "n d"]) -> float:
    """The mean cosine between two different rows of norm 1: 1 where all point one way, about 0 where each its own.

    All pairs of n rows at once: (|sum of rows|^2 - n) / (n (n - 1)). NaN of fewer than two.
    """
    n = len(rows)
    if n < 2:
        return math.nan
    return float((rows.double().sum(0).pow(2).sum() - n) / (n * (n - 1)))


@torch.no_grad()
def direction_metrics(sae: SAE, other: SAE | None = None) -> dict[str, Interval]:
    """Means over all latents of what their weights say, in the model's own units. Nothing is sampled: no intervals.

    decoder_max_cosine, encoder_max_cosine: the largest cosine with another latent of the dictionary;
    encoder_decoder_cosine: of what a latent reads with what it writes, where it writes what it reads;
    cross_max_cosine: the largest cosine of a decoder row with one of `other`.

    Raises:
        MismatchError: the other writes to another width.
    """
    decoder, encoder = unit_rows(sae.decoder_directions()), unit_rows(sae.encoder_directions())
    found = {"decoder_max_cosine": _mean(max_cosines(decoder)), "encoder_max_cosine": _mean(max_cosines(encoder))}
    if sae.autoencodes:
        found["encoder_decoder_cosine"] = _mean((decoder * encoder).sum(-1))
    if other is not None:
        found["cross_max_cosine"] = _mean(max_cosines(decoder, unit_rows(other.decoder_directions())))
    return found


@torch.no_grad()
def rare_metrics(sae: SAE, rates: np.ndarray, rows: int) -> dict[str, Interval]:
    """Do the ultra-rare latents point one way? The mean cosine between any two of them, encoder rows and decoder rows.

    In ReLU SAEs there can be a cluster of latents that are hardly ever on and all read one direction (Bricken et al.
    2023, of which a third of a dictionary can be). Of a text too short to tell `ULTRA_RARE` from rare, those that never
    fired count.

    Args:
        sae: the dictionary.
        rates: (n_latents,) share of the rows on which each is on.
        rows: how many rows that was measured on.
    """
    rare = torch.from_numpy(np.flatnonzero(rates < max(ULTRA_RARE, 1 / max(1, rows))))
    found = {"ultra_rare_share": Interval(len(rare) / len(rates) if len(rates) else math.nan)}
    for side, directions in (("encoder", sae.encoder_directions), ("decoder", sae.decoder_directions)):
        found[f"ultra_rare_{side}_cosine"] = Interval(one_way(unit_rows(directions(rare))))
    return found


def _mean(values: Tensor) -> Interval:
    return Interval(float(values.double().mean()) if len(values) else math.nan)
