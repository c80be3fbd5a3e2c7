"""Scores of token sets: signed, equal to a plain walk, with a null that is exact and p values that are uniform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from monosem.analysis.enrichment import corrected, exact_p, scores, sets_of
from monosem.analysis.token_sets import permuted_p


def plain(values: np.ndarray, members: set[int], order: np.ndarray) -> float:
    """The walk, step by step: equal values are one step."""
    n, m = len(members), len(order) - len(members)
    total, furthest = 0.0, [0.0]
    for value in dict.fromkeys(values.tolist()):
        for token in order[values == value].tolist():
            total += 1 / n if token in members else -1 / m
        furthest.append(total)
    high, low = max(furthest), min(furthest)
    return high if high >= -low else low


def ranked(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(values, order, 1), order


def test_a_perfect_set_scores_one_at_the_top_and_minus_one_at_the_bottom() -> None:
    values = np.arange(50, 0, -1, dtype=np.float32)[None]
    first, last = np.arange(7), np.arange(43, 50)
    found = scores(values, np.arange(50)[None], sets_of([first, last, np.arange(50)[::2]], 50))
    assert found[0, 0] == 1
    assert found[0, 1] == -1
    assert abs(found[0, 2]) == pytest.approx(0.04)
    p = exact_p(found, np.array([7, 7, 25]), 50)[0]
    ways = 2 / float(stats.binom(50, 0.5).pmf(7) * 2**50)
    np.testing.assert_allclose(p[:2], ways, rtol=1e-9)
    assert p[2] == pytest.approx(1)


@pytest.mark.parametrize("ties", [False, True])
def test_scores_equal_a_plain_walk(ties: bool) -> None:
    draw = np.random.default_rng(3)
    values = draw.normal(size=(20, 60)).astype(np.float32)
    if ties:
        values = np.round(2 * values)
    members = [draw.choice(60, size, replace=False) for size in (1, 2, 5, 20, 59)]
    descending, order = ranked(values)
    found = scores(descending, order, sets_of(members, 60))
    for r in range(20):
        for s, each in enumerate(members):
            assert found[r, s] == pytest.approx(plain(descending[r], set(each.tolist()), order[r]), abs=1e-6)
    turned = scores(*ranked(-values), sets_of(members, 60))
    np.testing.assert_allclose(np.abs(turned), np.abs(found), atol=1e-6)  # the other way round: the other sign


@pytest.mark.parametrize(("n", "size"), [(5, 30), (12, 200), (60, 1000), (500, 1100)])
def test_p_is_that_of_the_two_sample_statistic(n: int, size: int) -> None:
    """As scipy has it: the exact p of the same two samples; few scores are exact, many are interpolated."""
    draw = np.random.default_rng(n)
    values = draw.normal(size=(300, size))
    values[:, :n] += np.linspace(0, 1, 300)[:, None]
    found = scores(*ranked(values), sets_of([np.arange(n)], size))
    few, many = exact_p(found[::30], np.array([n]), size)[:, 0], exact_p(found, np.array([n]), size)[::30, 0]
    for row, exact, near in zip(values[::30], few, many, strict=True):
        wanted = stats.ks_2samp(row[:n], row[n:], method="exact").pvalue
        assert exact == pytest.approx(wanted, rel=1e-6)
        assert near == pytest.approx(wanted, rel=0.06)


def test_p_is_uniform_under_the_null_and_permutations_agree_with_it() -> None:
    """Sizes without a common divisor with the rest of the vocabulary: scores lie densely, p is nearly continuous."""
    draw = np.random.default_rng(1)
    sizes, n_tokens = (7, 41, 299), 1501
    sets = sets_of([draw.choice(n_tokens, size, replace=False) for size in sizes], n_tokens)
    found = scores(*ranked(draw.normal(size=(1000, n_tokens))), sets)
    exact, permuted = exact_p(found, sets.sizes, n_tokens), permuted_p(found, sets, n_tokens, 4000, seed=1)
    for column in range(3):
        assert stats.kstest(exact[:, column], "uniform").pvalue > 0.01
        assert stats.kstest(permuted[:, column], "uniform").pvalue > 0.01
    error = np.sqrt(exact * (1 - exact) / 4000)
    assert np.abs(permuted - exact).max() < 0.03
    assert (np.abs(permuted - exact) < 4 * error + 0.01).mean() > 0.99
    assert permuted.min() >= 1 / 4001


def test_the_correction_is_that_of_benjamini_and_hochberg() -> None:
    p = np.random.default_rng(5).uniform(size=(30, 7)) ** 3
    np.testing.assert_allclose(corrected(p).ravel(), stats.false_discovery_control(p.ravel()))
