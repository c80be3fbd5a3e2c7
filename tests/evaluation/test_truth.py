"""Scores against the truth: an oracle has the best of each, chance what is said of it, each failure its own score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from saelens_truth import THEIRS, tensors

import monosem as ms
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, MismatchError
from monosem.evaluation import probe_ceiling, random_truth, score_codes, score_truth
from monosem.sae import ReLUSAE
from monosem.synthetic import PlantedBatch, PlantedDictionary, SynthSAEBench

SIZE: dict[str, Any] = {"n_features": 90, "d": 32, "roots": 4, "branching": 3, "depth": 1, "rates": (0.4, 0.04)}
BENCH = SynthSAEBench("small", **SIZE, spread_steps=2)
BEST = ("matched_cosine", "feature_cosine", "latent_cosine", "uniqueness", "f1", "precision", "recall", "matched_f1")
FAILURES = ("absorption", "absorbed_direction", "splitting", "composition")
ROWS = 4000


@pytest.fixture(scope="module")
def drawn() -> PlantedBatch:
    return BENCH.sample(ROWS, seed=5)


def dense(drawn: PlantedBatch) -> torch.Tensor:
    return drawn.codes.to_dense()


def scored(directions: torch.Tensor, codes: torch.Tensor, drawn: PlantedBatch) -> Any:
    return score_codes(directions, SparseCodes.from_dense(codes), BENCH, drawn.codes)


def test_an_oracle_has_the_best_of_every_score_whatever_its_order_and_lengths(drawn: PlantedBatch) -> None:
    order = torch.randperm(90, generator=torch.Generator().manual_seed(0))
    lengths = torch.linspace(0.2, 3, 90)
    score = scored((BENCH.features * lengths[:, None])[order], (dense(drawn) / lengths)[:, order], drawn)
    for key in BEST:
        assert score[key].value == pytest.approx(1, abs=1e-6), key
    for key in FAILURES:
        assert score[key].value == pytest.approx(0, abs=1e-6), key
    assert set(score.values) == {*BEST, *FAILURES}


def test_rows_in_another_order_and_latents_in_another_change_nothing(drawn: PlantedBatch) -> None:
    generator = torch.Generator().manual_seed(1)
    directions = BENCH.features[:60] + 0.3 * torch.randn(60, 32, generator=generator)
    fired = (dense(drawn)[:, :60] + torch.randn(ROWS, 60, generator=generator)).clamp_min(1)
    fired[fired == 1] = 0
    before = scored(directions, fired, drawn)
    rows, latents = (torch.randperm(n, generator=generator) for n in (ROWS, 60))
    on = SparseCodes.from_dense(dense(drawn)[rows])
    after = score_codes(directions[latents], SparseCodes.from_dense(fired[rows][:, latents]), BENCH, on)
    assert {key: value.value for key, value in after.values.items()} == pytest.approx(
        {key: value.value for key, value in before.values.items()}
    )
    low, high = before["f1"].low, before["f1"].high
    assert low is not None
    assert high is not None
    assert low < before["f1"].value < high


def test_chance_is_where_it_is_said_to_be() -> None:
    score = random_truth(90, BENCH, rows=ROWS, seed=3)
    on = BENCH.sample(ROWS, seed=3).codes
    rates = on.firing_counts() / ROWS
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(90, 32, generator=generator)
    nearest = (torch.nn.functional.normalize(directions) @ BENCH.features.T).abs().argmax(1)
    expected = rates[nearest].mean().item()  # of an independent detector that fires as often: its rate
    for key in ("precision", "recall", "f1"):
        assert score[key].value == pytest.approx(expected, abs=0.02)
    assert score["matched_cosine"].value < 0.6
    assert score["absorption"].value == pytest.approx(0, abs=0.1) or np.isnan(score["absorption"].value)


def test_a_latent_that_never_fires_counts_as_nothing_found(drawn: PlantedBatch) -> None:
    codes = dense(drawn).clone()
    codes[:, :45] = 0
    score = scored(BENCH.features, codes, drawn)
    for key in ("f1", "precision", "recall"):
        assert score[key].value == pytest.approx(0.5)
    assert score["matched_cosine"].value == pytest.approx(1)


def test_half_recall_and_half_precision_are_what_they_say(drawn: PlantedBatch) -> None:
    seldom = dense(drawn).clone()
    seldom[::2] = 0
    score = scored(BENCH.features, seldom, drawn)
    assert score["precision"].value == pytest.approx(1)
    assert score["recall"].value == pytest.approx(0.5, abs=0.02)
    assert score["f1"].value == pytest.approx(2 / 3, abs=0.02)


def test_absorbed_parents_are_seen_in_firing_and_in_direction(drawn: PlantedBatch) -> None:
    codes, directions = dense(drawn).clone(), BENCH.features.clone()
    children = (BENCH.parents >= 0).nonzero()[:, 0]
    for child in children.tolist():
        parent = int(BENCH.parents[child])
        codes[codes[:, child] > 0, parent] = 0
        directions[child] += 0.5 * BENCH.features[parent]
    score = scored(directions, codes, drawn)
    assert score["absorption"].value == pytest.approx(1)
    assert score["absorbed_direction"].value == pytest.approx(0.5, abs=1e-3)
    assert score["composition"].value < 0.05
    missed = dense(drawn).clone()
    missed[::3] = 0  # misses that have nothing to do with children are no absorption
    assert scored(BENCH.features, missed, drawn)["absorption"].value == pytest.approx(0, abs=0.12)


def test_a_feature_in_two_latents_is_split(drawn: PlantedBatch) -> None:
    halves = dense(drawn)[:, [0]].repeat(1, 2)
    halves[::2, 0], halves[1::2, 1] = 0, 0
    directions = torch.cat([BENCH.features, BENCH.features[:1]])
    score = scored(directions, torch.cat([halves[:, :1], dense(drawn)[:, 1:], halves[:, 1:]], 1), drawn)
    assert score["splitting"].value == pytest.approx(1 / 90)
    assert score["uniqueness"].value == pytest.approx(90 / 91)


def test_a_latent_for_two_features_together_is_a_composition() -> None:
    planted = PlantedDictionary(6, 6, l0=2.4, orthogonal=True)
    on = planted.sample(3000, seed=2).codes
    truth = on.to_dense()
    pairs = torch.stack([truth[:, i] * truth[:, i + 1] for i in (0, 2, 4)], 1)
    directions = torch.stack([planted.features[i] + planted.features[i + 1] for i in (0, 2, 4)])
    score = score_codes(
        torch.cat([directions, planted.features]), SparseCodes.from_dense(torch.cat([pairs, truth], 1)), planted, on
    )
    assert score["composition"].value == pytest.approx(3 / 9)
    assert np.isnan(score["absorption"].value)
    assert "child" in score.notes["absorption"]


def test_an_sae_that_is_the_truth_is_scored_as_the_truth() -> None:
    planted = PlantedDictionary(12, 12, l0=2, orthogonal=True, magnitudes="constant", mean_norm=1.0)
    sae = ReLUSAE(12, 12)
    with torch.no_grad():
        sae.W_enc.copy_(planted.features)
        sae.W_dec.copy_(planted.features)
        sae.b_dec.copy_(planted.mean)
        sae.b_enc.fill_(-0.5)
    score = score_truth(sae, planted, rows=3000)
    for key in BEST:
        assert score[key].value == pytest.approx(1, abs=1e-5), key
    with pytest.raises(MismatchError):
        score_truth(ReLUSAE(11, 12), planted, rows=100)
    with pytest.raises(ConfigError):
        score_truth(sae, planted, rows=1)


def test_scores_equal_saelens_own_on_the_same_tensors() -> None:
    features, directions, on, fired = (torch.from_numpy(part) for part in tensors())

    class Given:
        parents = torch.full((len(features),), -1)

        def __init__(self) -> None:
            self.features = features

        def sample(self, rows: int, seed: int = 0) -> PlantedBatch:
            raise NotImplementedError

    score = score_codes(directions, SparseCodes.from_dense(fired), Given(), SparseCodes.from_dense(on))
    for name, value in THEIRS.items():
        assert score[name].value == pytest.approx(value, abs=1e-5), name


def test_probes_are_those_that_newtons_method_finds_and_nothing_beats_them() -> None:
    ceiling = probe_ceiling(BENCH, 6, rows=40_000, test_rows=6_000)
    x, on = BENCH.sample(10_000, seed=9)
    fresh, truth = BENCH.sample(6_000, seed=10)
    labels, wanted = on.to_dense() > 0, truth.to_dense() > 0
    for feature in (0, 5):
        scores = _extended(fresh) @ newton(_extended(x), labels[:, feature].double())
        limits = scores.quantile(torch.linspace(0, 1, 100).double())
        best = max(_f1(scores > limit, wanted[:, feature]) for limit in limits)
        assert ceiling.each[feature].item() == pytest.approx(best, abs=0.04)
    assert ceiling.f1.value == pytest.approx(ceiling.each.double().mean().item())
    sure = probe_ceiling(
        PlantedDictionary(6, 6, orthogonal=True, l0=1, magnitudes="constant"), 6, rows=20_000, test_rows=4_000
    )
    assert sure.f1.value > 0.999
    for none in (0, 91):
        with pytest.raises(ConfigError):
            probe_ceiling(BENCH, none)


def newton(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A logistic regression, in plain float64."""
    weight = torch.zeros(x.shape[1], dtype=torch.float64)
    for _ in range(12):
        p = torch.sigmoid(x @ weight)
        curvature = x.T @ (x * (p * (1 - p))[:, None]) + 1e-6 * torch.eye(x.shape[1], dtype=torch.float64)
        weight -= torch.linalg.solve(curvature, x.T @ (p - labels))
    return weight


