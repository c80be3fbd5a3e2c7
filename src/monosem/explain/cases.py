"""Cases: an explanation and the windows that test it, of every level of activation and none that it was made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monosem.explain.windows import ExampleRows
from monosem.features import Example, Feature, FeatureStore
from monosem.features.explanations import Explanation
from monosem.features.streaming import hashes

LEVELS = 5
"""Equal ranges of activation from 0 to the maximum: 1 the weakest, 5 the strongest."""
A_LEVEL = 4
"""Test windows of each."""


@dataclass(frozen=True)
class Case:
    """An explanation, the latent it is tested on, and where."""

    explanation: Explanation
    feature: Feature
    firings: list[Example]
    """Windows around a firing that is of the strongest level in them; in an order that is not the store's."""
    levels: np.ndarray
    """(firings,) from 1 to 5."""
    weights: np.ndarray
    """(firings,) which share of the latent's firings each stands for; they sum to 1."""
    silent: list[Example]
    """Random windows in which the latent is off on every token."""
    near: list[Example]
    """Windows around a token on which it was nearly on, and in which it is off on every token."""
    base_rate: float
    """About which share of windows it fires in: with every firing in a window of its own."""


def level_of(activation: float, most: float) -> int:
    """Which of the levels an activation is of."""
    return max(1, min(LEVELS, math.ceil(LEVELS * activation / most))) if most > 0 else 1


def case(explanation: Explanation, feature: Feature, rows: ExampleRows) -> Case:
    """The windows that test an explanation on a feature (its own, or for a floor another one)."""
    everything = [*feature.top, *feature.samples, *feature.near_misses, *feature.silent]
    taken = rows.seen(explanation.seen, everything)
    most = feature.max or 0.0
    shares = {LEVELS - i: interval.share for i, interval in enumerate(feature.intervals(LEVELS, 0))}
    firings: list[Example] = []
    n_of = dict.fromkeys(range(1, LEVELS + 1), 0)
    for example in _mixed(feature.latent, [*feature.samples, *feature.top]):
        level = level_of(example.activation, most)
        strongest = level_of(float(example.activations.max()), most)
        if level == strongest and n_of[level] < A_LEVEL and example not in taken:
            firings.append(example)
            taken.add(example)
            n_of[level] += 1
    levels = np.array([level_of(example.activation, most) for example in firings], np.int64)
    weights = np.array([shares.get(level, 0.0) / n_of[level] for level in levels.tolist()])
    silent, near = (
        [e for e in _mixed(feature.latent, kind) if not e.activations.any() and e not in taken]
        for kind in (feature.silent, feature.near_misses)
    )
    width = max((len(example.texts) for example in everything), default=1)
    base_rate = -math.expm1(width * math.log1p(-min(feature.rate, 1 - 1e-9)))
    total = weights.sum()
    return Case(explanation, feature, firings, levels, weights / total if total else weights, silent, near, base_rate)


def testable(store: FeatureStore, explanations: Sequence[Explanation]) -> list[Explanation]:
    """Those of one latent, which fires."""
    alone = [item for item in explanations if len(item.latents) == 1 and item.text.strip()]
    counts = store.columns(["count"]).column("count").to_pylist()
    return [item for item in alone if counts[item.latents[0]] > 0]


def random_of(example: Example, latent: int) -> int:
    """A number that depends on a latent and a window alone: chance that is the same in every order."""
    place = (example.passage << 16) + example.start + example.peak
    return int(hashes(0, np.array([latent]), np.array([place], np.int64))[0])


def _mixed(latent: int, examples: Sequence[Example]) -> list[Example]:
    return sorted(examples, key=lambda e: (random_of(e, latent), e.passage, e.start))
