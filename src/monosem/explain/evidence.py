# pyright: basic, reportAttributeAccessIssue=false
"""Evidence: what a store knows of where latents fire, as weights on tokens of its text."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from monosem.errors import DataError
from monosem.explain.text import Text
from monosem.features import FeatureStore
from monosem.features.files import PART
from monosem.features.rows import columns_of, numbers
from monosem.features.streaming import hashes
from monosem.sql import readable

TESTED = 3
"""Of so many examples one is left to tests: no rule is made from it."""
KINDS = ("top", "sample", "near_miss", "silent")
AFFIXES = (("begins", 2), ("begins", 3), ("begins", 4), ("begins", 5), ("ends", 2), ("ends", 3), ("ends", 4))
ALL = 1.5
"""Firings on each occurrence of a word from which on they are on all of its tokens."""
BEGINNINGS = (1, 2, 4, 8)
"""Places at the beginning of a context that are tried."""
FORMS = 3
"""How a group of words is meant: any token of them, the first, a later one."""


class Sample(NamedTuple):
    """Examples of latents, latent after latent."""

    latent: np.ndarray
    kind: np.ndarray
    """Index in KINDS."""
    token: np.ndarray
    """Where in the text the peak stands."""
    activation: np.ndarray
    """Over the latent's maximum."""
    weight: np.ndarray
    """How many firings it stands for, if it is a random one."""
    test: np.ndarray
    """Whether it is left to tests."""
    row: np.ndarray
    """Its row in the store's table of examples."""

    def of(self, latent: int) -> Sample:
        """Those of one latent."""
        part = slice(*np.searchsorted(self.latent, [latent, latent + 1]))
        return Sample(*(column[part] for column in self))


class OnWords(NamedTuple):
    """On which words latents fire, latent after latent, counted in the text."""

    latent: np.ndarray
    word: np.ndarray
    """Of the text."""
    token: np.ndarray
    """The token of the word at which it is strongest."""
    behind: np.ndarray
    """The token before it in the word; -1 if there is none."""
    whole: np.ndarray
    """Whether that token is the word."""
    fires: np.ndarray
    """On how many occurrences of the token in the word; of a whole one, on how many tokens of the word."""
    n: np.ndarray
    """How many there are."""
    strength: np.ndarray

    def of(self, latent: int) -> OnWords:
        """Those of one latent."""
        part = slice(*np.searchsorted(self.latent, [latent, latent + 1]))
        return OnWords(*(column[part] for column in self))


class Counts:
    """How often what can be asked of a token holds in the text that was counted."""

    def __init__(self, text: Text, n_tokens: int) -> None:
        """Of the first `n_tokens` of a text."""
        read, self._kinds = text.read[:n_tokens], text.kinds
        tokens, place = text.tokens[:n_tokens][read], text.place[:n_tokens][read]
        self.size = len(text.vocabulary)
        n_words = len(text.words.texts)
        word, before, first = text.word[place], text.before()[place], text.piece[:n_tokens][read] == 0
        self.n = len(tokens)
        self.token = np.bincount(tokens, minlength=self.size)
        self.token_first = np.bincount(tokens[first], minlength=self.size)
        self.word = np.stack(
            [np.bincount(word[mask & (word >= 0)], minlength=n_words) for mask in (first | True, first, ~first)], 1
        )
        """(words, forms) tokens: all, the first of a word, later ones."""
        inner = np.flatnonzero(read & (text.piece[:n_tokens] > 0))
        self.inside = np.bincount(text.tokens[inner - 1], minlength=self.size)
        """(vocabulary,) tokens right behind each, in the same word."""
        pairs = text.tokens[inner - 1] * self.size + text.tokens[inner]
        self._pairs, self._pair_times = np.unique(pairs, return_counts=True)
        self.after = np.bincount(before[first & (before >= 0)], minlength=n_words)
        """(words,) first tokens of a word right behind each."""
        self._of_word, self._word_times = np.unique(word * self.size + tokens, return_counts=True)
        known = before >= 0
        self._behind, self._behind_times = np.unique(before[known] * self.size + tokens[known], return_counts=True)
        known &= first
        self._words = n_words
        self._next, self._next_times = np.unique(before[known] * n_words + word[known], return_counts=True)

    def pair(self, first: int, second: int) -> float:
        """How often a token stands right behind another one in the same word."""
        return float(_looked_up(np.array([first * self.size + second]), self._pairs, self._pair_times)[0])

    def in_word(self, word: np.ndarray, token: np.ndarray) -> np.ndarray:
        """How often a token stands in a word."""
        return _looked_up(word * self.size + token, self._of_word, self._word_times)

    def behind(self, word: np.ndarray, token: np.ndarray) -> np.ndarray:
        """How often a token stands in a word right behind another word."""
        return _looked_up(word * self.size + token, self._behind, self._behind_times)

    def next(self, before: np.ndarray, word: np.ndarray) -> np.ndarray:
        """How often a word stands right behind another one."""
        return _looked_up(before * self._words + word, self._next, self._next_times)

    @functools.lru_cache(256)  # noqa: B019
    def behind_kind(self, kind: int) -> tuple[np.ndarray, np.ndarray]:
        """(vocabulary,) and (words,) how often each stands right behind a word of a kind."""
        found: list[np.ndarray] = []
        of_tokens, of_words = (self._behind, self._behind_times, self.size), (self._next, self._next_times, self._words)
        for keys, times, size in (of_tokens, of_words):
            before, there = np.divmod(keys, size)
            found.append(np.bincount(there, times * self._kinds[before, kind], size))
        return found[0], found[1]


