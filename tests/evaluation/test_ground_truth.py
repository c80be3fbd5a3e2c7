"""Recovery: what is there is found, what is not there is not, and each latent counts for one feature."""

from __future__ import annotations

import pytest
import torch

from monosem.errors import MismatchError
from monosem.evaluation import random_recovery, recovery
from monosem.sae import TopKSAE
from monosem.synthetic import PlantedDictionary
from monosem.training import Trainer, TrainingConfig

FEATURES = PlantedDictionary(60, 24, l0=3).features


def test_the_truth_recovers_itself_whatever_its_order_and_length() -> None:
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    lengths = torch.linspace(0.1, 5, 60)[:, None]
    found = recovery((lengths * FEATURES)[order], FEATURES)
    for interval in (found.features, found.latents, found.matched):
        assert interval == pytest.approx((1, 1, 1))


def test_each_direction_says_what_the_other_does_not() -> None:
    half = recovery(FEATURES[:30], FEATURES)
    assert half.latents.value == pytest.approx(1)
    assert half.matched.value == pytest.approx(0.5)
    assert half.features.value < 0.8
    more = recovery(torch.cat([FEATURES, -FEATURES]), FEATURES)
    assert more.features.value == more.matched.value == pytest.approx(1)
    assert more.latents.value < 0.8


def test_one_latent_matches_one_feature() -> None:
    truth = torch.eye(4) + 0.02
    copies = truth[[0, 0, 0, 1]]
    assert recovery(copies, truth).matched.value == pytest.approx(0.5)
    assert recovery(copies, truth).latents.value == pytest.approx(1)


def test_pairs_are_chosen_for_the_largest_sum_not_greedily() -> None:
    truth = torch.eye(2)
    rows = torch.tensor([[1.0, 0.1], [1.0, 0.0]])  # the first is the only one that can stand for the second feature
    cosines = torch.nn.functional.normalize(rows) @ truth.T
    found = recovery(rows, truth, threshold=cosines[0, 1].item() - 1e-6)
    assert found.matched.value == 1


def test_the_threshold_decides_what_is_a_match() -> None:
    rows = torch.tensor([[1.0, 1.0]])  # cosine 0.707
    truth = torch.tensor([[1.0, 0.0]])
    assert recovery(rows, truth, threshold=0.7).matched.value == 1
    assert recovery(rows, truth, threshold=0.71).matched.value == 0


def test_intervals_hold_the_value_and_narrow_with_more_features() -> None:
    generator = torch.Generator().manual_seed(0)

    def width(n: int) -> float:
        truth = torch.randn(n, 24, generator=generator)
        found = recovery(truth + 0.3 * torch.randn(n, 24, generator=generator), truth, threshold=0.95).matched
        assert found.low is not None
        assert found.high is not None
        assert found.low < found.value < found.high
        return found.high - found.low

    assert width(400) < 0.6 * width(50)


def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(MismatchError, match="d is 23 in sae"):
        recovery(torch.randn(5, 23), FEATURES)


def test_topk_recovers_a_planted_dictionary_and_chance_does_not() -> None:
    planted = PlantedDictionary(60, 24, l0=3)
    sae = TopKSAE(24, 120, k=3)
    x = planted.sample(512 * 400).x
    trainer = Trainer(sae, TrainingConfig(batch_size=512, lr=0.01), len(x))
    for batch in x.split(512):
        trainer.step(batch)
    found, chance, untrained = (
        recovery(sae, planted.features),
        random_recovery(120, planted.features),
        recovery(TopKSAE(24, 120, k=3), planted.features),
    )
    assert found.features.value > 0.9
    assert found.matched.value > 0.9
    for control in (chance, untrained):
        assert control.features.value < 0.7
        assert control.matched.value < 0.05
