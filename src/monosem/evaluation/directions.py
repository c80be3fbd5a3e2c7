"""What a dictionary's directions say by themselves: how near each is to another, and to what it reads with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.analysis.cosines import nearest, unit_rows
from monosem.intervals import Interval
from monosem.sae import SAE

MEASURED, SAMPLE = 16_384, 4_096
"""Of more latents than the first, a random sample of the second is compared with all; their means have an interval."""
ULTRA_RARE = 1e-5
"""Latents that are on less often than this, or never."""


@torch.no_grad()
def max_cosines(
    rows: Float[Tensor, "n d"],
    others: Float[Tensor, "m d"] | None = None,
    *,
    sign: bool = True,
    chosen: Int[Tensor, " k"] | None = None,
) -> Float[Tensor, " k"]:
    """The largest cosine of each row with any of the others; without others, with any of the rest.

    As `analysis.cosines.nearest`, which says which, too.

    Raises:
        MismatchError: they have other widths.
    """
    return nearest(rows, others, sign=sign, chosen=chosen).cosines


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
