# pyright: basic, reportAttributeAccessIssue=false
"""The words of a text, and which latents fire on them: counted in the log of firings."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from monosem.features.log import Logged, float_of
from monosem.features.ranking import largest_first
from monosem.features.streaming import hashes
from monosem.kernels.parallel import parallel
from monosem.models.vocabulary import Vocabulary

LONGEST = 64
"""Characters of a word; what is longer is none."""
FEWEST = 3
"""Occurrences of a word from which it is said which latents fire on it."""
LISTED = 16
"""Latents of a word."""
CHUNKS = 8
BEFORE, AFTER = 12, 8
"""Tokens that are shown around a word."""


class Words(NamedTuple):
    """The words of a log. A word is a run of letters and digits, or else a token; case does not count."""

    texts: list[str]
    """Each once, in small letters."""
    spelled: list[str]
    """As it stands most often."""
    occurrences: np.ndarray
    """(words,) of which some token is read."""
    starts: np.ndarray
    """(places + 1,) the first token of every place of a word in the log."""
    word: np.ndarray
    """(places,) which word stands there; -1: none."""
    spellings: list[str]
    """All that stands at places, with capitals, each once; nothing for what is no word."""
    spelling: np.ndarray
    """(places,) which of them stands there."""

    @staticmethod
    def of(logged: Logged, vocabulary: Vocabulary) -> Words:
        """Find them."""
        tokens = logged.tokens.astype(np.int64)
        if not len(tokens):
            none = np.zeros(0, np.int32)
            return Words([], [], np.zeros(0, np.int64), np.zeros(1, np.int64), none, [], none)
        goes_in, goes_on = joints(vocabulary)
        begins = np.ones(len(tokens), bool)
        begins[1:] = ~(goes_on[tokens[:-1]] & goes_in[tokens[1:]])
        begins[np.cumsum(logged.n_tokens)[:-1]] = True
        starts = np.flatnonzero(begins)
        within = np.arange(len(tokens)) - starts[np.cumsum(begins) - 1]
        keys = np.add.reduceat(hashes(0, within, tokens), starts)
        _, first, kind = np.unique(keys, return_index=True, return_inverse=True)
        ends = np.append(starts[1:], len(tokens))
        kinds = [_text(vocabulary, tokens[starts[i] : ends[i]]) for i in first.tolist()]
        numbers: dict[str, int] = {}
        number = [numbers.setdefault(text.lower(), len(numbers)) if text else -1 for text in kinds]
        spelling = kind.reshape(-1).astype(np.int32)
        word = np.array(number, np.int32)[spelling]
        word[np.add.reduceat(logged.read.astype(np.int64), starts) == 0] = -1
        seen = np.bincount(spelling[word >= 0], minlength=len(kinds))
        spellings = Counter[str]()
        for text, times in zip(kinds, seen.tolist(), strict=True):
            spellings[text] += times
        spelled = dict.fromkeys(numbers, "")
        for text, times in spellings.items():
            best = spelled.get(text.lower())
            if best is not None and (not best or (-times, text) < (-spellings[best], best)):
                spelled[text.lower()] = text
        occurrences = np.bincount(word[word >= 0], minlength=len(numbers))
        found = (list(numbers), list(spelled.values()), occurrences, np.append(starts, len(tokens)), word)
        return Words(*found, kinds, spelling)


def _text(vocabulary: Vocabulary, tokens: np.ndarray) -> str:
    """A word; nothing if it is a special token, or too long."""
    if int(tokens[0]) in vocabulary.special:
        return ""
    text = b"".join([vocabulary.pieces[token] for token in tokens.tolist()]).decode(errors="replace")
    text = text.strip() or text
    return text if len(text) <= LONGEST else ""


def joints(vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Of every token, whether it goes on with a word that stands before it, and whether what comes after may."""
    texts = [vocabulary.text(token) for token in range(len(vocabulary))]
    inner = [token not in vocabulary.special for token in range(len(vocabulary))]
    # A part of a character that several tokens make up reads as a replacement character: within a word, mostly.
    goes_in = [bool(text) and (text[0].isalnum() or text[0] == "\ufffd") for text in texts]
    goes_on = [bool(text) and (text[-1].isalnum() or text[-1] == "\ufffd") for text in texts]
    return np.array(goes_in) & inner, np.array(goes_on) & inner


# Of every word --------------------------------------------------------------------------------------------------------


class OfWords(NamedTuple):
    """Which latents fire on a word: of every word that is there often enough the best, best first; -1: no more.

    They are ordered by (recall - firing rate) * strength: how much more often a latent fires on the word than on any
    token, times how strongly.
    """

    words: np.ndarray
    """(w,) ascending"""
    latents: np.ndarray
    """(w, m)"""
    fires: np.ndarray
    """(w, m) on how many occurrences of the word it fires, at one of its tokens at least."""
    strengths: np.ndarray
    """(w, m) mean of its largest activations there, over its maximum."""
    firings: np.ndarray
    """(w, m) its firings on the word's tokens."""
    best: np.ndarray
    """(w, m) the token of the log, in an occurrence of the word, at which it is strongest."""


