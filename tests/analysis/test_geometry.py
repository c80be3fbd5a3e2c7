"""Shapes of families: planted circles and lines are found, vectors at random are not, small families are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from monosem.analysis import density, geometry, parallelograms, shape_of
from monosem.errors import ConfigError
from monosem.models import SubjectModel
from monosem.sae import TopKSAE


def test_a_circle_is_one_whatever_its_turn_and_not_a_line() -> None:
    draw = np.random.default_rng(0)
    basis = np.linalg.qr(draw.normal(size=(30, 2)))[0]
    turns = 2 * np.pi * (np.arange(12) + 0.4) / 12
    round_ = np.stack([np.cos(turns), -np.sin(turns)], 1) @ basis.T + draw.normal(size=30)
    shape = shape_of(round_, permutations=2000)
    assert shape.circle.value == pytest.approx(1)
    assert shape.circle.p == pytest.approx(1 / 2001)
    assert shape.explained[:2].sum() == pytest.approx(1)
    assert shape.circle.chance < 0.5


def test_a_line_is_found_in_order_and_its_direction_orders_what_was_left_out() -> None:
    draw = np.random.default_rng(1)
    along, years = draw.normal(size=40), np.array([1900, 1910, 1950, 1960, 1990, 2000, 2010, 2020.0])
    vectors = np.outer((years - 1950) / 30, along) + 0.3 * draw.normal(size=(8, 40))
    shape = shape_of(vectors, years, permutations=2000)
    assert shape.line.value > 0.99
    assert shape.held_out.value > 0.9
    assert max(shape.line.p, shape.held_out.p) < 0.005
    assert abs(shape.direction @ along) / np.linalg.norm(along) > 0.95
    assert shape.direction @ along > 0
    assert shape.in_plane > 0.9


def test_the_prediction_of_each_left_out_is_that_of_a_regression_without_it() -> None:
    draw = np.random.default_rng(2)
    x, y = draw.normal(size=(9, 5)), draw.normal(size=9)
    centred = x - x.mean(0)
    penalty = np.square(centred).sum() / 9
    predicted = []
    for i in range(9):
        kept = np.arange(9) != i
        design = np.c_[np.ones(8), x[kept]]
        fit = np.linalg.solve(design.T @ design + penalty * np.diag([0.0] + [1.0] * 5), design.T @ y[kept])
        predicted.append(fit @ np.r_[1, x[i]])
    assert shape_of(x, y, permutations=10).held_out.value == pytest.approx(np.corrcoef(predicted, y)[0, 1])


def test_p_is_uniform_for_vectors_at_random() -> None:
    draw = np.random.default_rng(3)
    shapes = [shape_of(draw.normal(size=(9, 20)), permutations=199, seed=i) for i in range(150)]
    for name in ("circle", "line", "held_out"):
        assert stats.kstest([getattr(shape, name).p for shape in shapes], "uniform").pvalue > 0.01


def test_parallel_pairs_have_cosine_one_and_others_do_not() -> None:
    draw = np.random.default_rng(4)
    first, step = draw.normal(size=(8, 20)), draw.normal(size=20)
    exact = parallelograms(np.stack([first, first + step], 1), permutations=500)
    assert exact.value == pytest.approx(1)
    assert exact.p == pytest.approx(1 / 501)
    assert parallelograms(draw.normal(size=(8, 2, 20)), permutations=500).p > 0.01


def test_features_of_a_family_are_those_that_fire_on_its_words_alone(tiny: SubjectModel) -> None:
    sae = TopKSAE(32, 300, k=6, seed=1)
    words = ["one", "two", "three", "four", "five", "six", "seven"]
    given: Any = {"hook": "resid_post.1", "templates": ["It was {}", "Before {}"], "controls": ["river", "music"]}
    found = geometry(sae, tiny, words, **given, permutations=100, progress=False)
    assert found.fires.shape == (len(found.latents), 7)
    assert found.vectors.shape == (7, 32)
    assert (found.fires.max(1) >= 0.5).all()
    assert found.of_one + found.of_several == len(found.latents)
    texts = ["It was three", "Before three"]
    codes = [sae.encode(tiny.capture(text, ["resid_post.1"])["resid_post.1"][0, -1:]).to_dense()[0] for text in texts]
    wanted = [np.mean([float(code[latent] > 0) for code in codes]) for latent in found.latents]
    np.testing.assert_allclose(found.fires[:, 2], wanted)


def test_rows_in_pairs_are_denser_than_rows_at_random() -> None:
    draw = np.random.default_rng(5)
    rows = draw.normal(size=(60, 24))
    near = density(np.concatenate([rows, rows + 0.1 * draw.normal(size=rows.shape)]))
    assert near.value > 0.98
    assert near.p == pytest.approx(1 / 21)
    assert density(rows).p > 0.05


def test_too_small_a_family_is_refused_in_a_line(tiny: SubjectModel) -> None:
    sae = TopKSAE(32, 50, k=4)
    with pytest.raises(ConfigError, match="3 words are too few for a test: a family needs at least 6"):
        geometry(sae, tiny, ["a", "b", "c"])
    with pytest.raises(ConfigError, match="5 members are too few"):
        shape_of(np.eye(5))
    with pytest.raises(ConfigError, match="2 pairs are too few"):
        parallelograms(np.zeros((2, 2, 3)))
    with pytest.raises(ConfigError, match="all the same"):
        shape_of(np.ones((7, 3)))
    with pytest.raises(ConfigError, match=r"values= must be 7 numbers"):
        shape_of(np.random.default_rng(0).normal(size=(7, 3)), [1] * 7)
    with pytest.raises(ConfigError, match="must end in"):
        geometry(sae, tiny, list("abcdefg"), hook="resid_post.1", templates=["{} was"])
