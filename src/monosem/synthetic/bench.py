"""SynthSAEBench: a planted dictionary at the scale and with the laws of features in language models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.arguments import NotNegative, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.spelling import listed
from monosem.synthetic.known import PLANTED, PlantedBatch
from monosem.synthetic.laws import correlated, directions, forest, under_parents, zipf

TILE = 512
"""Rows drawn at a time."""


@dataclass(frozen=True)
class Laws:
    """What a planted dictionary obeys; as they stand, SynthSAEBench-16k (Chanin and Garriga-Alonso, 2026)."""

    n_features: int = 16_384
    d: int = 768
    rates: tuple[float, float] = (0.4, 5e-4)
    """Of the commonest and of the rarest feature; between them Zipf's law, before the hierarchy takes its share."""
    exponent: float = 0.5
    """Rates fall as rank^-exponent."""
    roots: int = 128
    """Trees of features; a child fires only where its parent does. 0 for none."""
    branching: int = 4
    """Children of each feature of a tree, down to `depth`."""
    depth: int = 3
    """Levels of children under a root."""
    exclusive: bool = True
    """Of siblings at most one fires."""
    scaled: bool = True
    """A child's activation is multiplied by its parent's over the parent's mean."""
    rank: int = 25
    """Normal variables that all features share (a Gaussian copula)."""
    correlation: float = 0.1
    """Standard deviation of each feature's weights on them."""
    magnitudes: tuple[float, float] = (5.0, 4.0)
    """Mean activation of the commonest and of the rarest feature when on; on a line between them."""
    deviations: tuple[float, float] = (0.5, 0.5)
    """Of each feature, the standard deviation of its activation is |normal| of this mean and standard deviation."""
    spread_steps: int = 100
    """Steps of Adam by which random directions are pushed apart."""
    mean_norm: float = 1.0
    """Norm of a constant that is added to every row."""


Size = Literal["16k", "small"]
SIZES: dict[Size, Laws] = {"16k": Laws(), "small": Laws(n_features=2048, d=96, roots=16)}


