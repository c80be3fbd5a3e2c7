"""Which latents fire on a word: against a plain recount of the text."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import pytest
from small_store import Made

from monosem.features.word_table import wilson

Occurrences = dict[str, list[tuple[int, int, int]]]


@pytest.fixture(scope="module")
def places(made: Made) -> Occurrences:
    """Of every word the context, first and last token of each occurrence: from the text, by a regular expression."""
    found: Occurrences = defaultdict(list)
    vocabulary = made.store.vocabulary
    for context, row in enumerate(made.tokens.tolist()):
        pieces = ["\n" if token in vocabulary.special else vocabulary.text(token) for token in row]
        if any("\ufffd" in piece for piece in pieces):
            continue
        ends = np.cumsum([len(piece) for piece in pieces])
        for match in re.finditer(r"[^\W_]+", "".join(pieces)):
            first = int(np.searchsorted(ends, match.start(), side="right"))
            last = int(np.searchsorted(ends, match.end() - 1, side="right"))
            found[match.group().lower()].append((context, first, last))
    return found


def test_recall_strength_and_share_are_those_of_a_recount(made: Made, places: Occurrences) -> None:
    table = made.store.words
    assert table is not None
    maxima = made.dense.amax((0, 1)).clamp_min(1e-30)
    rates = (made.dense > 0).sum((0, 1)) / int(made.kept.sum())
    tried = 0
    for word in sorted(places, key=lambda word: -len(places[word]))[:60]:
        if table.occurrences(word) != len(places[word]):
            continue  # some of it stands in contexts with broken characters, which the recount leaves out
        tried += 1
        most = np.array([made.dense[c, a : b + 1].amax(0).numpy() for c, a, b in places[word]])
        fires, n = (most > 0).sum(0), len(most)
        strength = most.sum(0) / np.maximum(1, fires) / maxima.numpy()
        scores = np.nan_to_num((fires / n - rates.numpy()) * strength)
        found = table.find(word)
        assert [f.score for f in found] == pytest.approx(sorted(scores[scores > 0], reverse=True)[:16], rel=1e-2)
        for firing in found:
            evidence, latent = firing.evidence, firing.latent
            assert (evidence.occurrences, evidence.fires) == (n, fires[latent])
            assert evidence.recall == evidence.low == evidence.high == pytest.approx(fires[latent] / n)
            assert evidence.strength == pytest.approx(strength[latent], rel=1e-2)
            on = sum(int((made.dense[c, a : b + 1, latent] > 0).sum()) for c, a, b in places[word])
            assert evidence.share == pytest.approx(on / int((made.dense[..., latent] > 0).sum()))
            shown = table.shown(firing)
            assert shown.activations[shown.peak] == pytest.approx(most[:, latent].max(), rel=1e-2)
            assert word in "".join(shown.texts).lower()
    assert tried > 20


def test_case_and_space_do_not_count_and_all_of_several_words_must_fire(made: Made, places: Occurrences) -> None:
    table = made.store.words
    assert table is not None
    first, second = sorted(places, key=lambda word: -len(places[word]))[:2]
    assert table.find(f" {first.upper()}") == table.find(first) != []
    both = {f.latent: f.score for f in table.find_all([first, second])}
    one, other = ({f.latent: f.score for f in table.find(word)} for word in (first, second))
    assert both == {latent: min(one[latent], other[latent]) for latent in one.keys() & other.keys()}
    assert table.find("xyzzyx") == [] == table.find_all([first, "xyzzyx"])


def test_intervals_of_shares_are_wilsons() -> None:
    """From Brown, Cai and DasGupta (2001): solutions of |p - x/n| = z sqrt(p (1 - p) / n)."""
    for hits, n in ((0, 10), (3, 10), (10, 10), (70, 200)):
        for bound in wilson(hits, n):
            assert abs(bound - hits / n) == pytest.approx(1.96 * (bound * (1 - bound) / n) ** 0.5, abs=1e-9)
    assert wilson(0, 0) == (0, 1)
