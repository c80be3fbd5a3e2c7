"""What generators with known truth share: features, which of them are on, and rows drawn from a seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.codes import SparseCodes

PLANTED = 1 << 20
"""Added to seeds: an SAE of the same seed must not begin with the truth."""


class PlantedBatch(NamedTuple):
    """Activations and what they are made of."""

    x: Float[Tensor, "rows d"]
    codes: SparseCodes
    """x = codes @ features, and what the generator adds: a mean, noise."""


class KnownFeatures(ABC):
    """A generator of rows that are sums of known features."""

    features: Float[Tensor, "n_features d"]

    @property
    def n_features(self) -> int:
        return len(self.features)

    @property
    def d(self) -> int:
        return self.features.shape[1]

    @property
    def parents(self) -> Int[Tensor, " n_features"]:
        """The feature without which each is never on; -1 where it needs none, as here."""
        return torch.full((self.n_features,), -1)

    @abstractmethod
    def _draw(self, rows: int, generator: torch.Generator) -> PlantedBatch: ...

    def sample(self, rows: int, seed: int = 0) -> PlantedBatch:
        """Draw rows; the same seed gives the same rows."""
        return self._draw(rows, torch.Generator().manual_seed(seed))

    def batches(self, rows: int, seed: int = 0) -> Iterator[PlantedBatch]:
        """Batches without end; for `fit`, give it their `x`."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self._draw(rows, generator)
