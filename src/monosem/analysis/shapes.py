"""Shapes of a few vectors in order: a circle, a line, a direction that orders those left out, each against its null."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from monosem.errors import ConfigError

FEWEST = 6
"""Members: five have 12 different circles, so that p cannot come below 0.05."""


class Against(NamedTuple):
    """A statistic beside its null."""

    value: float
    chance: float
    """Its mean under the null."""
    p: float
    """How often the null is as large."""


@dataclass(frozen=True)
class Shape:
    """How vectors lie that have an order."""

    components: np.ndarray
    """(n, 2) places in their first two principal components."""
    explained: np.ndarray
    """(min(n, d),) share of the variance of each component."""
    circle: Against
    """Agreement of the angles in the first two components with equal steps around a circle, 0 to 1."""
    line: Against
    """Correlation of the better of these two components with the values, without its sign."""
    held_out: Against
    """Correlation of values with those predicted for each vector by ridge regression on all others."""
    direction: np.ndarray
    """(d,) of length 1: along it the values rise (the regression on all)."""
    in_plane: float
    """Share of the direction's square that lies in the first two components."""


def shape_of(
    vectors: np.ndarray, values: Sequence[float] | None = None, *, permutations: int = 10_000, seed: int = 0
) -> Shape:
    """The shape of vectors (n, d), with the values by which they are ordered (0, 1, 2, ... if not given).

    The null of every statistic is the same vectors with their values in random order.

    Raises:
        ConfigError: there are fewer than 6 vectors, they are all the same, or values are.
    """
    n = len(vectors)
    order = np.arange(n, dtype=float) if values is None else np.asarray(values, float)
    require_members(n)
    if len(order) != n or np.ptp(order) == 0:
        raise ConfigError(f"values= must be {n} numbers that are not all the same")
    centred = vectors - vectors.mean(0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    if sizes[0] <= 1e-9 * max(1.0, float(np.abs(vectors).max())):
        raise ConfigError("the vectors of the family are all the same: there is no shape")
    components, explained = left[:, :2] * sizes[:2], sizes**2 / (sizes**2).sum()
    draw = np.random.default_rng(seed)
    shuffled = np.stack([draw.permutation(n) for _ in range(permutations)])

    def against(statistic: Callable[[np.ndarray], np.ndarray]) -> Against:
        """Of orders (m, n), numbers of the vectors' values."""
        value, null = float(statistic(np.arange(n)[None])[0]), statistic(shuffled)
        return Against(value, float(null.mean()), float((1 + (null >= value - 1e-9).sum()) / (1 + permutations)))

    turns = np.exp(1j * np.angle(components[:, 0] + 1j * components[:, 1]))
    steps = np.exp(-2j * np.pi * np.argsort(np.argsort(order)) / n)

    def circle(orders: np.ndarray) -> np.ndarray:
        return np.maximum(np.abs(steps[orders] @ turns), np.abs(steps[orders] @ turns.conj())) / n

    standard = left[:, :2]

    def line(orders: np.ndarray) -> np.ndarray:
        return np.abs(_standard(order[orders]) @ standard).max(-1)

    gram = centred @ centred.T
    penalty = np.trace(gram) / n
    inverse = np.linalg.inv(gram + penalty * np.eye(n))
    hat = 1 / n + gram @ inverse

    def held_out(orders: np.ndarray) -> np.ndarray:
        y = order[orders]
        predicted = y - (y - y @ hat) / (1 - np.diag(hat))
        return (_standard(predicted) * _standard(y)).sum(-1)

    direction = centred.T @ inverse @ (order - order.mean())
    direction = direction / max(float(np.linalg.norm(direction)), 1e-30)
    return Shape(
        components=components,
        explained=explained,
        circle=against(circle),
        line=against(line),
        held_out=against(held_out),
        direction=direction,
        in_plane=float(np.square(right[:2] @ direction).sum()),
    )


def parallelograms(pairs: np.ndarray, *, permutations: int = 10_000, seed: int = 0) -> Against:
    """Mean cosine between the differences of pairs (n, 2, d); the null gives each first one another's second one.

    1 where all differences are parallel: a to b as c to d.

    Raises:
        ConfigError: there are fewer than 6 pairs.
    """
    require_members(len(pairs), "pairs")
    n = len(pairs)
    draw = np.random.default_rng(seed)

    def statistic(order: np.ndarray) -> float:
        differences = pairs[order, 1] - pairs[:, 0]
        differences = differences / np.maximum(np.linalg.norm(differences, axis=1, keepdims=True), 1e-30)
        return float((np.square(differences.sum(0)).sum() - n) / (n * (n - 1)))

    value = statistic(np.arange(n))
    null = np.array([statistic(draw.permutation(n)) for _ in range(permutations)])
    return Against(value, float(null.mean()), float((1 + (null >= value - 1e-9).sum()) / (1 + permutations)))


def density(rows: np.ndarray, seed: int = 0) -> Against:
    """Mean cosine of each row (n, d) with the nearest other one; the null is as many normal rows of the same moments.

    The null is drawn 20 times, so that no p is below 1/21.
    """

    def nearest(vectors: np.ndarray) -> float:
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
        most = [
            (unit[at : at + 512] @ unit.T - 2 * np.eye(len(unit), dtype=unit.dtype)[at : at + 512]).max(1)
            for at in range(0, len(unit), 512)
        ]
        return float(np.concatenate(most).mean())

    draw = np.random.default_rng(seed)
    rows = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)).astype(np.float32)
    root = np.linalg.svd(rows, full_matrices=False)
    mixing = (root[1][:, None] * root[2] / np.sqrt(len(rows))).astype(np.float32)
    null = np.array(
        [nearest(draw.normal(size=(len(rows), len(mixing))).astype(np.float32) @ mixing) for _ in range(20)]
    )
    value = nearest(rows)
    return Against(value, float(null.mean()), float((1 + (null >= value).sum()) / 21))


def require_members(n: int, what: str = "members") -> None:
    """Refuse a family that is too small to be told from chance."""
    if n < FEWEST:
        raise ConfigError(f"{n} {what} are too few for a test: a family needs at least {FEWEST}")


def _standard(values: np.ndarray) -> np.ndarray:
    """Rows less their mean, of length 1."""
    centred = values - values.mean(-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-30)
