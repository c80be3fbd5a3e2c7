"""The features of tokens while a model reads and writes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monosem.interventions import Splice
from monosem.models import EditContext
from monosem.sae import SAE

Found = tuple[int, list[tuple[int, float]]]
"""Position of a token, and its features as latent and activation, strongest first."""


class Watch:
    """An edit that changes nothing: it looks at what stands at the SAE's hook point, after all edits before it."""

    def __init__(self, sae: SAE, top: int | None = None, latents: Sequence[int] = ()) -> None:
        """Tell of the `top` strongest features of every token, or else of these latents."""
        self._reading = Splice(sae)  # knows which positions the SAE reads
        self.sae, self.hooks = sae, self._reading.hooks
        self.top, self.latents = top, list(latents)
        self._found: list[Found] = []

    def apply(self, x: Tensor, context: EditContext) -> Tensor:
        """Look at one forward pass of one text."""
        read = self._reading.chosen(x, context)[0]
        positions = torch.arange(len(read)) if context.positions is None else context.positions[0].cpu()
        rows: list[list[tuple[int, float]]] = [[] for _ in positions]
        places = read.nonzero()[:, 0].tolist()
        if places:
            codes = self.sae.encode(x[0][read].float().to(self.sae.W_enc.device))
            offsets = codes.offsets.tolist()
            for place, start, stop in zip(places, offsets[:-1], offsets[1:], strict=True):
                values, latents = codes.values[start:stop].tolist(), codes.indices[start:stop].tolist()
                rows[place] = self._chosen(latents, values)
        self._found += list(zip(positions.tolist(), rows, strict=True))
        return x

    def _chosen(self, latents: list[int], values: list[float]) -> list[tuple[int, float]]:
        if self.top is None:
            on = dict(zip(latents, values, strict=True))
            return [(latent, on.get(latent, 0.0)) for latent in self.latents]
        pairs = sorted(zip(latents, values, strict=True), key=lambda pair: -pair[1])
        return [pair for pair in pairs if pair[1] > 0][: self.top]

    def take(self) -> list[Found]:
        """What was found since it was last asked."""
        found, self._found = self._found, []
        return found
