"""Words that stand around the strongest firings of a feature, and that nothing else told of it."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from scipy.stats import binom

from monosem.features import FeatureStore

AROUND = 20
"""Tokens on either side of a firing."""
TOGETHER, CHANCE = 2, 1e-3
"""A word stands near so many of a feature's 12 strongest firings at least, and chance would do that so seldom."""
FEWEST, MOST = 4, 8
"""Words a feature."""
WORD = re.compile(r" [A-Za-z]{3,}")
STEM = 4
"""Letters by which words are taken to be the same."""
TEMPLATE = ["you", "are", "a", "helpful", "assistant", "named", "trained", "by", "hugging", "face"]
"""Words that the chat template puts into every conversation."""


class Words(NamedTuple):
    """Of a feature."""

    held_out: list[str]
    """From its passages: neither fired on, nor promoted, nor in its name."""
    promoted: list[str]
    """Whose logits its decoder row raises most: known without any passage."""


def words_of(store: FeatureStore) -> dict[int, Words]:
    """Of every feature that has some held-out words: whole words of one token, commonest in its passages.

    Held out are they in two ways: the dictionary was trained on other text than the store was harvested from, and
    what is left out is all that the feature is known by: tokens that it fires on or promotes, and its name, with every
    word of the same first letters.
    """
    contexts, spelled = _spelled(store)
    counts = np.bincount(np.concatenate(contexts) + 1, minlength=len(spelled) + 1)[1:]
    total = sum(map(len, contexts))
    chance = 1 - np.exp(-counts / total * (2 * AROUND + 1))
    numbers = {number: i for i, number in enumerate(_context_numbers(store))}
    places: dict[int, list[np.ndarray]] = {}
    rows = store.tables.run(
        "select latent, context, p.offset + e.start + e.peak as place from examples e join passages p using (passage) "
        "where kind = 'top' order by latent"
    )
    for row in rows.to_pylist():
        near = contexts[numbers[row["context"]]][max(0, row["place"] - AROUND) : row["place"] + AROUND + 1]
        places.setdefault(row["latent"], []).append(np.unique(near[near >= 0]))
    found: dict[int, list[str]] = {}
    for latent, windows in places.items():
        words, k = np.unique(np.concatenate(windows), return_counts=True)
        p = binom.sf(k - 1, len(windows), chance[words])
        good = (k >= TOGETHER) & (p < CHANCE)
        found[latent] = [spelled[i] for i in words[good][np.argsort(p[good], kind="stable")].tolist()]
    candidates = [latent for latent, words in found.items() if len(words) >= FEWEST]
    text = store.vocabulary.text
    kept: dict[int, Words] = {}
    for feature in store.features(candidates):
        promoted = [text(one.token) for one in feature.promoted]
        known = [*promoted, *(text(one.token) for one in feature.firing_tokens), *(feature.name or "").split()]
        known += [example.texts[example.peak] for example in feature.top]
        stems = {word.strip().lower()[:STEM] for word in known}
        own = [
            word for word in found[feature.latent] if word.lower()[:STEM] not in stems and word.lower() not in TEMPLATE
        ][:MOST]
        if len(own) >= FEWEST:
            kept[feature.latent] = Words(own, [word.strip() for word in promoted if word.strip()])
    return kept


def _context_numbers(store: FeatureStore) -> list[int]:
    return store.tables.run("select context from contexts order by context").column("context").to_pylist()


def _spelled(store: FeatureStore) -> tuple[list[np.ndarray], list[str]]:
    """Of every context the number of the word at each token, -1 where none stands; and the words."""
    text = store.vocabulary.text
    numbers: dict[str, int] = {}
    contexts: list[np.ndarray] = []
    for tokens in store.tables.run("select tokens from contexts order by context").column("tokens").to_pylist():
        pieces = [text(token) for token in tokens]
        row = np.full(len(pieces), -1)
        for i, (piece, after) in enumerate(zip(pieces, [*pieces[1:], ""], strict=True)):
            if WORD.fullmatch(piece) and not after[:1].isalpha():
                row[i] = numbers.setdefault(piece.strip(), len(numbers))
        contexts.append(row)
    return contexts, list(numbers)
