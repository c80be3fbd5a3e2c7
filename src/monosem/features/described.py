# pyright: basic, reportAttributeAccessIssue=false
"""What every latent fires on, counted in the log of firings: tokens; and in words, which give it its name."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numba import njit, prange

from monosem.features.log import Logged, float_of
from monosem.features.words import Words
from monosem.kernels.parallel import parallel
from monosem.models.vocabulary import Vocabulary

POWER = 4
"""To which a firing's activation is taken when it counts for a name: what is half as strong counts a sixteenth."""
STRONG = 0.25
"""Share of the maximum from which a firing counts for a name."""
CLEAR = 0.5
"""Share of the weight of its strong firings that a name must hold for."""
EACH, MOST = 0.06, 3
"""Share that each of several descriptions must have, and how many there are at most."""
ENOUGH = 4
"""Strong firings for every description."""
LETTER = 0.2
"""Share from which a single letter says something."""
NEARLY = 0.8
"""Of two descriptions the more telling one is taken if its share is at least so much of the other's."""
STARTS, ENDS = (1, 2, 3, 4, 5), (2, 3, 4)
"""Letters of beginnings and endings of words."""
LETTERS = np.array([*STARTS, *ENDS, 6])
"""How telling beginnings, endings and kinds of words are."""
WORD, TOKEN, AFFIX = 0, 1, 2
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
        _count(logged.latents, first[1:])
        np.cumsum(first, out=first)
        return ByLatent(first, *_by_latent(logged.offsets, logged.latents, logged.values, first))

    @property
    def counts(self) -> np.ndarray:
        """(n_latents,) firings of each."""
        return np.diff(self.first)


@njit(cache=True)
def _count(latents, counts):
    for latent in latents:
        counts[latent] += 1


@njit(cache=True)
def _by_latent(offsets, latents, values, first):
    free = first[:-1].copy()
    at, sorted_values = np.empty(len(latents), np.int32), np.empty(len(latents), np.float32)
    for token in range(len(offsets) - 1):
        for e in range(offsets[token], offsets[token + 1]):
            to = free[latents[e]]
            free[latents[e]] += 1
            at[to], sorted_values[to] = token, float_of(values[e])
    return at, sorted_values


