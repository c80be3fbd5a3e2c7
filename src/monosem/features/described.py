# pyright: basic, reportAttributeAccessIssue=false
"""What every latent fires on, counted in the log of firings: tokens; and in words, which give it its name."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, prange

from monosem.features.log import Logged, as_floats
from monosem.features.vocabulary import Vocabulary
from monosem.features.words import Words

POWER = 4
"""To which a firing's activation is taken when it counts for a name: what is half as strong counts a sixteenth."""
STRONG = 0.25
"""Share of the maximum from which a firing counts for a name."""
SINGLE, SEVERAL, EACH = 0.5, 0.35, 0.06
"""Shares that a single description, three words together, and each of the three must have."""
NEARLY = 0.8
"""Of two endings, the longer is taken if its share is at least so much of the other's."""
STARTS, ENDS = (1, 2, 3, 4, 5), (2, 3, 4)
"""Letters of beginnings and endings of words."""
CHUNKS = 8


class ByLatent(NamedTuple):
    """The firings of a log, latent after latent."""

    first: np.ndarray
    """(n_latents + 1,)"""
    at: np.ndarray
    """(firings,) the token of the log."""
    values: np.ndarray
    """(firings,)"""

    @staticmethod
    def of(logged: Logged, n_latents: int) -> ByLatent:
        """Sort them."""
        first = np.zeros(n_latents + 1, np.int64)
        np.cumsum(np.bincount(logged.latents, minlength=n_latents), out=first[1:])
        fired = np.where(logged.read, logged.fired, 0)
        return ByLatent(first, *_by_latent(fired, logged.latents, as_floats(logged.values), first))

    @property
    def counts(self) -> np.ndarray:
        """(n_latents,) firings of each."""
        return np.diff(self.first)


@njit(cache=True)
def _by_latent(fired, latents, values, first):
    free = first[:-1].copy()
    at, sorted_values = np.empty(len(latents), np.int32), np.empty(len(latents), np.float32)
    e = 0
    for token in range(len(fired)):
        for _ in range(fired[token]):
            to = free[latents[e]]
            free[latents[e]] += 1
            at[to], sorted_values[to] = token, values[e]
            e += 1
    return at, sorted_values


