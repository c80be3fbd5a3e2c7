"""Metrics know four dictionaries of known worth apart, and the docs have the table of what they are."""

from __future__ import annotations

import math

import pytest
from definitions_table import BEGIN, END, written
from metric_battery import DOCS, measure, rows, table

BETTER_FIRST = {
    "fvu": ("oracle", "best k", "untrained", "permuted"),
    "explained_variance": ("oracle", "best k", "untrained", "permuted"),
    "kl": ("oracle", "best k", "permuted"),
    "ce": ("oracle", "best k", "untrained"),
    "loss_recovered_mean": ("oracle", "best k", "untrained"),
    "loss_recovered_zero": ("oracle", "best k", "permuted"),
    "matched_cosine": ("oracle", "best k", "untrained"),
    "f1": ("oracle", "best k", "permuted"),
    "precision": ("oracle", "best k", "untrained"),
    "probe_auroc_1": ("oracle", "untrained"),
}
"""What each of these must make of the four, best first."""
HIGHER = (
    "explained_variance",
    "loss_recovered_mean",
    "loss_recovered_zero",
    "matched_cosine",
    "f1",
    "precision",
    "probe_auroc_1",
)


@pytest.fixture(scope="module")
def four() -> dict[str, dict[str, float]]:
    return measure(0, documents=16, steps=150)


@pytest.mark.parametrize("key", BETTER_FIRST)
def test_a_metric_puts_dictionaries_of_known_worth_in_order(key: str, four: dict[str, dict[str, float]]) -> None:
    values = [four[name][key] for name in BETTER_FIRST[key]]
    assert values == sorted(values, reverse=key in HIGHER)
    assert len(set(values)) == len(values)


def test_the_oracle_is_perfect_and_errors_put_back_cost_nothing(four: dict[str, dict[str, float]]) -> None:
    oracle = four["oracle"]
    assert oracle["fvu"] < 0.02
    assert oracle["kl"] < 0.02
    assert oracle["loss_recovered_mean"] > 0.97
    for key in ("matched_cosine", "f1", "precision", "recall", "uniqueness"):
        assert oracle[key] == pytest.approx(1, abs=1e-3), key
    for found in four.values():
        assert found["kl_with_error"] == pytest.approx(0, abs=1e-5)


def test_what_looks_at_weights_alone_does_not_see_a_permuted_decoder(four: dict[str, dict[str, float]]) -> None:
    """And so says nothing of worth: only the alignment of encoder and decoder sees it."""
    for key in ("decoder_max_cosine", "encoder_max_cosine", "dead_share", "dense_share", "l0", "matched_cosine"):
        assert four["permuted"][key] == pytest.approx(four["best k"][key], abs=1e-5), key
    assert four["permuted"]["encoder_decoder_cosine"] < 0.2 < four["best k"]["encoder_decoder_cosine"]


def test_every_value_is_a_number_or_undefined_never_infinite_and_the_table_shows_it(
    four: dict[str, dict[str, float]],
) -> None:
    for found in four.values():
        for key, value in found.items():
            assert not math.isinf(value), key
            assert math.isnan(value) or abs(value) < 1e6, key
    shown = table(rows([four]), 1)
    assert "`fvu`" in shown
    assert "nan" not in shown


def test_the_docs_have_the_definitions_as_they_are() -> None:
    between = DOCS.read_text().partition(BEGIN)[2].partition(END)[0]
    assert between.strip() == written(), "write it anew: python tests/definitions_table.py"
