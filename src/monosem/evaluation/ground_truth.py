"""Recovery of planted features: does a dictionary hold the directions that the data were made of?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import NotNegative, Share, checked
from monosem.errors import DataError, MismatchError
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


@checked
def recovery(
    sae: SAE | Float[Tensor, "n_latents d"], features: Float[Tensor, "n_features d"], threshold: Share = 0.9
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
    cosines = cosines_with(sae.decoder_directions() if isinstance(sae, SAE) else sae, features)
    pairs = assigned(cosines)
    matched = np.zeros(len(cosines))
    matched[pairs[0]] = cosines[pairs] >= threshold
    return Recovery(mean_of(cosines.max(1)), mean_of(cosines.max(0)), mean_of(matched), threshold)


def random_recovery(
    n_latents: int, features: Float[Tensor, "n_features d"], threshold: float = 0.9, seed: NotNegative = 0
) -> Recovery:
    """What as many random directions recover: the control."""
    generator = torch.Generator().manual_seed(seed)
    return recovery(torch.randn(n_latents, features.shape[1], generator=generator), features, threshold)


def cosines_with(rows: Float[Tensor, "n_latents d"], features: Float[Tensor, "n_features d"]) -> np.ndarray:
    """(n_features, n_latents).

    Raises:
        MismatchError: other widths.
        DataError: there are none, or some are not finite.
    """
    if rows.ndim != 2 or rows.shape[1] != features.shape[1]:
        raise MismatchError(
            f"decoder rows of shape {tuple(rows.shape)} cannot be compared with features of width {features.shape[1]}"
        )
    for name, each in (("decoder rows", rows), ("features", features)):
        if not len(each) or not bool(each.isfinite().all()):
            raise DataError(f"{name} must be one or more, of finite numbers")
    return (_unit(features) @ _unit(rows).T).cpu().numpy()


def assigned(cosines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns, paired one to one so that their cosines have the largest sum (the Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(cosines, maximize=True)


def _unit(rows: Tensor) -> Tensor:
    rows = rows.detach().double()
    return rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-30)


def mean_of(values: np.ndarray) -> Interval:
    """A mean over features (or latents), and its 95 % bootstrap interval over them; NaN of none."""
    if not len(values):
        return Interval(float("nan"))
    sums = DocumentSums()
    places = np.arange(len(values))
    sums.add("count", places, np.ones(len(values)))
    sums.add("value", places, values)
    return sums.interval(lambda s: s["value"] / s["count"])
