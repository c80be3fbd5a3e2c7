"""Intervals: sums per document, and a bootstrap that says what theory says where there is a theory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from monosem.intervals import MAX_GROUPS, DocumentSums, Interval


def mean(sums: dict[str, np.ndarray]) -> np.ndarray:
    return sums["x"] / sums["rows"]


def filled(values: np.ndarray, documents: np.ndarray) -> DocumentSums:
    sums = DocumentSums()
    sums.add("rows", documents, np.ones(len(values)))
    sums.add("x", documents, values)
    return sums


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.integers(0, 3 * MAX_GROUPS), min_size=1, max_size=60),
    width=st.sampled_from([None, 1, 3]),
    pieces=st.integers(1, 5),
)
def test_sums_equal_a_plain_loop(documents: list[int], width: int | None, pieces: int) -> None:
    rng = np.random.default_rng(len(documents))
    values = rng.normal(size=(len(documents),) if width is None else (len(documents), width))
    sums = DocumentSums()
    for part in np.array_split(np.arange(len(documents)), pieces):
        sums.add("x", np.array(documents)[part], values[part])
    expected = np.zeros((MAX_GROUPS, *values.shape[1:]))
    for document, value in zip(documents, values, strict=True):
        expected[document % MAX_GROUPS] += value
    np.testing.assert_allclose(sums.arrays["x"], expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(sums.total("x"), values.sum(0), rtol=1e-9, atol=1e-12)
    assert "x" in sums
    assert "y" not in sums


@pytest.mark.parametrize(("n_documents", "per_document"), [(50, 1), (200, 5), (800, 2)])
def test_the_bootstrap_of_a_mean_agrees_with_student_s_interval(n_documents: int, per_document: int) -> None:
    """Documents are what is independent: rows in a document here are all alike."""
    rng = np.random.default_rng(n_documents)
    of_document = rng.normal(2, 1.5, size=n_documents)
    interval = filled(np.repeat(of_document, per_document), np.repeat(np.arange(n_documents), per_document)).interval(
        mean
    )
    low, high = stats.t.interval(0.95, n_documents - 1, of_document.mean(), stats.sem(of_document))
    assert interval.low is not None
    assert interval.high is not None
    assert interval.value == pytest.approx(of_document.mean(), rel=1e-12)
    assert interval.high - interval.low == pytest.approx(high - low, rel=0.15)
    assert interval.low == pytest.approx(low, abs=0.15 * (high - low))
    assert interval.high == pytest.approx(high, abs=0.15 * (high - low))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        interval = filled(rng.normal(size=40), np.arange(40)).interval(mean)
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= 0 <= interval.high
    assert 88 <= covered <= 99


def test_a_document_of_many_rows_weighs_as_many_rows() -> None:
    values, documents = np.array([0.0, 0, 0, 4]), np.array([5, 5, 5, 9])
    assert filled(values, documents).interval(mean).value == pytest.approx(1)


def test_one_document_has_no_interval_and_equal_documents_have_a_point() -> None:
    assert filled(np.ones(10), np.full(10, 3)).interval(mean) == Interval(1)
    assert filled(np.full(10, 2.0), np.arange(10)).interval(mean) == Interval(2, 2, 2)


def test_more_documents_than_groups_still_have_an_honest_interval() -> None:
    n = 3 * MAX_GROUPS
    values = np.random.default_rng(1).normal(size=n)
    interval = filled(values, np.arange(n)).interval(mean)
    assert interval.low is not None
    assert interval.high is not None
    assert interval.high - interval.low == pytest.approx(2 * 1.96 / n**0.5, rel=0.15)


def test_the_interval_is_the_same_every_time() -> None:
    sums = filled(np.random.default_rng(2).normal(size=60), np.arange(60) // 2)
    assert sums.interval(mean) == sums.interval(mean)
    assert sums.interval(mean, seed=1) != sums.interval(mean)