class SynthSAEBench:
    """x = sum_i a_i features_i + mean, where a_i obey Zipf's law, low-rank correlations and a hierarchy.

    bench = ms.SynthSAEBench("small")
    ms.fit(sae, (batch.x for batch in bench.batches(2048)))
    ms.score_truth(sae, bench)

    Each feature has a normal variable, correlated with the others', which is compared with the limit that gives its
    rate. In a tree the limit is that of its rate given the parent (`laws.under_parents`); a feature of a tree fires if
    it is above it, its parent fires, and it wins the draw among its siblings. Rows are numbered: row r of a seed is the
    same in whatever batch, and they are drawn by compiled code on all of torch's threads.
    """

    features: Float[Tensor, "n_features d"]
    """Directions of norm 1; the commonest features come first."""
    mean: Float[Tensor, " d"]
    parents: Int[Tensor, " n_features"]
    """The feature without which this one does not fire, -1 where it needs none."""

    @checked
    def __init__(self, size: Size = "16k", seed: NotNegative = 0, **changes: Any) -> None:
        """Plant a dictionary.

        Args:
            size: "16k", the published setting, or "small": the same laws, 2,048 features in 96 dimensions, 16 roots.
            seed: of the directions, the correlations, the deviations and the mean.
            changes: fields of `Laws` that shall be others.

        Raises:
            ConfigError: no such size or field, or a law that cannot be.
        """
        unknown = sorted(set(changes) - set(Laws.__dataclass_fields__))
        if unknown:
            raise ConfigError(f"Laws has no field {listed(unknown[0], list(Laws.__dataclass_fields__))}")
        self.laws = laws = replace(SIZES[size], **changes)
        _require_possible(laws)
        self.seed = seed
        generator = torch.Generator().manual_seed(seed + PLANTED)  # not the draws that an SAE of this seed begins with
        self.features = directions(laws.n_features, laws.d, laws.spread_steps, generator)
        mean = torch.randn(laws.d, generator=generator)
        self.mean = laws.mean_norm * mean / mean.norm()
        self._factor, self._own = correlated(laws.n_features, laws.rank, laws.correlation, generator)
        middle, spread = laws.deviations
        self._deviation = (middle + spread * torch.randn(laws.n_features, generator=generator)).abs()
        self._size = torch.linspace(*laws.magnitudes, laws.n_features)
        self.parents = forest(laws.n_features, laws.roots, laws.branching, laws.depth)
        rates = zipf(laws.n_features, *laws.rates, laws.exponent)
        self._given, self._reached = under_parents(rates, self.parents, laws.exclusive)

    @property
    def n_features(self) -> int:
        return self.laws.n_features

    @property
    def d(self) -> int:
        return self.laws.d

    @property
    def probabilities(self) -> Float[Tensor, " n_features"]:
        """How often each feature is on, but for what correlation along a tree changes."""
        return self._reached.float()

    def sample(self, rows: int, seed: NotNegative = 0, start: int = 0) -> PlantedBatch:
        """Rows `start` to `start + rows` of a seed."""
        from monosem.synthetic.draw import draw, pack

        x, counts = np.empty((rows, self.d), np.float32), np.empty(rows, np.int64)
        tile = (min(rows, TILE), self.n_features)  # room for whatever fires; few of its pages are ever touched
        loose: list[Any] = [np.empty(tile, np.int32), np.empty(tile, np.float32)]
        parts: list[tuple[np.ndarray, np.ndarray]] = []
        key = np.uint64((self.seed + PLANTED) * 0x9E3779B9 + seed)
        for done in range(0, rows, TILE):
            here = slice(done, done + TILE)
            draw(key, start + done, x[here], counts[here], *loose, *self._tables)
            parts.append(pack(counts[here], *loose))
        indices, values = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
        offsets = torch.from_numpy(np.concatenate([[0], counts.cumsum()]))
        codes = SparseCodes(values, indices, offsets, self.n_features)
        return PlantedBatch(torch.from_numpy(x), codes)

    def batches(self, rows: int, seed: NotNegative = 0, start: int = 0) -> Iterator[PlantedBatch]:
        """Batches without end; for `fit`, give it their `x`."""
        while True:
            yield self.sample(rows, seed, start)
            start += rows

    @cached_property
    def _tables(self) -> list[Any]:
        """What `draw.draw` reads."""
        from monosem.synthetic.draw import UPPER

        alone = (self.parents < 0).nonzero()[:, 0]
        limits = torch.special.ndtri(1 - self._given) / self._own
        children = torch.zeros(self.n_features, 2, dtype=torch.int64)
        has = self.parents >= 0
        children[:, 1] = torch.bincount(self.parents[has], minlength=self.n_features)
        first = has.nonzero()[:, 0].flip(0)
        children[self.parents[first], 0] = first  # the last write is that of the first child
        by_rank = (self._factor / self._own[:, None])[alone].T.contiguous()
        tensors = (alone, by_rank, self._factor, self._own, limits.float(), children)
        return [
            *(tensor.numpy() for tensor in tensors),
            self.laws.exclusive,
            self.laws.scaled,
            *(tensor.numpy() for tensor in (self._size, self._deviation, self.features, self.mean)),
            UPPER,
        ]


def _require_possible(laws: Laws) -> None:
    """Raise ConfigError for a law that cannot be."""
    if laws.n_features < 1 or laws.d < 1:
        raise ConfigError(f"cannot plant {laws.n_features} features in width {laws.d}")
    most, least = laws.rates
    if not 0 < least <= most < 1:
        raise ConfigError(f"rates must be the largest and the least, above 0 and below 1, got {laws.rates}")
    if laws.exponent <= 0 or laws.correlation < 0 or laws.rank < 0 or laws.mean_norm < 0:
        raise ConfigError("exponent must be above 0; correlation, rank and mean_norm must not be below")
    if not 0 <= laws.roots <= laws.n_features or laws.branching < 1 or laws.depth < 0:
        raise ConfigError(
            f"no forest of {laws.roots} roots, branching {laws.branching} and depth {laws.depth} has {laws.n_features} "
            "features: roots must be at most as many, branching at least 1, depth at least 0"
        )
    if min(laws.magnitudes) <= 0:
        raise ConfigError(f"mean activations must be above 0, got {laws.magnitudes}")