class Scratch(NamedTuple):
    """What is counted of every latent (n_latents,) while one word is read."""

    fires: np.ndarray
    firings: np.ndarray
    sums: np.ndarray
    seen: np.ndarray
    here: np.ndarray
    best: np.ndarray
    best_at: np.ndarray
    touched: np.ndarray


def of_words(logged: Logged, words: Words, rates: np.ndarray, maxima: np.ndarray) -> OfWords:
    """Count it.

    Args:
        logged: the log.
        words: its words.
        rates: (n_latents,) firing rates.
        maxima: (n_latents,) largest activations.
    """
    chosen = np.flatnonzero(words.occurrences >= FEWEST)
    order = np.argsort(words.word, kind="stable")
    first = np.searchsorted(words.word[order], np.arange(len(words.texts) + 1))
    shape = (len(chosen), LISTED)
    found = OfWords(
        chosen, np.full(shape, -1, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.float32),
        np.zeros(shape, np.int32), np.full(shape, -1, np.int64),
    )  # fmt: skip
    maxima = np.maximum(maxima, 1e-30)
    _count_words(order, first, words.starts, logged.offsets, logged.latents, logged.values, rates, maxima, found)
    return found


@parallel()
def _count_words(order, first, starts, offsets, latents, values, rates, maxima, found):
    for chunk in prange(CHUNKS):
        scratch = Scratch(
            np.zeros(len(rates), np.int64), np.zeros(len(rates), np.int64), np.zeros(len(rates)),
            np.full(len(rates), -1), np.zeros(len(rates)), np.zeros(len(rates)), np.zeros(len(rates), np.int64),
            np.zeros(len(rates), np.int64),
        )  # fmt: skip
        for w in range(chunk, len(found.words), CHUNKS):
            places = order[first[found.words[w]] : first[found.words[w] + 1]]
            _count_word(w, places, starts, offsets, latents, values, rates, maxima, scratch, found)


@njit(cache=True)
def _count_word(w, places, starts, offsets, latents, values, rates, maxima, scratch, found):
    n = 0
    for place in places:
        for token in range(starts[place], starts[place + 1]):
            for e in range(offsets[token], offsets[token + 1]):
                latent, value = latents[e], float_of(values[e])
                if scratch.fires[latent] == 0:
                    scratch.touched[n] = latent
                    scratch.best[latent] = 0
                    n += 1
                if scratch.seen[latent] != place:
                    scratch.seen[latent] = place
                    scratch.fires[latent] += 1
                    scratch.here[latent] = 0
                scratch.firings[latent] += 1
                if value > scratch.here[latent]:
                    scratch.sums[latent] += value - scratch.here[latent]
                    scratch.here[latent] = value
                if value > scratch.best[latent]:
                    scratch.best[latent], scratch.best_at[latent] = value, token
    candidates = scratch.touched[:n]
    strengths = scratch.sums[candidates] / scratch.fires[candidates] / maxima[candidates]
    scores = (scratch.fires[candidates] / len(places) - rates[candidates]) * strengths
    ranked = largest_first(scores, candidates, found.latents.shape[1])
    for i in range(len(ranked)):
        latent = candidates[ranked[i]]
        if scores[ranked[i]] <= 0:
            break
        found.latents[w, i], found.fires[w, i] = latent, scratch.fires[latent]
        found.strengths[w, i] = strengths[ranked[i]]
        found.firings[w, i], found.best[w, i] = scratch.firings[latent], scratch.best_at[latent]
    for latent in candidates:
        scratch.fires[latent], scratch.firings[latent], scratch.sums[latent], scratch.seen[latent] = 0, 0, 0, -1


def windows_of(logged: Logged, tokens: np.ndarray, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The windows around some tokens of the log: the first token of each; one latent's activations in them; offsets."""
    ends = np.cumsum(logged.n_tokens, dtype=np.int64)
    context = np.searchsorted(ends, tokens, side="right")
    first = np.maximum((ends - logged.n_tokens)[context], tokens - BEFORE)
    stop = np.minimum(ends[context], tokens + AFTER + 1)
    into = np.concatenate([[0], np.cumsum(stop - first)])
    activations = np.zeros(into[-1], np.float32)
    _fill_windows(first, stop, into, logged.offsets, logged.latents, logged.values, latents, activations)
    return first, activations, into


@parallel()
def _fill_windows(first, stop, into, firings, latents, values, wanted, activations):
    for i in prange(len(first)):
        for token in range(first[i], stop[i]):
            for e in range(firings[token], firings[token + 1]):
                if latents[e] == wanted[i]:
                    activations[into[i] + token - first[i]] = float_of(values[e])
