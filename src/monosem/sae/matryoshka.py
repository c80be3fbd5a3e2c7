"""Matryoshka: nested dictionaries, the first latents general, the later ones specific."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from monosem import kernels
from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.kernels import Selection
from monosem.sae.base import TrainingContext
from monosem.sae.batchtopk import BatchTopKSAE


class MatryoshkaSAE(BatchTopKSAE):
    """BatchTopK whose first m latents must reconstruct by themselves, for each m of `widths`.

        loss = mean over widths m of ||target - (codes[:m] W_dec[:m] + b_dec)||^2 / d

    All prefixes come from one decode: each adds its own latents to the one before.

    Source: Bussmann et al., Learning Multi-Level Features with Matryoshka Sparse Autoencoders, 2025.
    """

    architecture: ClassVar[str] = "matryoshka"
    good_for: ClassVar[str] = "features of several levels of detail; fewer absorbed and split features"

    @checked
    def __init__(self, d_in: int, n_latents: int, *, widths: Sequence[int] | None = None, **settings: Any) -> None:
        """Make an untrained SAE.

        Args:
            d_in: width of the activations.
            n_latents: size of the dictionary.
            widths: sizes of the nested dictionaries, increasing, the last one n_latents; 1/8, 1/4, 1/2 and all of
                n_latents if not given.
            **settings: those of `BatchTopKSAE`.

        Raises:
            ConfigError: the widths do not increase to n_latents.
        """
        super().__init__(d_in, n_latents, **settings)
        shares = (n_latents // 8, n_latents // 4, n_latents // 2, n_latents)
        self.widths = list(widths) if widths is not None else sorted({share for share in shares if share})
        increasing = self.widths == sorted(set(self.widths))
        if not (increasing and self.widths and self.widths[0] >= 1 and self.widths[-1] == n_latents):
            raise ConfigError(f"widths must increase from 1 or more to n_latents = {n_latents}, got {self.widths}")

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "widths": self.widths}

    def reconstruction_loss(
        self,
        activations: Float[Tensor, " entries"],
        selection: Selection,
        target: Float[Tensor, "rows d_out"],
        context: TrainingContext,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows d_out"]]:
        residual = target - self.b_dec
        losses: list[Tensor] = []
        for first, last in zip([0, *self.widths[:-1]], self.widths, strict=True):
            inside = (selection.indices >= first) & (selection.indices < last)
            residual = residual - kernels.decode(activations[inside], self.W_dec, selection.keep(inside))
            losses.append(context.cost_of(residual))
        return torch.stack(losses).mean(), residual.detach()
