"""Paired comparison: its interval covers, it is narrower than two side by side, and it says what it could show."""

from __future__ import annotations

import numpy as np
import pytest

from monosem.evaluation.paired import paired_difference, why_not_paired
from monosem.intervals import DocumentSums, Drawn, Interval

DOCUMENTS = 80


def measured(values: np.ndarray) -> Interval:
    """The mean of one value a document."""
    sums, places = DocumentSums(), np.arange(len(values))
    sums.add("count", places, np.ones(len(values)))
    sums.add("value", places, values)
    return sums.interval(lambda s: s["value"] / s["count"])


def two(rng: np.random.Generator, difference: float) -> tuple[Interval, Interval]:
    """Two that find the same documents hard, and differ by noise and by a constant."""
    hard = rng.exponential(size=DOCUMENTS)
    return measured(hard + 0.2 * rng.normal(size=DOCUMENTS)), measured(
        hard + difference + 0.2 * rng.normal(size=DOCUMENTS)
    )


def test_the_interval_covers_the_truth_and_the_smallest_difference_is_seen_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    first = paired_difference(*two(rng, 0.0))
    assert first is not None
    covered = seen = 0
    for _ in range(200):
        found = paired_difference(*two(rng, first.smallest))
        assert found is not None
        covered += found.low <= first.smallest <= found.high
        seen += found.told
    assert 0.89 <= covered / 200 <= 0.99
    assert 0.68 <= seen / 200 <= 0.92


def test_what_both_find_hard_cancels() -> None:
    a, b = two(np.random.default_rng(1), 0.1)
    found = paired_difference(a, b)
    assert found is not None
    assert found.told
    assert a.low is not None
    assert a.high is not None
    assert b.low is not None
    assert a.high > b.low, "their own intervals overlap"
    assert found.high - found.low < 0.5 * (a.high - a.low)


def test_an_sae_does_not_differ_from_itself_and_the_order_turns_the_sign() -> None:
    a, b = two(np.random.default_rng(2), 0.5)
    same, there, back = paired_difference(a, a), paired_difference(a, b), paired_difference(b, a)
    assert same is not None
    assert same == (0, 0, 0, 0)
    assert not same.told
    assert there is not None
    assert back is not None
    assert back == pytest.approx((-there.value, -there.high, -there.low, there.smallest))


def test_four_times_the_documents_show_half_the_difference() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(2, 1600))
    few = paired_difference(measured(noise[0, :400]), measured(noise[1, :400]))
    many = paired_difference(measured(noise[0]), measured(noise[1]))
    assert few is not None
    assert many is not None
    assert many.smallest == pytest.approx(few.smallest / 2, rel=0.15)


def test_what_cannot_be_paired_is_not() -> None:
    rng = np.random.default_rng(4)
    a, other = measured(rng.normal(size=50)), measured(rng.normal(size=51))
    assert isinstance(a, Drawn)
    assert paired_difference(a, other) is None
    assert why_not_paired(a, other) == "they were measured on other documents"
    assert paired_difference(a, Interval(1.0)) is None
    assert why_not_paired(a, Interval(1.0)) == "one of them has no interval"
