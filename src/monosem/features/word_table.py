"""The words of a store in memory: which latents fire on them, how reliably, and a passage that shows it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from monosem.features.lookup import Searched
from monosem.features.rows import numbers


class WordEvidence(NamedTuple):
    """How reliably a latent fires on a word."""

    text: str
    occurrences: int
    """Of the word, in what was counted."""
    fires: int
    """On how many of them the latent fires, at one of the word's tokens at least."""
    recall: float
    low: float
    high: float
    """95 % interval of the recall in the text that was read (Wilson, 1927); both the recall itself where all of it was
    counted."""
    strength: float
    """Mean of its largest activations there, over its maximum."""
    share: float
    """Of its firings, how many are on the word."""


class Shown(NamedTuple):
    """A few tokens with a latent's activations."""

    tokens: np.ndarray
    texts: list[str]
    activations: list[float]
    peak: int


class Firing(NamedTuple):
    """A latent that fires on a word."""

    latent: int
    score: float
    """(recall - firing rate) * strength"""
    evidence: WordEvidence
    row: int
    """Of the table `word_features`."""


class WordTable:
    """Look up words; they are counted in the contexts of the store's log."""

    def __init__(self, store: Searched) -> None:
        words = store.tables.run("select text, occurrences from words order by word")
        texts = words.column("text").to_pylist()
        self._store, self.whole = store, bool(store.index["log"]["whole"])
        self.tokens_counted: int = store.index["log"]["tokens"]
        self._numbers = {text: i for i, text in enumerate(texts)}
        self._texts, self._occurrences = texts, numbers(words.column("occurrences"))
        found = store.tables.run("select * from word_features")
        self._columns = {name: numbers(found.column(name)) for name in found.column_names if name != "shades"}
        shades = found.column("shades").combine_chunks()
        self._shades, self._shade_ends = numbers(shades.values), numbers(shades.offsets)
        self._first = np.searchsorted(self._columns["word"], np.arange(len(texts) + 1))
        contexts = store.tables.run("select tokens from contexts").column("tokens").combine_chunks()
        self._tokens, self._token_ends = numbers(contexts.values), numbers(contexts.offsets)
        facts = store.tables.run("select rate, max from features order by latent")
        logged = store.tables.run("select logged from details order by latent")
        self._rates, self._maxima = numbers(facts.column("rate")), numbers(facts.column("max"))
        self._logged = numbers(logged.column("logged"))
        self._check()

    def _check(self) -> None:
        """Raises ValueError: its tables do not fit one another."""

        def within(values: np.ndarray, stop: int) -> bool:
            return not len(values) or bool(values.min() >= 0 and values.max() < stop)

        columns, sizes = self._columns, np.diff(self._shade_ends)
        fits = within(columns["latent"], self._store.n_latents) and within(columns["word"], len(self._texts))
        fits = fits and within(columns["context"], len(self._token_ends) - 1)
        fits = fits and within(self._tokens, len(self._store.vocabulary)) and len(sizes) == len(columns["word"])
        if fits and len(sizes):
            room = np.diff(self._token_ends)[columns["context"]]
            fits = bool((columns["first"] >= 0).all() and (columns["first"] + sizes <= room).all())
            fits = fits and bool((columns["peak"] >= 0).all() and (columns["peak"] < sizes).all())
            fits = fits and bool((self._occurrences[columns["word"]] > 0).all())
        if not fits or {len(self._logged), len(self._rates)} != {self._store.n_latents}:
            raise ValueError("its tables of words do not fit one another")

    def occurrences(self, word: str) -> int:
        """How often a word stands in what was counted."""
        number = self._numbers.get(_plain(word))
        return 0 if number is None else int(self._occurrences[number])

    def find(self, word: str) -> list[Firing]:
        """The latents that fire on a word, most reliably and strongly first: (recall - firing rate) * strength."""
        number = self._numbers.get(_plain(word))
        if number is None:
            return []
        n, text = int(self._occurrences[number]), self._texts[number]
        rows = slice(int(self._first[number]), int(self._first[number + 1]))
        latents = self._columns["latent"][rows]
        fires, strengths, logged = (self._columns[name][rows].tolist() for name in ("fires", "strength", "firings"))
        shares = (np.array(logged) / np.maximum(1, self._logged[latents])).tolist()
        rates = self._rates[latents].astype(np.float64).tolist()
        firings: list[Firing] = []
        for i, latent in enumerate(latents.tolist()):
            share = fires[i] / n
            low, high = (share, share) if self.whole else wilson(fires[i], n)
            evidence = WordEvidence(text, n, fires[i], share, low, high, strengths[i], shares[i])
            firings.append(Firing(latent, (share - rates[i]) * strengths[i], evidence, rows.start + i))
        return sorted(firings, key=lambda firing: (-firing.score, -firing.evidence.share, firing.latent))

    def find_all(self, words: list[str]) -> list[Firing]:
        """The latents that fire on every one of some words, by the word on which they do so least."""
        least: dict[int, Firing] = {}
        for i, word in enumerate(words):
            found = {firing.latent: firing for firing in self.find(word)}
            if i == 0:
                least = found
            least = {k: min(least[k], found[k], key=lambda firing: firing.score) for k in least.keys() & found.keys()}
        return sorted(least.values(), key=lambda firing: (-firing.score, -firing.evidence.share, firing.latent))

    def shown(self, firing: Firing) -> Shown:
        """The occurrence of the word at which the latent is strongest, and what stands around it."""
        columns, row = self._columns, firing.row
        shades = self._shades[int(self._shade_ends[row]) : int(self._shade_ends[row + 1])]
        first = int(self._token_ends[columns["context"][row].item()]) + columns["first"][row].item()
        tokens = self._tokens[first : first + len(shades)]
        unit = float(self._maxima[firing.latent]) / 255
        activations = [shade * unit for shade in shades.tolist()]
        return Shown(tokens, self._store.vocabulary.texts(tokens), activations, columns["peak"][row].item())


def _plain(word: str) -> str:
    return word.strip().lower() or word


def wilson(hits: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of which `hits` of `n` were seen (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, spread = hits / n, z * z / n
    middle, half = p + spread / 2, z * (p * (1 - p) / n + spread / (4 * n)) ** 0.5
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))
