"""Regions of the plane, by the latent that claims them."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from monosem.errors import MismatchError
from monosem.sae import SAE


def claimed_regions(sae: SAE, extent: float = 1.5, points: int = 200) -> Int[Tensor, "y x"]:
    """The strongest latent at every point of a square around 0, from -extent to extent; -1 where none fires.

    The first axis is the second coordinate, from below, as a picture drawn from its lower left corner has it.

    Raises:
        MismatchError: the SAE does not read vectors of two dimensions.
    """
    if sae.in_shape != (2,):
        raise MismatchError(f"regions of the plane need an SAE of two dimensions, this one reads {sae.in_shape}")
    line = torch.linspace(-extent, extent, points)
    y, x = torch.meshgrid(line, line, indexing="ij")
    with torch.no_grad():
        codes = sae.encode(torch.stack([x, y], -1).reshape(-1, 2).to(sae.W_enc.device)).to("cpu")
    strongest, latent = codes.to_dense().max(1)
    return torch.where(strongest > 0, latent, -1).reshape(points, points)
