"""What a dictionary must beat: PCA with as many components. (Others: the mean; `monosem.sae.control`.)"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class PCA:
    """The best reconstruction from k fixed directions."""

    def __init__(self, x: Float[Tensor, "rows d"], k: int) -> None:
        """Fit on raw activations. k is cut to the width."""
        x = x.double()
        self.mean = x.mean(0)
        centred = x - self.mean
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        self.k = min(k, x.shape[1])
        self.components = vectors[:, -self.k :]

    def __call__(self, x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        mean, components = self.mean.to(x.dtype), self.components.to(x.dtype)
        return mean + ((x - mean) @ components) @ components.T
