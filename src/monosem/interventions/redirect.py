"""Latents that keep their codes and write something else: edits of what a latent means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.interventions.amounts import Places
from monosem.interventions.features import FeatureEdit
from monosem.sae import SAE


class Redirect(FeatureEdit):
    """Latents write other directions than their decoder rows: x + sum over latents of code (direction - decoder row).

    A direction with a part taken out or put in edits what a latent says and leaves when it says it; a direction of
    zeros is `Ablate`, the decoder row itself changes nothing.
    """

    unchanged = "the latents were never on there, or the directions are their own"

    fields = ("sae", "latents", "directions", "hook", "where", "keep_error")
    required = ("latents", "directions")

    @checked
    def __init__(self, sae: SAE, latents: int | Sequence[int] | Tensor, directions: Any, **options: Any) -> None:
        """Make the edit.

        Args:
            sae: the SAE.
            latents: numbers of latents.
            directions: (latents, d) what one unit of each one's code adds, in the model's own units, as
                `sae.decoder_directions(latents)` gives what it adds without the edit.
            **options: `hook`, `where` and `keep_error`, as in `Ablate`.

        Raises:
            ConfigError: the directions are of another shape or not finite, or the dictionary writes elsewhere than it
                reads, or in units of a row's own.
        """
        super().__init__(sae, latents, **options)
        if self.sites.elsewhere or len(sae.out_shape) > 1 or sae.target_transform.per_row:
            raise ConfigError(
                f"Redirect is for dictionaries that write what they read, in one unit for all rows, not for this "
                f"{sae.architecture} ({sae.target_transform.kind}): take Ablate and AddVector"
            )
        try:
            rows = torch.as_tensor(directions).detach().to(sae.W_dec)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"directions must be numbers, got a {type(directions).__name__}") from error
        wanted = (len(self.latents), sae.d_out)
        rows = rows[None] if rows.ndim == 1 else rows
        if tuple(rows.shape) != wanted or not bool(rows.isfinite().all()):
            raise ConfigError(
                f"directions must be {wanted[0]} x {wanted[1]} finite numbers, a row for each latent, got "
                f"{' x '.join(map(str, rows.shape))}"
            )
        self.directions = rows

    def setting(self, codes: Float[Tensor, "chosen m"], places: Places) -> Float[Tensor, "chosen m"]:
        return codes

    def replace(self, rows: Float[Tensor, "chosen d"], places: Places) -> Float[Tensor, "chosen d"]:
        codes, base = self._read(rows)
        own = self.sae.decoder_directions(self.latents)
        return base + codes @ (self.directions.to(own) - own)
