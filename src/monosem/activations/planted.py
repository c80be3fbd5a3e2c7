"""Rows of a generator with known truth, to train on."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from monosem.activations.source import ActivationSource
from monosem.sae import SAEMetadata
from monosem.synthetic import PlantedBatch
from monosem.synthetic.worlds import world

ROWS = 32_768
"""In a pool."""
FIRST_SEED = 1 << 40
"""Of the rows to train on: far from those that evaluations draw."""


@runtime_checkable
class Generator(Protocol):
    """What draws rows that are sums of known features."""

    @property
    def features(self) -> Float[Tensor, "n_features d"]: ...
    def sample(self, rows: int, seed: int = 0) -> PlantedBatch: ...


class PlantedActivations(ActivationSource):
    """Rows drawn as they are wanted, without end; each pool has a seed of its own, so that a run can be resumed."""

    def __init__(self, planted: Generator | str, seed: int = 0) -> None:
        """Begin.

        Args:
            planted: the generator, or its name, "synthetic:small".
            seed: of the rows.

        Raises:
            ConfigError: there is no world of this name.
        """
        self.name = planted if isinstance(planted, str) else type(planted).__name__
        self.planted: Any = world(planted) if isinstance(planted, str) else planted
        self.named, self.seed = isinstance(planted, str), seed
        self.d_in = self.planted.features.shape[1]

    @property
    def metadata(self) -> SAEMetadata:
        return SAEMetadata(vectors=self.name)

    @property
    def words(self) -> str:
        return self.name

    def identity(self) -> dict[str, Any]:
        return {"world": self.name, "seed": self.seed} if self.named else super().identity() | {"seed": self.seed}

    def make_pool(self, number: int) -> Float[Tensor, "rows d_in"]:
        return self.planted.sample(ROWS, FIRST_SEED * (self.seed + 1) + number).x
