"""The control of every dictionary: one of the same kind and size that never learned."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from monosem.errors import DataError
from monosem.sae.base import SAE


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
