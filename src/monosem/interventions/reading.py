"""The codes of everything that a model reads, while it reads it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.interventions.base import joined_once, reads
from monosem.models import EditContext, SubjectModel
from monosem.sae import SAE


class Features:
    """An edit that changes nothing and keeps an SAE's codes of every token: put last, with all edits in force."""

    def __init__(self, sae: SAE, hook: str | None = None) -> None:
        """Make it; `hook` may be left out if the SAE knows its own."""
        name = hook or sae.metadata.hook
        if name is None:
            raise ConfigError("this SAE does not know its hook point: set sae.metadata.hook = 'resid_post.2'")
        self.sae, self.hooks = sae, [name]
        self.codes: list[SparseCodes] = []
        """Of each forward pass, (batch, pos, latents)."""

    def join(self, model: SubjectModel) -> None:
        """Ask once whether the SAE fits a model."""
        joined_once(self.sae, model, self.hooks[0])

    @torch.no_grad()
    def apply(self, x: Float[Tensor, "batch pos d"], context: EditContext) -> Float[Tensor, "batch pos d"]:
        kept = reads(self.sae.metadata, x, context)
        self.codes.append(spread(self.sae.encode(x[kept]), kept))
        return x

    def of(self, row: int, kept: Bool[Tensor, " pos"], n_generated: int) -> SparseCodes:
        """Of one row: the tokens of its prompt that are kept, and those generated, as far as they were read."""
        prompt, generated = self.codes[0][row][kept], [codes[row] for codes in self.codes[1 : n_generated + 1]]
        return SparseCodes.cat([prompt, *generated])


def spread(codes: SparseCodes, kept: Bool[Tensor, "batch pos"]) -> SparseCodes:
    """Codes of the positions kept, at their places among all; the others are empty."""
    counts = torch.zeros(kept.numel(), dtype=torch.int64, device=kept.device)
    counts[kept.flatten()] = codes.offsets.diff()
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return SparseCodes(codes.values, codes.indices, offsets, codes.n_latents, tuple(kept.shape))
