"""Clusters of points: the plainest question of all, which latent is for which of them?"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import NotNegative, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.synthetic.known import PLANTED, KnownFeatures, PlantedBatch


class Clusters(KnownFeatures):
    """x = features_i + noise: every row is of one cluster, and its feature is the middle of it.

    The middles lie on a circle (in two dimensions, evenly; in more, random directions), turned by a random angle;
    cluster i is drawn in proportion to (i + 1)^-skew.
    """

    features: Float[Tensor, "n_clusters d"]

    @checked
    def __init__(
        self, n_clusters: int = 8, d: int = 2, *, noise: float = 0.08, skew: float = 0.0, seed: NotNegative = 0
    ) -> None:
        """Place the clusters.

        Args:
            n_clusters: how many.
            d: dimensions.
            noise: standard deviation of a cluster, in each dimension; the middles have norm 1.
            skew: exponent of the power law of how often each is drawn; 0 for equally often.
            seed: of the middles.

        Raises:
            ConfigError: fewer than one cluster or two dimensions, or negative noise.
        """
        if n_clusters < 1 or d < 2 or noise < 0:
            raise ConfigError(f"cannot place {n_clusters} clusters in {d} dimensions with noise {noise}")
        generator = torch.Generator().manual_seed(seed + PLANTED)
        if d == 2:
            angles = 2 * torch.pi * (torch.arange(n_clusters) / n_clusters + torch.rand(1, generator=generator))
            self.features = torch.stack([angles.cos(), angles.sin()], 1)
        else:
            self.features = torch.nn.functional.normalize(torch.randn(n_clusters, d, generator=generator))
        self.noise = noise
        weights = torch.arange(1.0, n_clusters + 1) ** -skew
        self.probabilities = weights / weights.sum()

    def _draw(self, rows: int, generator: torch.Generator) -> PlantedBatch:
        drawn = torch.multinomial(self.probabilities, rows, replacement=True, generator=generator)
        x = self.features[drawn] + self.noise * torch.randn(rows, self.d, generator=generator)
        return PlantedBatch(x, SparseCodes.from_top_k(torch.ones(rows, 1), drawn[:, None].int(), self.n_features))
