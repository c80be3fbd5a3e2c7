"""Planted dictionaries: the data are what the truth says, at the rates that were asked for."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

from monosem.errors import ConfigError
from monosem.synthetic import PlantedDictionary


def test_activations_are_sums_of_the_planted_features() -> None:
    planted = PlantedDictionary(30, 12, l0=4, mean_norm=2.0)
    x, codes = planted.sample(500)
    expected = codes.to_dense() @ planted.features + planted.mean
    assert torch.allclose(x, expected, atol=1e-5)
    assert torch.allclose(planted.features.norm(dim=1), torch.ones(30), atol=1e-6)
    assert planted.mean.norm().item() == pytest.approx(2.0)


@pytest.mark.parametrize("correlation", [0.0, 0.6])
@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_features_are_on_as_often_as_they_should_be(skew: float, correlation: float) -> None:
    planted = PlantedDictionary(40, 12, l0=3, skew=skew, correlation=correlation)
    codes = planted.sample(40_000).codes
    p = planted.probabilities
    assert p.sum().item() == pytest.approx(3)
    assert torch.allclose(p / p[0], torch.arange(1.0, 41) ** -skew)
    deviation = 5 * (p * (1 - p) / 40_000).sqrt()  # of 40 features, one in 40,000 such tests goes beyond
    assert ((codes.firing_counts() / 40_000 - p).abs() < deviation).all()


def test_correlated_features_are_on_together_within_their_groups_alone() -> None:
    planted = PlantedDictionary(24, 12, l0=4, correlation=0.6)
    on = (planted.sample(20_000).codes.to_dense() > 0).double()
    together = torch.corrcoef(on.T)
    groups = torch.arange(24) // 8
    same = (groups[:, None] == groups) & ~torch.eye(24, dtype=torch.bool)
    assert together[same].min() > 0.2
    assert together[groups[:, None] != groups].abs().max() < 0.04


@pytest.mark.parametrize(("magnitudes", "variance"), [("constant", 0.0), ("uniform", 1 / 12), ("exponential", 1.0)])
def test_magnitudes_have_mean_one(magnitudes: Any, variance: float) -> None:
    values = PlantedDictionary(20, 8, magnitudes=magnitudes).sample(20_000).codes.values
    assert values.mean().item() == pytest.approx(1, abs=0.02)
    assert values.var().item() == pytest.approx(variance, abs=0.05)
    assert values.min() > 0


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    planted = PlantedDictionary(20, 8, noise=0.3)
    x, codes = planted.sample(5000)
    assert (x - codes.to_dense() @ planted.features).std().item() == pytest.approx(0.3, rel=0.02)


def test_orthogonal_features_are_at_right_angles() -> None:
    features = PlantedDictionary(8, 8, l0=2, orthogonal=True).features
    assert torch.allclose(features @ features.T, torch.eye(8), atol=1e-6)


def test_the_seed_decides() -> None:
    planted, same, other = (PlantedDictionary(20, 8, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(planted.features, same.features)
    assert not torch.equal(planted.features, other.features)
    assert torch.equal(planted.sample(10, seed=3).x, same.sample(10, seed=3).x)
    assert not torch.equal(planted.sample(10, seed=3).x, planted.sample(10, seed=4).x)
    first, second = islice(planted.batches(10, seed=3), 2)
    assert torch.equal(first.x, planted.sample(10, seed=3).x)
    assert not torch.equal(first.x, second.x)


@pytest.mark.parametrize(
    "options",
    [{"l0": 0}, {"l0": 30}, {"l0": 5, "skew": 3.0}, {"correlation": 1.0}, {"magnitudes": "big"}, {"orthogonal": True}],
)
def test_impossible_dictionaries_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PlantedDictionary(20, 8, **options)