def _looked_up(keys: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    at = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[at] == keys, values[at], 0)


def require_words(store: FeatureStore) -> None:
    """Refuse a store of which rules cannot be made.

    Raises:
        DataError: it is not of text, or too old to know on which words latents fire.
    """
    if store.things != "tokens":
        raise DataError(f"{store.path} is of {store.things}: rules explain features of text")
    if store.words is None:
        raise DataError(f"{store.path} does not know on which words latents fire: harvest the run again")


class Evidence:
    """All that is known of the latents of one part of a store."""

    def __init__(self, store: FeatureStore, part: int) -> None:
        """Read it.

        Raises:
            DataError: the store is not of text, or too old to know on which words latents fire.
        """
        require_words(store)
        self.first, self.stop = part * PART, min(store.n_latents, (part + 1) * PART)
        run = store.tables.run
        contexts = run("select tokens from contexts").column("tokens").combine_chunks()
        passages = _table(store, "passages", part, ["passage", "offset", "tokens"])
        shown = passages.column("tokens").combine_chunks()
        ends = numbers(shown.offsets)
        tokens = np.concatenate([numbers(contexts.values), numbers(shown.values)])
        sizes = np.concatenate([np.diff(numbers(contexts.offsets)), np.diff(ends)])
        offsets = np.concatenate([np.zeros(len(contexts), np.int64), numbers(passages.column("offset"))])
        self.text = Text(tokens, sizes, store.vocabulary, offsets=offsets)
        self.counted = len(contexts.values)
        self.counts = Counts(self.text, self.counted)
        among = f"latent >= {self.first} and latent < {self.stop}"
        facts = run(f"select max, count from features where {among} order by latent")
        self.maxima, self.count = np.nan_to_num(numbers(facts.column("max"))), numbers(facts.column("count"))
        details = run(f"select logged, firing_tokens, firing_shares from details where {among} order by latent")
        self.logged = numbers(details.column("logged"))
        firing = details.column("firing_tokens").combine_chunks()
        self._firing = numbers(firing.offsets), numbers(firing.values)
        self._shares = numbers(details.column("firing_shares").combine_chunks().values)
        first = int(numbers(passages.column("passage"))[0]) if len(passages) else 0
        self.samples = self._samples(store, part, self.counted + ends, first)
        self.on_words = self._on_words(store, numbers(contexts.offsets), among)

    def firing_tokens(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens on which a latent fires most, and on how many of each."""
        ends, tokens = self._firing
        part = slice(ends[latent - self.first], ends[latent - self.first + 1])
        return tokens[part].astype(np.int64), self._shares[part] * float(self.logged[latent - self.first])

    def _samples(self, store: FeatureStore, part: int, ends: np.ndarray, first: int) -> Sample:
        names = ["latent", "activation", "weight", "document", "position", "passage", "start", "peak"]
        table = _table(store, "examples", part, [*names, "kind"])
        column = {name: numbers(table.column(name)) for name in names}
        kinds = table.column("kind").combine_chunks()
        kind = np.array([KINDS.index(name) for name in kinds.dictionary.to_pylist()])[numbers(kinds.indices)]
        before = sum(about["rows"] for about in store.index["tables"]["examples"]["parts"][:part])
        token = ends[column["passage"] - first] + column["start"] + column["peak"]
        key = hashes(1, column["latent"].astype(np.int64), column["document"].astype(np.int64) << 20)
        key = key ^ hashes(2, column["position"].astype(np.int64), column["latent"].astype(np.int64))
        found = Sample(
            latent=column["latent"].astype(np.int64),
            kind=kind,
            token=token,
            activation=column["activation"] / np.maximum(1e-30, self.maxima[column["latent"] - self.first]),
            weight=column["weight"].astype(float),
            test=key % np.uint64(TESTED) == 0,
            row=before + np.arange(len(token)),
        )
        order = np.lexsort((found.token, found.kind, found.latent))
        return Sample(*(values[order] for values in found))

    def _on_words(self, store: FeatureStore, ends: np.ndarray, among: str) -> OnWords:
        texts = store.tables.run("select text from words order by word").column("text").to_pylist()
        of_text = np.array([self.text.numbers.get(text, -1) for text in texts])
        found = store.tables.run(
            f"select word, latent, fires, firings, strength, context, first, peak from word_features where {among} "
            "order by latent, word"
        )
        column = {name: numbers(found.column(name)).astype(np.int64) for name in found.column_names}
        at = ends[column["context"]] + column["first"] + column["peak"]
        word, token = of_text[column["word"]], self.text.tokens[at]
        sizes = np.diff(self.text.words.starts)[self.text.place[at]]
        whole = (sizes == 1) | (column["firings"] >= ALL * column["fires"])
        n = np.where(whole, self.counts.word[word, 0], self.counts.in_word(word, token))
        fires = np.minimum(n, np.where(whole, column["firings"], column["fires"]))
        behind = np.where(self.text.piece[at] > 0, self.text.tokens[at - 1], -1)
        rows = OnWords(column["latent"], word, token, behind, whole, fires, n, numbers(found.column("strength")))
        known = (word >= 0) & (n > 0)
        return OnWords(*(values[known] for values in rows))

    @functools.cached_property
    def kinds(self) -> np.ndarray:
        """(words, kinds) 1 where a word is of a kind."""
        return self.text.kinds.astype(np.float32)

    @functools.cached_property
    def kind_counts(self) -> np.ndarray:
        """(kinds, forms) tokens of each kind of words."""
        return self.kinds.T @ self.counts.word

    @functools.cached_property
    def after_kinds(self) -> np.ndarray:
        """(kinds,) first tokens of a word right behind words of each kind."""
        return self.kinds.T @ self.counts.after

    @functools.cached_property
    def beginnings(self) -> list[tuple[int, float]]:
        """Of the first place that is read in most contexts, and of some behind it: where it ends, and its tokens."""
        at = self.text.position[: self.counted][self.text.read[: self.counted]]
        times = np.bincount(at)
        first = int(np.argmax(times >= times.max() / 2)) if len(at) else 0
        return [(first + n, float(times[: first + n].sum())) for n in BEGINNINGS]

    @functools.cached_property
    def affixes(self) -> tuple[list[tuple[str, str]], np.ndarray, np.ndarray]:
        """Beginnings and endings; (words, AFFIXES) the number of each word's, or -1; (affixes, forms) their tokens."""
        texts = self.text.words.texts
        named: dict[tuple[str, str], int] = {}
        found = np.full((len(texts), len(AFFIXES)), -1)
        for i, text in enumerate(texts):
            if text.isalpha():
                for j, (side, n) in enumerate(AFFIXES):
                    if len(text) > n:
                        part = (side, text[:n] if side == "begins" else text[-n:])
                        found[i, j] = named.setdefault(part, len(named))
        counts = np.zeros((len(named), FORMS), np.int64)
        for j in range(len(AFFIXES)):
            there = found[:, j] >= 0
            np.add.at(counts, found[there, j], self.counts.word[there])
        return list(named), found, counts


def _table(store: FeatureStore, name: str, part: int, columns: list[str]) -> pa.Table:
    """Some columns of a part of a table."""
    with readable(store.path):
        return columns_of([store.path / store.index["tables"][name]["parts"][part]["file"]], columns)
