"""What a dictionary must beat: the mean, PCA with as many components, an SAE that never learned."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.errors import DataError
from monosem.sae import SAE


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


def random_sae(
    sae: SAE, x: Float[Tensor, "rows ..."], target: Float[Tensor, "rows ..."] | None = None, seed: int = 12345
) -> SAE:
    """An SAE of the same kind and size with random decoder and encoder, never trained; of transcoders give targets."""
    fresh = type(sae)(
        sae.d_in,
        sae.n_latents,
        **sae.settings,
        **sae.common,
        seed=seed,
    )
    try:
        fresh.initialise(x, target)
    except DataError:  # rows that are all the same, or too few, have no transform of their own
        for new, own in ((fresh.transform, sae.transform), (fresh.target_transform, sae.target_transform)):
            new.load_state_dict(own.state_dict())
            new.fitted = True
        fresh.scale_encoder(x, target)
    return fresh.eval()
