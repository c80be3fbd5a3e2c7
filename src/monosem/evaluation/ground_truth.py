"""Recovery of planted features: does a dictionary hold the directions that the data were made of?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosem.errors import MismatchError
from monosem.intervals import DocumentSums, Interval
from monosem.sae import SAE


@dataclass(frozen=True)
class Recovery:
    """How well latents match true features. Intervals: 95 % bootstrap, over features (or latents)."""

    features: Interval
    """Mean over true features of the largest cosine with any latent: is everything found?"""
    latents: Interval
    """Mean over latents of the largest cosine with any true feature: is what is found true?"""
    matched: Interval
    """Share of true features that a latent of their own matches, with a cosine of `threshold` or more."""
    threshold: float


def recovery(
    sae: SAE | Float[Tensor, "n_latents d"], features: Float[Tensor, "n_features d"], threshold: float = 0.9
) -> Recovery:
    """Compare decoder rows, in raw units, with true features.

    For `matched`, latents and features are paired one to one so that their cosines have the largest sum (the Hungarian
    method). Compare with `random_recovery`: in few dimensions, with many latents, chance alone comes near.

    Args:
        sae: an SAE, or decoder rows.
        features: the truth.
        threshold: cosine from which a pair counts as a match.

    Raises:
        MismatchError: other widths.
    """
    from scipy.optimize import linear_sum_assignment

    rows = _unit(sae.decoder_directions() if isinstance(sae, SAE) else sae)
    truth = _unit(features)
    if rows.ndim != 2 or rows.shape[1] != truth.shape[1]:
        raise MismatchError(
            f"decoder rows of shape {tuple(rows.shape)} cannot be compared with features of width {truth.shape[1]}"
        )
    cosines = (truth @ rows.T).cpu().numpy()
    pairs = linear_sum_assignment(cosines, maximize=True)
    matched = np.zeros(len(truth))
    matched[pairs[0]] = cosines[pairs] >= threshold
    return Recovery(_mean(cosines.max(1)), _mean(cosines.max(0)), _mean(matched), threshold)


def random_recovery(
    n_latents: int, features: Float[Tensor, "n_features d"], threshold: float = 0.9, seed: int = 0
) -> Recovery:
    """What as many random directions recover: the control."""
    generator = torch.Generator().manual_seed(seed)
    return recovery(torch.randn(n_latents, features.shape[1], generator=generator), features, threshold)


def _unit(rows: Tensor) -> Tensor:
    rows = rows.detach().double()
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)


def _mean(values: np.ndarray) -> Interval:
    sums = DocumentSums()
    places = np.arange(len(values))
    sums.add("count", places, np.ones(len(values)))
    sums.add("value", places, values)
    return sums.interval(lambda s: s["value"] / s["count"])
