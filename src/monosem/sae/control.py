"""The control of every dictionary: one of the same kind and size that never learned."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.errors import DataError
from monosem.sae.base import SAE


def random_sae(
    sae: SAE, x: Float[Tensor, "rows ..."], target: Float[Tensor, "rows ..."] | None = None, seed: int = 12345
) -> SAE:
    """An SAE of the same kind and size with random decoder and encoder, never trained; of transcoders give targets.

    It is in float32 at least: a lower precision may not hold the sums from which it begins.
    """
    options: dict[str, Any] = {**sae.settings, **sae.common}
    options["dtype"] = torch.promote_types(sae.W_enc.dtype, torch.float32)
    fresh = type(sae)(sae.d_in, sae.n_latents, **options, seed=seed)
    try:
        fresh.initialise(x, target)
    except DataError:  # rows that are all the same, or too few, have no transform of their own
        for new, own in ((fresh.transform, sae.transform), (fresh.target_transform, sae.target_transform)):
            new.load_state_dict(own.state_dict())
            new.fitted = True
        fresh.scale_encoder(x, target)
    return fresh.eval()
