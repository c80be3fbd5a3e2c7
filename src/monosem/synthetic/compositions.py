"""Compositions: every row is one thing of each kind (a shape and a colour), and nothing stands for two together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import NotNegative, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.synthetic.known import PLANTED, KnownFeatures, PlantedBatch


class Compositions(KnownFeatures):
    """x = size (features_s + features_c): one feature of each kind is on in every row.

    planted = ms.Compositions(shapes=("triangle", "square", "circle"), colours=("red", "green", "blue"))
    planted.name(0) == "triangle"

    A dictionary as wide as all features together can hold them one by one. One as wide as all combinations can hold
    "red triangle" as a single latent, which is sparser by half: sparsity then favours what the data are not made of.
    """

    features: Float[Tensor, "n_features d"]
    """Directions of norm 1, kind after kind."""

    @checked
    def __init__(
        self,
        d: int = 24,
        *,
        likelier: float = 1.0,
        spread: float = 0.2,
        orthogonal: bool = True,
        seed: NotNegative = 0,
        **kinds: Sequence[str],
    ) -> None:
        """Plant the features.

        Args:
            d: width of the activations.
            likelier: how many times as often as the others the first of each kind and the first of the next kind meet.
            spread: the size of a row is uniform from 1 - spread to 1 + spread.
            orthogonal: features at right angles; needs as many dimensions.
            seed: of the directions.
            kinds: names, by kind; three shapes and three colours if none are given.

        Raises:
            ConfigError: fewer than two kinds, a kind of fewer than two, or too few dimensions.
        """
        kinds = kinds or {"shapes": ("triangle", "square", "circle"), "colours": ("red", "green", "blue")}
        sizes = [len(names) for names in kinds.values()]
        if len(kinds) < 2 or min(sizes) < 2:
            raise ConfigError(f"compositions need two kinds or more, each of two or more, got {dict(kinds)}")
        if not 0 <= spread < 1 or likelier <= 0 or d < (sum(sizes) if orthogonal else 1):
            raise ConfigError(
                f"cannot plant {sum(sizes)} features in width {d} with likelier = {likelier}, spread = {spread}"
            )
        self.kinds = {kind: tuple(names) for kind, names in kinds.items()}
        self.likelier, self.spread = likelier, spread
        directions = torch.randn(sum(sizes), d, generator=torch.Generator().manual_seed(seed + PLANTED))
        if orthogonal:
            directions = torch.linalg.qr(directions.T).Q.T
        self.features = torch.nn.functional.normalize(directions)
        grids = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
        starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.combinations = torch.stack([grid.reshape(-1) for grid in grids], 1) + starts
        weights = torch.ones(len(self.combinations))
        weights[0] = likelier
        self.shares = weights / weights.sum()

    @property
    def probabilities(self) -> Float[Tensor, " n_features"]:
        """How often each feature is on."""
        return torch.zeros(self.n_features).index_add_(
            0, self.combinations.reshape(-1), self.shares.repeat_interleave(self.combinations.shape[1])
        )

    def name(self, feature: int) -> str:
        return [name for names in self.kinds.values() for name in names][feature]

    def name_of(self, combination: int) -> str:
        """The last kind first, as in "red triangle"."""
        return " ".join(self.name(feature) for feature in reversed(self.combinations[combination].tolist()))

    def _draw(self, rows: int, generator: torch.Generator) -> PlantedBatch:
        drawn = self.combinations[torch.multinomial(self.shares, rows, replacement=True, generator=generator)]
        size = 1 + self.spread * (2 * torch.rand(rows, 1, generator=generator) - 1)
        codes = SparseCodes.from_top_k(size.expand(drawn.shape), drawn.to(torch.int32), self.n_features)
        return PlantedBatch(size * self.features[drawn].sum(1), codes)