def _extended(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)


def _f1(said: torch.Tensor, are: torch.Tensor) -> float:
    return (2 * (said & are).sum() / (said.sum() + are.sum()).clamp_min(1)).item()


def test_rows_of_a_generator_are_evaluated_against_their_truth_and_the_full_suite_has_the_ceiling() -> None:
    planted = PlantedDictionary(24, 16, l0=2, seed=1)
    sae, other = (ms.TopKSAE(16, 24, k=2, seed=seed) for seed in (1, 2))
    core = ms.evaluate(sae, planted, tokens=1200, progress=False)
    assert core.facts["data"] == "PlantedDictionary"
    assert core.facts["rows"] == 1200
    assert core["f1"] == ms.score_truth(sae, planted, 1200)["f1"]
    assert "probes" not in core.columns
    report = ms.evaluate({"a": sae, "b": other}, planted, suite="full", tokens=1200, progress=False)
    assert report.of("a")["fvu"].value == pytest.approx(core["fvu"].value)
    for name, one in (("a", sae), ("b", other)):
        assert report.columns[name]["f1"] == ms.score_truth(one, planted, 1200)["f1"]
    assert report.columns["probes"]["f1"].value > 2 * report.columns["random"]["f1"].value
    assert "no parent" in report.notes["absorbed_direction"]
    with pytest.raises(MismatchError, match="width 8"):
        ms.evaluate(ms.TopKSAE(8, 24, k=2), planted, progress=False)
