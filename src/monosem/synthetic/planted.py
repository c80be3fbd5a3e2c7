"""Planted dictionaries: activations that are sums of few known features, so that recovery can be measured."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import NotNegative, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.synthetic.known import PLANTED, KnownFeatures, PlantedBatch

Magnitudes = Literal["constant", "uniform", "exponential"]
GROUP = 8
"""Features in a group of correlated ones."""


class PlantedDictionary(KnownFeatures):
    """x = sum_i a_i features_i + mean + noise, where few a_i are not 0.

    Feature i is on with probability p_i, by a power law: p_i is in proportion to (i + 1)^-skew, and the p_i sum to l0.
    Correlated features come in groups of eight: in each, a normal variable per feature, with the given correlation
    between any two of a group, is compared with the limit that gives p_i (a Gaussian copula), so that the marginal
    rates stay what they are. Magnitudes have mean 1.
    """

    features: Float[Tensor, "n_features d"]
    """Random directions of norm 1."""
    probabilities: Float[Tensor, " n_features"]
    """How often each feature is on."""

    @checked
    def __init__(
        self,
        n_features: int,
        d: int,
        *,
        l0: float = 5.0,
        skew: float = 0.0,
        correlation: float = 0.0,
        magnitudes: Magnitudes = "uniform",
        noise: float = 0.0,
        mean_norm: float = 0.0,
        orthogonal: bool = False,
        seed: NotNegative = 0,
    ) -> None:
        """Plant a dictionary.

        Args:
            n_features: how many features.
            d: width of the activations.
            l0: features on per row, on average.
            skew: exponent of the power law of firing rates; 0 for equal ones, 1 for Zipf's law.
            correlation: between the normal variables of a group, at least 0 and below 1.
            magnitudes: 1; uniform from 0.5 to 1.5; or exponential.
            noise: standard deviation of Gaussian noise on every element.
            mean_norm: norm of a constant that is added to every row.
            orthogonal: features at right angles; needs n_features <= d.
            seed: of the features and the mean.

        Raises:
            ConfigError: a value is out of its range, or a feature would have to be on more than always.
        """
        if n_features < 1 or d < 1 or (orthogonal and n_features > d):
            raise ConfigError(f"cannot plant {n_features} {'orthogonal ' if orthogonal else ''}features in width {d}")
        if not 0 <= correlation < 1:
            raise ConfigError(f"correlation must be at least 0 and below 1, got {correlation}")
        weights = torch.arange(1, n_features + 1, dtype=torch.float64) ** -skew
        self.probabilities = (l0 * weights / weights.sum()).to(torch.float32)
        if not (l0 > 0 and self.probabilities.max() < 1):
            raise ConfigError(
                f"l0 = {l0} with skew = {skew} has the commonest of {n_features} features on with probability "
                f"{self.probabilities.max().item():.3g}, which must be above 0 and below 1"
            )
        generator = torch.Generator().manual_seed(seed + PLANTED)  # not the draws that an SAE of this seed begins with
        directions = torch.randn(n_features, d, generator=generator, dtype=torch.float64)
        if orthogonal:
            directions = torch.linalg.qr(directions.T).Q.T
        self.features = (directions / directions.norm(dim=-1, keepdim=True)).to(torch.float32)
        mean = torch.randn(d, generator=generator)
        self.mean = mean_norm * mean / mean.norm()
        self.correlation, self.noise = correlation, noise
        self.magnitudes: Magnitudes = magnitudes
        self._limits = torch.special.ndtri(1 - self.probabilities.double()).to(torch.float32)

    def _draw(self, rows: int, generator: torch.Generator) -> PlantedBatch:
        shape = (rows, self.n_features)
        normal = torch.randn(shape, generator=generator)
        if self.correlation:
            shared = torch.randn(rows, -(-self.n_features // GROUP), generator=generator)
            shared = shared.repeat_interleave(GROUP, 1)[:, : self.n_features]
            normal = self.correlation**0.5 * shared + (1 - self.correlation) ** 0.5 * normal
        on = normal > self._limits
        draw = torch.rand(shape, generator=generator)
        size = {"constant": torch.ones_like, "uniform": lambda u: 0.5 + u, "exponential": lambda u: -torch.log1p(-u)}
        dense = torch.where(on, size[self.magnitudes](draw), 0.0)
        x = dense @ self.features + self.mean
        if self.noise:
            x = x + self.noise * torch.randn(rows, self.d, generator=generator)
        return PlantedBatch(x, SparseCodes.from_dense(dense))