def firing_tokens(firings: ByLatent, tokens: np.ndarray, size: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every latent the m tokens on which it fires most often, (n_latents, m), -1 for none; and how often.

    Token ids are smaller than `size`.
    """
    n = len(firings.counts)
    found, counts = np.full((n, m), -1, np.int64), np.zeros((n, m), np.int64)
    _commonest(firings.first, firings.at, tokens.astype(np.int64), size, found, counts)
    return found, counts


@njit(cache=True)
def _commonest(first, at, tokens, size, found, counts):
    sums = np.zeros(size)
    for latent in range(len(found)):
        ids = tokens[at[first[latent] : first[latent + 1]]]
        kinds, times = _summed(ids, np.ones(len(ids)), sums)
        best = np.argsort(-times, kind="mergesort")[: found.shape[1]]
        for i in range(len(best)):
            found[latent, i], counts[latent, i] = kinds[best[i]], times[best[i]]


@njit(cache=True)
def _summed(ids, weights, sums):
    """Each id that is not negative once, ascending, and the sum of its weights; `sums` is all zeros, and left so."""
    touched, n = np.empty(len(ids), np.int64), 0
    for i in range(len(ids)):
        if ids[i] >= 0 and weights[i] > 0:
            if sums[ids[i]] == 0:
                touched[n] = ids[i]
                n += 1
            sums[ids[i]] += weights[i]
    kinds = np.sort(touched[:n])
    found = sums[kinds]
    sums[kinds] = 0
    return kinds, found


class Described(NamedTuple):
    """Of every latent, what its strong firings share, and how much of their weight each description has."""

    words: np.ndarray
    """(n, 3) the words with most weight; -1 where there are fewer."""
    word_shares: np.ndarray
    piece: np.ndarray
    """(n,) the token with most weight in the first of them."""
    token: np.ndarray
    """(n,) the token with most weight."""
    token_shares: np.ndarray
    """(n, 3) of it; of it where it begins a word; where it ends one."""
    after: np.ndarray
    """(n,) the word before that has most weight."""
    after_share: np.ndarray
    pair: np.ndarray
    """(n,) behind that one, the word with most weight at which it fires."""
    pair_share: np.ndarray
    affixes: np.ndarray
    """(n, STARTS + ENDS + 1) of each length the number of the beginning or ending with most weight; and of the kind."""
    affix_shares: np.ndarray


def described(logged: Logged, words: Words, firings: ByLatent) -> tuple[Described, list[str]]:
    """Describe every latent; and what beginnings and endings are called, by number."""
    n, n_affixes = len(firings.counts), len(STARTS) + len(ENDS) + 1
    called, affix = _affixes(words)
    starts, place_of = words.starts, np.repeat(np.arange(len(words.word)), np.diff(words.starts))
    begins = np.zeros(len(logged.tokens) + 1, bool)
    begins[starts] = True
    before = np.concatenate([[-1], words.word[:-1]]) if len(words.word) else words.word.astype(np.int64)
    context = np.repeat(np.arange(len(logged.n_tokens)), logged.n_tokens)[starts[:-1]]
    before[np.flatnonzero(np.diff(context, prepend=-1))] = -1
    found = Described(
        np.full((n, 3), -1), np.zeros((n, 3)), np.full(n, -1), np.full(n, -1), np.zeros((n, 3)), np.full(n, -1),
        np.zeros(n), np.full(n, -1), np.zeros(n), np.full((n, n_affixes), -1), np.zeros((n, n_affixes)),
    )  # fmt: skip
    tokens, word, before = (column.astype(np.int64) for column in (logged.tokens, words.word, before))
    size = 1 + max(int(tokens.max(initial=0)), len(words.texts), len(called))
    _describe(*firings, tokens, begins, place_of, word, before, affix, size, found)
    return found, called


def _affixes(words: Words) -> tuple[list[str], np.ndarray]:
    """What beginnings, endings and kinds of words are called; and (words, lengths + 1) the number of each, or -1."""
    numbers: dict[str, int] = {}
    found = np.full((len(words.texts), len(STARTS) + len(ENDS) + 1), -1, np.int64)
    for i, (text, spelled) in enumerate(zip(words.texts, words.spelled, strict=True)):
        parts: list[str | None] = [None] * (len(STARTS) + len(ENDS))
        if text.isalpha():
            parts = [f"{text[:n]}\u2026" if len(text) > n else None for n in STARTS]
            parts += [f"\u2026{text[-n:]}" if len(text) > n else None for n in ENDS]
        parts.append("numbers" if text.isdigit() else "CAPITALS" if len(text) > 1 and spelled.isupper() else None)
        found[i] = [-1 if part is None else numbers.setdefault(part, len(numbers)) for part in parts]
    return list(numbers), found


@njit(cache=True, parallel=True)
def _describe(first, at, values, tokens, begins, place_of, word, before, affix, size, found):
    for chunk in prange(CHUNKS):
        sums = np.zeros(size)
        for latent in range(chunk, len(found.token), CHUNKS):
            if first[latent + 1] > first[latent]:
                mine = slice(first[latent], first[latent + 1])
                of_latent = (latent, at[mine], values[mine])
                _describe_one(of_latent, tokens, begins, place_of, word, before, affix, sums, found)


@njit(cache=True)
def _describe_one(of_latent, tokens, begins, place_of, word, before, affix, sums, found):
    latent, at, values = of_latent
    strong = values >= STRONG * values.max()
    here = at[strong]
    weights = np.maximum(1e-30, (values[strong].astype(np.float64) / values.max()) ** POWER)
    weights /= weights.sum()
    ids, places = tokens[here], place_of[here]
    found.token[latent], _ = _most(ids, weights, sums)
    for i in range(len(here)):
        if ids[i] == found.token[latent]:
            found.token_shares[latent, 0] += weights[i]
            found.token_shares[latent, 1] += weights[i] * begins[here[i]]
            found.token_shares[latent, 2] += weights[i] * begins[here[i] + 1]
    words = word[places]
    kinds, shares = _summed(words, weights, sums)
    best = np.argsort(-shares, kind="mergesort")[:3]
    for i in range(len(best)):
        found.words[latent, i], found.word_shares[latent, i] = kinds[best[i]], shares[best[i]]
    for j in range(affix.shape[1]):
        found.affixes[latent, j], found.affix_shares[latent, j] = _most(affix[kinds, j], shares, sums)
    if len(best):
        inside = words == kinds[best[0]]
        found.piece[latent], _ = _most(ids[inside], weights[inside], sums)
    behind = before[places]
    found.after[latent], found.after_share[latent] = _most(behind, weights, sums)
    same = behind == found.after[latent]
    if found.after[latent] >= 0:
        found.pair[latent], found.pair_share[latent] = _most(words[same], weights[same], sums)


@njit(cache=True)
def _most(ids, weights, sums):
    """The id with most weight, -1 for none; and its weight."""
    kinds, found = _summed(ids, weights, sums)
    if not len(kinds):
        return np.int64(-1), 0.0
    best = np.argmax(found)
    return kinds[best], found[best]


class TextName(NamedTuple):
    """A name for a latent of text."""

    name: str | None
    """One of: "Germany"; "Lut\u00b7her", a word and the piece of it at which it fires; "let 's", a word with the one
    before it; "kilo\u2026", "\u2026ly", how words begin or end; "after \u00ab.\u00bb"; "Paris, London, Rome", the
    commonest words; None if nothing describes it."""
    piece: tuple[int, int] | None
    """Characters of the name at which it fires, if not on all of it."""
    share: float
    """Of the weight of its strong firings, how much the name describes."""


def name_of(latent: int, found: Described, called: list[str], words: Words, vocabulary: Vocabulary) -> TextName:
    """The most telling description that holds for at least half of its strong firings, by weight."""
    shares = found.word_shares[latent]
    before = int(found.after[latent])
    if found.pair_share[latent] >= max(SINGLE, NEARLY * shares[0]) and words.texts[before][:1].isalnum():
        first, second = _spelled(words, int(found.after[latent])), _spelled(words, int(found.pair[latent]))
        return TextName(f"{first} {second}", (len(first) + 1, len(first) + 1 + len(second)), found.pair_share[latent])
    if shares[0] >= SINGLE:
        word, piece = _spelled(words, int(found.words[latent, 0])), vocabulary.text(int(found.piece[latent])).strip()
        return _marked(word, piece, float(shares[0]))
    part = _part(latent, found, called, vocabulary)
    if part is not None:
        return part
    if found.after_share[latent] >= SINGLE:
        name = f"after \u00ab{_spelled(words, int(found.after[latent]))}\u00bb"
        return TextName(name, None, float(found.after_share[latent]))
    common = [(int(w), s) for w, s in zip(found.words[latent], shares, strict=True) if w >= 0 and s >= EACH]
    together = float(sum(share for _, share in common))
    if together >= SEVERAL:
        return TextName(", ".join(_spelled(words, word) for word, _ in common), None, together)
    return TextName(None, None, together)


def _spelled(words: Words, word: int) -> str:
    text = words.spelled[word]
    return text if text.strip() else repr(text)


def _marked(word: str, piece: str, share: float) -> TextName:
    """A word with what is before and behind a piece of it set off."""
    at = word.lower().find(piece.lower()) if piece else -1
    if at < 0 or len(piece) == len(word):
        return TextName(word, None, share)
    parts = [part for part in (word[:at], word[at : at + len(piece)], word[at + len(piece) :]) if part]
    start = at + (at > 0)
    return TextName("\u00b7".join(parts), (start, start + len(piece)), share)


def _part(latent: int, found: Described, called: list[str], vocabulary: Vocabulary) -> TextName | None:
    """A part that words share: a token, a beginning, an ending; of those nearly as good, the longest."""
    share, begins, ends = found.token_shares[latent].tolist()
    text = vocabulary.text(int(found.token[latent])).strip()
    token = ("" if 2 * begins >= share else "\u2026") + text + ("" if 2 * ends >= share else "\u2026")
    parts = [(share, token)] if text else []
    for number, weight in zip(found.affixes[latent].tolist(), found.affix_shares[latent].tolist(), strict=True):
        if number >= 0:
            parts.append((weight, called[number]))
    most = max((share for share, _ in parts), default=0.0)
    good = [part for part in parts if part[0] >= max(SINGLE, NEARLY * most)]
    if not good:
        return None
    share, name = max(good, key=lambda part: (len(part[1].strip("\u2026")), part[0]))
    return TextName(name, None, share)
