"""Which latents of two dictionaries belong together: families, by the cosines of their directions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from monosem.analysis.cosines import TILE_ENTRIES, nearest, random_directions

NOVEL, SIMILAR, SPLIT, MERGED, TANGLED = KINDS = ("novel", "similar", "split", "merged", "tangled")
"""Of latents of the large dictionary: none of the small one is near; one for one; several for one; one for several;
several for several."""
NULL_QUANTILE = 0.999


class Family(NamedTuple):
    """Latents that are connected by cosines over the threshold, of both dictionaries or of one."""

    small: tuple[int, ...]
    large: tuple[int, ...]

    @property
    def kind(self) -> str:
        """As in KINDS; "lost" if only the small dictionary has it."""
        if not self.small:
            return NOVEL
        if not self.large:
            return "lost"
        return {(True, True): SIMILAR, (True, False): SPLIT, (False, True): MERGED, (False, False): TANGLED}[
            len(self.small) == 1, len(self.large) == 1
        ]


class Families(NamedTuple):
    """All latents of two dictionaries in families."""

    families: list[Family]
    cosines: Float[Tensor, " n_large"]
    """The largest of each latent of the large dictionary with one of the small."""
    by_chance: float
    """The share of latents of the large dictionary that are as near to one of as many random directions, which have the
    small dictionary's covariance."""
    chance: float
    """The cosine that 99.9 % of them do not reach there."""


@torch.no_grad()
def families(small: Float[Tensor, "m d"], large: Float[Tensor, "n d"], threshold: float, seed: int = 0) -> Families:
    """Connected components of the graph in which a latent of either is joined to those of the other that are near.

    Args:
        small: directions of norm 1.
        large: directions of norm 1.
        threshold: cosine from which two are joined. Published: 0.7.
        seed: of the random directions.

    Source: Bussmann et al., Stitching SAEs of different sizes, 2024.
    """
    m, n = len(small), len(large)
    found: list[np.ndarray] = []
    step = max(1, TILE_ENTRIES // m)
    for start in range(0, n, step):
        near = (large[start : start + step] @ small.T >= threshold).nonzero().cpu().numpy()
        found.append(near + np.array([start, 0]))
    edges = np.concatenate(found) if found else np.zeros((0, 2), dtype=np.int64)
    graph = sparse.coo_matrix((np.ones(len(edges)), (edges[:, 1], m + edges[:, 0])), shape=(m + n, m + n))
    _, labels = connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    together = [Family(tuple(group[group < m].tolist()), tuple((group[group >= m] - m).tolist())) for group in groups]
    drawn = random_directions(m, small.cpu(), torch.Generator().manual_seed(seed)).to(large)
    null = nearest(large, drawn).cosines
    return Families(
        together,
        nearest(large, small).cosines,
        float((null >= threshold).double().mean()),
        float(np.quantile(null.cpu().numpy(), NULL_QUANTILE)),
    )
