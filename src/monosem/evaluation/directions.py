"""What a dictionary's directions say by themselves: how near each is to another, and to what it reads with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.errors import MismatchError
from monosem.intervals import Interval
from monosem.sae import SAE

TILE_ENTRIES = 2**24
"""Cosines that are held at a time."""
MEASURED, SAMPLE = 16_384, 4_096
"""Of more latents than the first, a random sample of the second is compared with all; their means have an interval."""
ULTRA_RARE = 1e-5
"""Latents that are on less often than this, or never."""


def unit_rows(rows: Tensor) -> Float[Tensor, "n d"]:
    """Rows of norm 1, those of several sources laid end to end; zeros stay."""
    rows = rows.detach().float().flatten(1)
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)


@torch.no_grad()
def max_cosines(
    rows: Float[Tensor, "n d"],
    others: Float[Tensor, "m d"] | None = None,
    *,
    sign: bool = True,
    chosen: Int[Tensor, " k"] | None = None,
) -> Float[Tensor, " k"]:
    """The largest cosine of each row with any of the others; without others, with any of the rest.

    Args:
        rows: of norm 1.
        others: of norm 1.
        sign: whether opposite directions count as far apart; else as the same one.
        chosen: of which rows, if not of all.

    Raises:
        MismatchError: they have other widths.
    """
    against = rows if others is None else others
    if rows.shape[1] != against.shape[1]:
        raise MismatchError(
            f"directions of width {rows.shape[1]} and {against.shape[1]} have no cosines: compare dictionaries of one "
            "hook point"
        )
    numbers = torch.arange(len(rows), device=rows.device) if chosen is None else chosen.to(rows.device)
    found = torch.full((len(numbers),), math.nan, dtype=rows.dtype, device=rows.device)
    if not len(against) or (others is None and len(rows) < 2):
        return found
    step = max(1, TILE_ENTRIES // len(against))
    for start in range(0, len(numbers), step):
        own = numbers[start : start + step]
        cosines = rows[own] @ against.T
        cosines = cosines if sign else cosines.abs()
        if others is None:
            cosines[torch.arange(len(own), device=rows.device), own] = -torch.inf
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
def direction_metrics(sae: SAE, others: Sequence[SAE] = ()) -> dict[str, Interval]:
    """Means over latents of what their weights say, in the model's own units.

    decoder_max_cosine, encoder_max_cosine: the largest cosine with another latent of the dictionary;
    encoder_decoder_cosine: of what a latent reads with what it writes, where it writes what it reads;
    cross_max_cosine: the largest cosine of a decoder row with one of another dictionary; the mean over these.

    Raises:
        MismatchError: another writes to another width.
    """
    decoder, encoder = unit_rows(sae.decoder_directions()), unit_rows(sae.encoder_directions())
    chosen = sampled(len(decoder))
    found = {
        "decoder_max_cosine": mean_of(max_cosines(decoder, chosen=chosen), chosen),
        "encoder_max_cosine": mean_of(max_cosines(encoder, chosen=chosen), chosen),
    }
    if sae.autoencodes:
        found["encoder_decoder_cosine"] = mean_of((decoder * encoder).sum(-1))
    if others:
        rows = decoder if chosen is None else decoder[chosen]
        each = [max_cosines(rows, unit_rows(other.decoder_directions())) for other in others]
        found["cross_max_cosine"] = mean_of(torch.stack(each).mean(0), chosen)
    return found


def sampled(n: int) -> Int[Tensor, " m"] | None:
    """Which latents to measure: None for all, else always the same sample."""
    if n <= MEASURED:
        return None
    return torch.from_numpy(np.sort(np.random.default_rng(0).choice(n, SAMPLE, replace=False)))


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


def mean_of(values: Tensor, chosen: Tensor | None = None) -> Interval:
    """The mean over latents; of a sample of them with its 95 % interval, of all without: nothing is sampled."""
    if not len(values):
        return Interval(math.nan)
    mean = float(values.double().mean())
    if chosen is None:
        return Interval(mean)
    half = 1.959964 * float(values.double().std()) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)
