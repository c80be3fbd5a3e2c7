"""The other state of every site: that of corrupt prompts, the mean over all clean ones, or nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.errors import DataError
from monosem.interventions.way import Site
from monosem.kernels import index_add_

Ablation = Literal["mean", "zero"]


@torch.no_grad()
def nothing(site: Site) -> Site:
    """No feature is on and no error there: what is left is the decoder's bias; where nothing is read, what is there."""
    assert site.x is not None
    entries = SparseCodes.from_dense(site.entries.values.new_zeros(site.entries.n_rows, site.sae.n_latents))
    x = site.x.clone()
    x[site.kept] = site.sae.decode(entries, site.rows).to(x.dtype)
    return site.otherwise(x, entries)


@dataclass
class Mean:
    """Of what was read at one site, at every token, over all prompts."""

    contexts: int
    counts: Int[Tensor, " pos"]
    """How many prompts are read there."""
    x: Float[Tensor, "pos d"]
    """Sums of what stands there."""
    numbers: Int[Tensor, " features"]
    """Token times latents plus latent, of all that are on."""
    codes: Float[Tensor, " features"]
    """Sums of their codes."""

    @staticmethod
    @torch.no_grad()
    def of(site: Site) -> Mean:
        """Of some prompts."""
        assert site.x is not None
        positions, codes = site.kept.nonzero()[:, 1], site.entries
        numbers = positions[codes.rows()] * site.sae.n_latents + codes.indices.long()
        x = (site.x * site.kept[..., None]).sum(0)
        return Mean(len(site.x), site.kept.sum(0), x, *summed(numbers, codes.values))

    def plus(self, other: Mean) -> Mean:
        """Of both."""
        numbers, codes = summed(torch.cat([self.numbers, other.numbers]), torch.cat([self.codes, other.codes]))
        return Mean(self.contexts + other.contexts, self.counts + other.counts, self.x + other.x, numbers, codes)

    @torch.no_grad()
    def state(self, site: Site) -> Site:
        """Every feature and every error of some prompts at its mean at the same token.

        Raises:
            DataError: a token is read in one prompt alone.
        """
        if self.contexts < 2 or bool((self.counts == 1).any()):
            raise DataError(
                "a mean needs several prompts at every token: give prompts of one length, corrupt prompts beside them, "
                "or ablate='zero'"
            )
        assert site.x is not None
        n, positions = site.sae.n_latents, site.kept.nonzero()[:, 1]
        at = self.numbers // n
        per_position = torch.zeros(len(self.counts), dtype=torch.int64, device=at.device)
        per_position.index_add_(0, at, torch.ones_like(at))
        offsets = torch.nn.functional.pad(per_position.cumsum(0), (1, 0))
        means = SparseCodes(self.codes / self.counts[at], (self.numbers % n).to(torch.int32), offsets, n)
        x = site.x.clone()
        x[site.kept] = (self.x / self.counts.clamp(min=1)[:, None])[positions]
        return site.otherwise(x, means[positions])


def summed(numbers: Int[Tensor, " n"], values: Float[Tensor, " n"]) -> tuple[Tensor, Tensor]:
    """Each number once, with the sum of its values."""
    unique, inverse = numbers.unique(return_inverse=True)
    sums = torch.zeros(len(unique), dtype=values.dtype, device=values.device)
    return unique, index_add_(sums, inverse, values)
