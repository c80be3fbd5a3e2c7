"""Absorption and splitting on planted words, where both are known; and what a model that cannot spell is told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import sparse

import monosem as ms
from monosem.errors import DataError
from monosem.evaluation.probing.absorption import Absorption, _Along, letters_of, metrics_of_letters, vocabulary_words
from monosem.evaluation.probing.columns import Columns
from monosem.evaluation.probing.logistic import Logistic
from monosem.models import SubjectModel


def planted(absorbed: float, seed: int = 0) -> tuple[Columns, Columns, np.ndarray, np.ndarray, np.ndarray]:
    """Six letters with a latent each (b has two, of half of its words); of a's words some are carried by others.

    Those are many latents of few words each: one of many words would be a latent of the letter too, a split.
    """
    rng = np.random.default_rng(seed)
    n, d, absorbers = 3000, 50, np.arange(10, 34)
    labels = np.array(list("abcdef"))[rng.integers(0, 6, n)]
    directions = np.zeros((34, d))
    directions[np.arange(10), np.arange(10)] = 2.0  # rows need not be of length 1
    directions[absorbers, 0], directions[absorbers, absorbers + 15] = 1.0, 1.0
    codes, x = np.zeros((n, 34)), 0.05 * rng.standard_normal((n, d))
    taken = np.zeros(n, bool)
    for i, label in enumerate(labels):
        latent = {"b": 1 + 5 * int(rng.random() < 0.5)}.get(label, "abcdef".index(label))
        if label == "a" and rng.random() < absorbed:
            codes[i, rng.choice(absorbers)], taken[i] = 6.0, True
        else:
            codes[i, latent] = 3.0
        x[i] += codes[i] @ directions
        if label == "b":
            x[i, 9] += 6.0
    return Columns(sparse.csr_array(codes)), Columns(x), labels, directions, taken


def test_planted_absorption_and_splitting_are_found_and_nothing_else() -> None:
    codes, x, labels, directions, taken = planted(0.3)
    letters = {letter.label: letter for letter in letters_of(codes, x, labels, directions)}
    assert sorted(letters) == list("abcdef")
    assert letters["a"].split == [0]
    assert sorted(letters["b"].split) == [1, 6]
    test = np.arange(2400, 3000)
    a = letters["a"]
    assert np.array_equal(a.full, taken[test][a.rows])
    assert np.array_equal(a.fraction, taken[test][a.rows])
    assert 0.1 < a.full.mean() < 0.5
    for label in "bcdef":
        assert letters[label].full.sum() == 0
        assert letters[label].fraction.sum() == 0


@pytest.mark.parametrize(
    ("codes", "full", "fraction"),
    [
        ([3.0, 0.0, 0.0], 0, 0),  # the letter's own latent carries all
        ([0.0, 6.0, 0.0], 1, 1),  # another one does
        ([1.0, 4.0, 0.0], 0, 2 / 3),  # 2 of 6 and 4 of 6
        ([2.5, 1.0, 0.0], 0, 0),  # 1 of 6 is too little
        ([0.0, 2.0, 0.0], 0, 0),  # and 2 of 6 too, though its own is off
        ([0.0, 0.0, 9.0], 0, 0),  # what lies across the direction carries nothing
    ],
)
def test_what_latents_carry_along_the_direction_is_counted(codes: Any, full: float, fraction: float) -> None:
    directions = np.array([[2.0, 0, 0], [1, 0, 1], [0, 3, 0]])
    probe = Logistic(np.zeros(3), np.ones(3), np.array([0.7, 0.0, 0.0]), 0.0)
    along = _Along(probe, directions, np.array([0]))
    assert along.absorbed(np.array([6.0, 1, 1]), np.array(codes)) == (full, pytest.approx(fraction))
    assert along.absorbed(np.array([-6.0, 1, 1]), np.array(codes)) == (0, 0)


def test_words_of_a_vocabulary_are_whole_tokens_and_a_model_that_cannot_spell_is_told(tiny: SubjectModel) -> None:
    words = vocabulary_words(tiny)
    assert len(words) > 500
    assert all(len(tiny.tokens(f" {word}", prepend_bos=False)[0]) == 1 for word in words[::50])
    sae = ms.TopKSAE(32, 64, k=4, seed=0)
    sae.metadata.hook, sae.metadata.prepend_bos, sae.metadata.context_length = "final_norm", True, 64
    options: Any = {"model": tiny, "progress": False}
    with pytest.raises(DataError, match="it cannot spell well enough; try more words"):
        ms.absorption(sae, n_words=150, shots=1, **options)
    with pytest.raises(DataError, match=r"there are 2 words to be spelled, fewer than 103: give words="):
        ms.absorption(sae, words=["one", "two"], **options)


def test_the_report_says_what_is_known_of_its_reliability(tmp_path: Any) -> None:
    codes, x, labels, directions, _ = planted(0.3)
    letters = letters_of(codes, x, labels, directions)
    facts: dict[str, Any] = {"model": "tiny", "hook": "embed", "train": 2400, "test": 600}
    found = Absorption(facts, letters, metrics_of_letters(letters, 600))
    full = found.metrics["absorption_full"]
    assert full.value == pytest.approx(np.mean([letter.full.mean() for letter in letters]), abs=1e-6)
    assert full.low is not None
    assert full.low < full.value < (full.high or 0)
    assert found.metrics["split_latents"].value == pytest.approx(7 / 6)
    assert "a random one scores well" in " ".join(str(found).split())
    found.save(tmp_path / "absorption.json")
    assert (tmp_path / "absorption.json").stat().st_size > 100
