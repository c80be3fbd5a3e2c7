"""Latent scaling: is what a crosscoder's latent writes for one model in the other model too, past its decoder norms?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.sae import Crosscoder

AT_ONCE = 1024
"""Rows of which codes are dense at a time."""


@dataclass(frozen=True)
class LatentScaling:
    """For each latent and source, the multiple of the latent's own direction that goes with its code in that source.

    beta(y) = sum f <d, y> / (|d|^2 sum f^2), the least-squares solution of f d beta = y; d is the latent's decoder row
    in the source that has more of it (`own`). In units of the crosscoder's transform, without its biases.
    """

    own: Int[Tensor, " n_latents"]
    """The source in which the decoder row is longest."""
    fired: Int[Tensor, " n_latents"]
    """On how many rows each was on; where it never was, the rest is NaN."""
    error: Float[Tensor, "n_latents source"]
    """y: what the source's reconstruction by all **other** latents leaves. Near 1 in `own`; if it is not near 0
    elsewhere, the decoder row there shrank to nothing although the feature is there."""
    reconstruction: Float[Tensor, "n_latents source"]
    """y: the source's reconstruction. If it is not near 0 elsewhere, other latents stand for the feature there."""

    def ratio(self, name: str) -> Float[Tensor, " n_latents"]:
        """Beta of the source that has least of it over that of `own`: 0 where the feature is of one source alone."""
        beta: Tensor = getattr(self, name)
        own = beta.gather(1, self.own[:, None])[:, 0]
        others = beta.scatter(1, self.own[:, None], -torch.inf).amax(1)
        return others / torch.where(own > 0, own, torch.nan)


@checked
@torch.no_grad()
def latent_scaling(crosscoder: Crosscoder, batches: Iterable[Float[Tensor, "rows source d"]]) -> LatentScaling:
    """Read rows of all sources once.

    Source: Minder et al., Robustly Identifying Concepts Introduced During Chat Fine-Tuning Using Crosscoders, 2025.

    Args:
        crosscoder: of those sources.
        batches: raw activations.

    Raises:
        ConfigError: it is no crosscoder of two sources or more.
    """
    if not isinstance(crosscoder, Crosscoder) or crosscoder.n_sources < 2:
        raise ConfigError(f"latent scaling is of a crosscoder of two models or more, not of a {_named(crosscoder)}")
    n, sources, d = crosscoder.n_latents, crosscoder.n_sources, crosscoder.d_in
    rows = crosscoder.W_dec.detach().double().view(n, sources, d)
    own = rows.norm(dim=-1).argmax(-1)
    direction = rows[torch.arange(n, device=rows.device), own]
    error, rebuilt = rows.new_zeros(n, sources), rows.new_zeros(n, sources)
    squares, fired = rows.new_zeros(n), torch.zeros(n, dtype=torch.int64, device=rows.device)
    for batch in batches:
        for x in batch.split(AT_ONCE):
            x = x.to(crosscoder.W_enc)
            codes = crosscoder.encode(x).to_dense().double()
            said = (codes @ rows.flatten(1)).view(-1, sources, d)
            wanted = (crosscoder.transform(x) - crosscoder.b_dec.view(sources, d)).double()
            for source in range(sources):
                error[:, source] += ((codes.T @ (wanted - said)[:, source]) * direction).sum(-1)
                rebuilt[:, source] += ((codes.T @ said[:, source]) * direction).sum(-1)
            squares, fired = squares + codes.pow(2).sum(0), fired + (codes > 0).sum(0)
    size = direction.pow(2).sum(-1)
    scale = torch.where(squares > 0, squares * size, torch.nan)[:, None]
    part = torch.einsum("nsd,nd->ns", rows, direction) / size[:, None]
    return LatentScaling(own, fired, (error / scale + part).float(), (rebuilt / scale).float())


def _named(thing: object) -> str:
    return f"crosscoder of {thing.n_sources}" if isinstance(thing, Crosscoder) else type(thing).__name__
