"""States that are known: what tells all of them scores 1, what knows nothing scores the floor, by plain loops too."""

import numpy as np
import pytest
import torch

from monosem.codes import SparseCodes
from monosem.errors import DataError, MismatchError
from monosem.evaluation.states import StateScores, floor_scores, probe_states, state_scores, told_scores

KINDS, PLACES = 3, 4


def drawn(groups: int, seed: int, rows: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """At every place one of three kinds, of uneven rates, and the group of each row."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(KINDS, (groups * rows, PLACES), p=(0.5, 0.3, 0.2))
    truth = np.concatenate([kind == k for k in range(KINDS)], axis=1)
    return truth, np.repeat(np.arange(groups), rows) + 1000 * seed


def half(codes: np.ndarray, truth: np.ndarray, groups: np.ndarray) -> tuple[SparseCodes, np.ndarray, np.ndarray]:
    return SparseCodes.from_dense(torch.from_numpy(codes).float()), truth, groups


def noisy(seed: int, n_latents: int = 9, seen: float = 0.7) -> tuple[SparseCodes, np.ndarray, np.ndarray]:
    """Latents that say something of properties, strongly or weakly, and some that say nothing."""
    truth, groups = drawn(20, seed)
    rng = np.random.default_rng(seed + 100)
    codes = rng.exponential(size=(len(truth), n_latents)) * (rng.random((len(truth), n_latents)) < 0.3)
    codes[:, :6] += truth[:, :6] * rng.uniform(0.5, 3, (len(truth), 6)) * (rng.random((len(truth), 6)) < seen)
    return half(codes, truth, groups)


def plainly(train: tuple, test: tuple) -> tuple[list[float], float, float]:
    """F1 by property, reconstruction and its threshold, by loops over all that is said."""
    a, truth, other, true = train[0].to_dense().numpy(), train[1], test[0].to_dense().numpy(), test[1]
    tops = a.max(0)

    def f1(told: np.ndarray, real: np.ndarray) -> float:
        right = float((told & real).sum())
        return 2 * right / max(1, told.sum() + real.sum())

    best = []
    for s in range(truth.shape[1]):
        choices = [(t, f) for t in range(10) for f in range(a.shape[1])]
        t, f = max(choices, key=lambda c: f1(a[:, c[1]] > np.float64(c[0] / 10) * tops[c[1]], truth[:, s]))
        best.append(f1(other[:, f] > t / 10 * tops[f], true[:, s]))

    def boards(x: np.ndarray, t: int) -> np.ndarray:
        told = np.zeros((len(x), truth.shape[1]), bool)
        for f in range(a.shape[1]):
            active = a[:, f] > t / 10 * tops[f]
            for s in range(truth.shape[1]):
                if active.sum() >= 10 and truth[active, s].mean() >= 0.95:
                    told[:, s] |= x[:, f] > t / 10 * tops[f]
        return told

    def mean(x: np.ndarray, real: np.ndarray, t: int) -> float:
        return float(np.mean([f1(told, row) for told, row in zip(boards(x, t), real, strict=True)]))

    t = max(range(10), key=lambda t: mean(a, truth, t))
    return best, mean(other, true, t), t / 10


@pytest.mark.parametrize("seed", [1, 5])
def test_scores_are_those_of_plain_loops(seed: int) -> None:
    train, test = noisy(seed), noisy(seed + 1)
    scores = state_scores(train, test)
    best, reconstruction, threshold = plainly(train, test)
    np.testing.assert_allclose(scores.f1, best, rtol=1e-6)
    assert scores.coverage.value == pytest.approx(np.mean(best))
    assert scores.reconstruction.value == pytest.approx(reconstruction)
    assert scores.threshold == threshold
    assert 0 < reconstruction < 1


def test_a_dictionary_of_the_properties_scores_1_in_any_order_and_scale() -> None:
    rng, halves = np.random.default_rng(0), [drawn(15, 1), drawn(15, 2)]
    order, scale = rng.permutation(KINDS * PLACES), rng.uniform(0.1, 40, KINDS * PLACES)
    train, test = (half((truth * scale)[:, order], truth, groups) for truth, groups in halves)
    scores = state_scores(train, test)
    assert scores.latents is not None
    assert tuple(scores.coverage) == (1, 1, 1)
    assert tuple(scores.reconstruction) == (1, 1, 1)
    assert order[scores.latents].tolist() == list(range(KINDS * PLACES))


def test_latents_that_say_nothing_score_near_the_floor() -> None:
    rng, halves = np.random.default_rng(0), [drawn(200, 1), drawn(200, 2)]
    codes = [rng.exponential(size=(len(truth), 30)) for truth, _ in halves]  # always on: t = 0 says yes to all
    scores = state_scores(*(half(c, *both) for c, both in zip(codes, halves, strict=True)))
    floor = floor_scores(*halves)
    rates = halves[1][0].mean(0)
    np.testing.assert_allclose(floor.f1, 2 * rates / (1 + rates), rtol=1e-6)
    assert scores.coverage.value == pytest.approx(floor.coverage.value, abs=0.01)
    assert scores.reconstruction.value < 0.01


def test_what_is_chosen_is_chosen_in_training_alone() -> None:
    train, test = noisy(1), noisy(2)
    scores, turned = state_scores(train, test), state_scores(train, (test[0], ~test[1], test[2]))
    assert scores.latents is not None
    assert turned.latents is not None
    np.testing.assert_array_equal(scores.latents, turned.latents)
    assert (scores.threshold, scores.n_classifiers) == (turned.threshold, turned.n_classifiers)
    assert scores.coverage.value > turned.coverage.value


def test_the_order_of_rows_changes_nothing() -> None:
    train, test = noisy(1), noisy(2)
    back = [
        (SparseCodes.from_dense(codes.to_dense().flip(0)), truth[::-1], g[::-1]) for codes, truth, g in (train, test)
    ]
    scores, turned = state_scores(train, test), state_scores(*back)
    assert scores.coverage == pytest.approx(turned.coverage)
    assert scores.reconstruction == pytest.approx(turned.reconstruction)


def test_linear_probes_read_what_lies_along_directions_and_no_more() -> None:
    rng, halves = np.random.default_rng(0), [drawn(40, 1), drawn(40, 2)]
    directions = rng.normal(size=(KINDS * PLACES, 16))
    known, other = (torch.from_numpy(truth @ directions + 5).float() for truth, _ in halves)
    scores = told_scores(probe_states((known, halves[0][0]), other, KINDS), *halves)
    assert scores.coverage.value > 0.999
    assert scores.reconstruction.value > 0.999
    known, other = (torch.from_numpy(rng.normal(size=(len(truth), 16))).float() for truth, _ in halves)
    blind = told_scores(probe_states((known, halves[0][0]), other, KINDS), *halves)
    assert blind.reconstruction.value < 0.6
    assert blind.coverage.value < floor_scores(*halves).coverage.value


def test_properties_that_never_change_or_are_left_out_do_not_count() -> None:
    train, test = noisy(1), noisy(2)
    wide = [(codes, np.column_stack([truth, np.ones(len(truth), bool)]), g) for codes, truth, g in (train, test)]
    narrow, same = state_scores(train, test), state_scores(*wide)
    assert np.isnan(same.f1[-1])
    assert (narrow.coverage, narrow.reconstruction) == (same.coverage, same.reconstruction)
    some = state_scores(train, test, [0, 3])
    assert np.isnan(some.f1).sum() == KINDS * PLACES - 2
    assert some.coverage.value == pytest.approx(narrow.f1[[0, 3]].mean())


def test_intervals_are_over_groups_and_hold_the_value() -> None:
    scores: StateScores = state_scores(noisy(1), noisy(2))
    for interval in (scores.coverage, scores.reconstruction):
        assert interval.low is not None
        assert interval.high is not None
        assert 0 < interval.low < interval.value < interval.high < 1
    test = noisy(2)
    alone = state_scores(noisy(1), (test[0], test[1], np.full(len(test[1]), 7)))
    assert alone.coverage.low is None


def test_states_that_cannot_be_measured_are_refused() -> None:
    train, test = noisy(1), noisy(2)
    with pytest.raises(MismatchError, match="need a truth"):
        state_scores(train, (test[0], test[1][:-1], test[2]))
    with pytest.raises(MismatchError, match="not of one kind"):
        state_scores(train, (*noisy(2, n_latents=7)[:1], *test[1:]))
    with pytest.raises(DataError, match="in training and test"):
        state_scores(train, train)
    with pytest.raises(DataError, match="no property"):
        state_scores((train[0], np.ones_like(train[1]), train[2]), test)
    with pytest.raises(MismatchError, match="exactly one"):
        probe_states((train[0].to_dense(), ~train[1]), test[0].to_dense(), KINDS)
    with pytest.raises(MismatchError, match="cannot probe"):
        probe_states((train[0].to_dense(), train[1]), test[0].to_dense()[:, 1:], KINDS)