def firing_tokens(firings: ByLatent, tokens: np.ndarray, size: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Of every latent the m tokens on which it fires most often, (n_latents, m), -1 for none; and how often.

    Token ids are smaller than `size`.
    """
    n = len(firings.counts)
    found, counts = np.full((n, m), -1, np.int64), np.zeros((n, m), np.int64)
    _commonest(firings.first, firings.at, tokens.astype(np.int64), size, found, counts)
    return found, counts


@parallel()
def _commonest(first, at, tokens, size, found, counts):
    for chunk in prange(CHUNKS):
        times = np.zeros(size, np.int64)
        for latent in range(chunk, len(found), CHUNKS):
            ids = tokens[at[first[latent] : first[latent + 1]]]
            for token in ids:
                times[token] += 1
            for token in ids:  # each is taken in once, and its count then forgotten
                _insert(token, times[token], found[latent], counts[latent])
                times[token] = 0


@njit(cache=True)
def _insert(token, times, found, counts):
    """Into a list that is sorted by counts, then by tokens, and keeps its length."""
    i = len(found)
    while i > 0 and times > 0 and (times > counts[i - 1] or (times == counts[i - 1] and token < found[i - 1])):
        i -= 1
        if i + 1 < len(found):
            found[i + 1], counts[i + 1] = found[i], counts[i]
        found[i], counts[i] = token, times


@njit(cache=True)
def _summed(ids, weights, sums):
    """Each id that is not negative once, as they come, and the sum of its weights; `sums` is all zeros, and left so."""
    touched, n = np.empty(len(ids), np.int64), 0
    for i in range(len(ids)):
        if ids[i] >= 0 and weights[i] > 0:
            if sums[ids[i]] == 0:
                touched[n] = ids[i]
                n += 1
            sums[ids[i]] += weights[i]
    kinds = touched[:n]
    found = sums[kinds]
    sums[kinds] = 0
    return kinds, found


class Described(NamedTuple):
    """Of every latent, what its strong firings share, and how much of their weight each description has.

    Up to three descriptions: of words, tokens, beginnings and endings what holds for most, then for most of the rest,
    and again; one alone where it holds for half.
    """

    kinds: np.ndarray
    """(n, 3) WORD, TOKEN, or AFFIX; -1: no more."""
    numbers: np.ndarray
    """(n, 3) which word, token or affix it is."""
    shares: np.ndarray
    """(n, 3) of the weight, what the ones before do not describe."""
    edges: np.ndarray
    """(n, 3, 2) of those of a token: the share of it that is where a word begins; where one ends."""
    piece: np.ndarray
    """(n,) the token with most weight in the first, if it is a word."""
    after: np.ndarray
    """(n,) the word before that has most weight."""
    after_share: np.ndarray
    pair: np.ndarray
    """(n,) behind that one, the word with most weight at which it fires."""
    pair_share: np.ndarray


def described(logged: Logged, words: Words, firings: ByLatent, vocabulary: Vocabulary) -> tuple[Described, list[str]]:
    """Describe every latent; and what beginnings and endings are called, by number."""
    n = len(firings.counts)
    called, affix = _affixes(words)
    starts, place_of = words.starts, np.repeat(np.arange(len(words.word)), np.diff(words.starts))
    begins = np.zeros(len(logged.tokens) + 1, bool)
    begins[starts] = True
    before = np.concatenate([[-1], words.word[:-1]]) if len(words.word) else words.word
    context = np.repeat(np.arange(len(logged.n_tokens)), logged.n_tokens)[starts[:-1]]
    before[np.flatnonzero(np.diff(context, prepend=-1))] = -1
    found = Described(
        kinds=np.full((n, MOST), -1),
        numbers=np.full((n, MOST), -1),
        shares=np.zeros((n, MOST)),
        edges=np.zeros((n, MOST, 2)),
        piece=np.full(n, -1),
        after=np.full(n, -1),
        after_share=np.zeros(n),
        pair=np.full(n, -1),
        pair_share=np.zeros(n),
    )
    letters = np.array([len(vocabulary.text(token).strip()) for token in range(len(vocabulary))], np.int64)
    tokens, word, before = (column.astype(np.int64) for column in (logged.tokens, words.word, before))
    size = 1 + max(int(tokens.max(initial=0)), len(words.texts), len(called))
    text = Text(tokens, begins, place_of, word, before, affix, letters)
    _describe(*firings, text, size, found)
    return found, called


class Text(NamedTuple):
    """What is read of the log's text."""

    tokens: np.ndarray
    begins: np.ndarray
    """(tokens + 1,) whether a word begins at each."""
    place: np.ndarray
    """(tokens,) the place of a word that each stands in."""
    word: np.ndarray
    """(places,)"""
    before: np.ndarray
    """(places,) the word before, in the same context; -1: none."""
    affix: np.ndarray
    """(words, kinds of affixes)"""
    letters: np.ndarray
    """(vocabulary,) in each token."""


def _affixes(words: Words) -> tuple[list[str], np.ndarray]:
    """What beginnings, endings and kinds of words are called; and (words, lengths + 1) the number of each, or -1."""
    texts, spelled = (pa.array(column, pa.string()) for column in (words.texts, words.spelled))
    plain, length = pc.utf8_is_alnum(texts), pc.utf8_length(texts)

    def where(condition: Any, named: Any) -> Any:
        return pc.if_else(condition, named, None)

    columns: list[Any] = []
    for n in (*STARTS, *ENDS):
        begins = len(columns) < len(STARTS)
        part = pc.utf8_slice_codeunits(texts, 0, n) if begins else pc.utf8_slice_codeunits(texts, -n)
        named = pc.binary_join_element_wise(*((part, "\u2026") if begins else ("\u2026", part)), "")
        columns.append(where(pc.and_(plain, pc.greater(length, n)), named))
    capitals = where(pc.and_(pc.utf8_is_upper(spelled), pc.greater(length, 1)), "CAPITALS")
    columns.append(pc.if_else(pc.utf8_is_digit(texts), "numbers", capitals))
    named = pa.concat_arrays([column.cast(pa.string()) for column in columns]).dictionary_encode()
    numbers = named.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return named.dictionary.to_pylist(), numbers.reshape(len(columns), -1).T.copy()


@parallel()
def _describe(first, at, values, text, size, found):
    for chunk in prange(CHUNKS):
        sums = np.zeros(size)
        for latent in range(chunk, len(found.piece), CHUNKS):
            if first[latent + 1] > first[latent]:
                mine = slice(first[latent], first[latent + 1])
                _describe_one(latent, at[mine], values[mine], text, sums, found)


@njit(cache=True)
def _describe_one(latent, at, values, text, sums, found):
    strong = values >= STRONG * values.max()
    here = at[strong]
    weights = np.maximum(1e-30, (values[strong].astype(np.float64) / values.max()) ** POWER)
    weights /= weights.sum()
    tokens, places = text.tokens[here], text.place[here]
    words, before = text.word[places], text.before[places]
    _cover(latent, here, tokens, words, weights.copy(), text, sums, found)
    if found.kinds[latent, 0] == WORD:
        inside = words == found.numbers[latent, 0]
        found.piece[latent], _ = _most(tokens[inside], weights[inside], sums)
    found.after[latent], found.after_share[latent] = _most(before, weights, sums)
    if found.after[latent] >= 0:
        behind = before == found.after[latent]
        found.pair[latent], found.pair_share[latent] = _most(words[behind], weights[behind], sums)


@njit(cache=True)
def _cover(latent, here, tokens, words, rest, text, sums, found):
    """What holds for most of the weight, then for most of the rest."""
    for i in range(min(MOST, len(here) // ENOUGH)):
        kinds, shares = _summed(words, rest, sums)
        token, of_token = _most(tokens, rest, sums)
        word, of_word = _most(kinds, shares, sums)
        best, column, number, share = max(of_word, of_token), -1, token, of_token
        n_columns = text.affix.shape[1]
        affixes, of_affixes = np.full(n_columns, -1), np.zeros(n_columns)
        for j in range(n_columns):
            affixes[j], of_affixes[j] = _most(text.affix[kinds, j], shares, sums)
            if LETTERS[j] == 1 and of_affixes[j] < LETTER:
                of_affixes[j] = 0
            best = max(best, of_affixes[j])
        if best < EACH:
            break
        kind = TOKEN
        most_letters = text.letters[token] if of_token >= NEARLY * best else -1
        for j in range(n_columns):
            if of_affixes[j] >= NEARLY * best and LETTERS[j] > most_letters:
                kind, column, number, share, most_letters = AFFIX, j, affixes[j], of_affixes[j], LETTERS[j]
        few = _largest(shares, MOST)
        if of_word >= min(CLEAR, NEARLY * best) or few[few >= EACH].sum() >= NEARLY * best:
            kind, number, share = WORD, word, of_word  # words say more than the letters that some of them share
        found.kinds[latent, i], found.numbers[latent, i], found.shares[latent, i] = kind, number, share
        for e in range(len(here)):
            if kind == WORD:
                held = words[e] == number
            elif kind == TOKEN:
                held = tokens[e] == number
                if held:
                    found.edges[latent, i, 0] += rest[e] * text.begins[here[e]] / share
                    found.edges[latent, i, 1] += rest[e] * text.begins[here[e] + 1] / share
            else:
                held = words[e] >= 0 and text.affix[words[e], column] == number
            if held:
                rest[e] = 0
        if i == 0 and share >= CLEAR:
            break


@njit(cache=True)
def _largest(values, n):
    """The n largest, in no order; zeros where there are fewer."""
    found = np.zeros(n)
    for value in values:
        least = np.argmin(found)
        found[least] = max(found[least], value)
    return found


@njit(cache=True)
def _most(ids, weights, sums):
    """The id with most weight, -1 for none, the smallest of several; and its weight. Negative ids do not count."""
    for i in range(len(ids)):
        if ids[i] >= 0:
            sums[ids[i]] += weights[i]
    best, most = np.int64(-1), 0.0
    for i in range(len(ids)):
        found = sums[ids[i]] if ids[i] >= 0 else 0.0
        if found > most or (found == most and found > 0 and ids[i] < best):
            best, most = ids[i], found
    for i in range(len(ids)):
        if ids[i] >= 0:
            sums[ids[i]] = 0
    return best, most


class TextName(NamedTuple):
    """A name for a latent of text."""

    name: str | None
    """ "Germany"; "Lut·her", a word and the piece of it at which it fires; "let 's", a word with the one before it;
    "kilo…", "…ly", how words begin or end; "after «.»"; "Paris, London, Rome", up to three of these; None if nothing
    describes it."""
    piece: tuple[int, int] | None
    """Characters of the name at which it fires, if not on all of it."""
    share: float
    """Of the weight of its strong firings, how much the name holds for; 0 without a name."""


def name_of(latent: int, found: Described, called: list[str], words: Words, vocabulary: Vocabulary) -> TextName:
    """The most telling description that holds for at least half of its strong firings, by weight."""
    shares, before = found.shares[latent], int(found.after[latent])
    together = found.pair_share[latent]
    if together >= max(CLEAR, NEARLY * shares[0]) and words.texts[before][:1].isalnum():
        first, second = _spelled(words, before), _spelled(words, int(found.pair[latent]))
        return TextName(f"{first} {second}", (len(first) + 1, len(first) + 1 + len(second)), float(together))
    if shares[0] < CLEAR <= found.after_share[latent]:
        return TextName(f"after «{_spelled(words, before)}»", None, float(found.after_share[latent]))
    if shares.sum() < CLEAR:
        return TextName(None, None, 0.0)
    parts = [
        _called(kind, number, edges, called, words, vocabulary)
        for kind, number, edges in zip(found.kinds[latent], found.numbers[latent], found.edges[latent], strict=True)
        if kind >= 0
    ]
    if len(parts) == 1 and found.kinds[latent, 0] == WORD:
        return _marked(parts[0], vocabulary.text(int(found.piece[latent])).strip(), float(shares[0]))
    return TextName(", ".join(parts), None, float(shares.sum()))


def _called(kind: int, number: int, edges: np.ndarray, called: list[str], words: Words, vocabulary: Vocabulary) -> str:
    """What a description is called; a token is marked where words go on before or behind it."""
    if kind == WORD:
        return _spelled(words, number)
    if kind == AFFIX:
        return called[number]
    text = vocabulary.text(number).strip()
    return ("" if edges[0] >= 0.5 else "…") + text + ("" if edges[1] >= 0.5 else "…")


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
    return TextName("·".join(parts), (start, start + len(piece)), share)
