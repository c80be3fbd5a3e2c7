"""Search by meaning: what is said of latents, and the kinds of words that they fire on.

Four things tell that a latent is about what was asked for, each a number from 0 to 1: its explanation and name have the
stems of the query; a person's label has; it fires on words of a kind that the query names ("countries"); it fires on
words of the same stem. With embeddings beside the store (`monosem.features.embeddings`) a fifth: how close the query is
to the explanation and to the passages. They are joined as if each were a chance of its own, 1 - (1 - a)(1 - b)...
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from monosem.analysis import kinds
from monosem.errors import ConfigError
from monosem.features.embeddings import Embeddings
from monosem.features.explanations import Explanations
from monosem.features.files import PART
from monosem.features.lookup import Searched
from monosem.features.stems import StemIndex, asked, rarity, stem, stems
from monosem.work import each

NAME_WEIGHT = 0.5
"""Of a stem in a name, beside 1 in an explanation."""
QUOTED, QUOTED_WEIGHT = re.compile(r"\*([^*\n]+)\*"), 0.1
"""What stands between asterisks is what a latent reads or writes, not what it is: its words at peaks tell more."""
UNSURE = 0.7
"""Worth of an explanation without scores, of an explainer that does not say how sure it is."""
NAMED = 0.45
"""How much of a kind's name must be asked for, and of what is asked be its name (F1), so that it is meant."""
SURELY = 0.99
"""... and so that nothing else is."""
FEW = 2
"""Passages by which shares are shrunk: a latent with two of them tells little."""
ALONE = 0.3
"""Share by which a latent that fires on one word of a kind alone says less than one that fires on many."""
ALSO = {
    "weekdays": ("days of the week",),
    "colours": ("colors",),
    "computing": ("computers", "software", "technology"),
    "illness and medicine": ("health", "disease", "medical"),
    "food": ("eating", "cooking"),
    "feelings": ("emotions",),
    "body": ("body parts", "anatomy"),
    "family": ("relatives", "kinship"),
    "money": ("finance", "currency"),
    "crime and police": ("violence",),
    "question words": ("interrogatives",),
    "number words": ("numerals",),
    "numbers in digits": ("digits",),
    "names of men": ("first names",),
    "names of women": ("first names",),
    "nature": ("geography", "landscape"),
    "vehicles": ("transport",),
    "space": ("astronomy",),
    "government": ("state power",),
    "royalty and nobility": ("monarchy",),
}
"""What kinds of words are also called."""
BESIDE_A_KIND = 0.4
"""How much embeddings count where the query is the name of a kind, which tells more."""
SHOWN = 4
"""Words that show why."""


class Meant(NamedTuple):
    """A latent that is about what was asked for, and why."""

    latent: int
    score: float
    why: str


class Explained(Searched, Protocol):
    """What is searched by meaning."""

    @property
    def things(self) -> str: ...

    def explanations(self, explainer: str | None = None) -> Explanations: ...

    @property
    def embeddings(self) -> Embeddings | None: ...


class Reason(NamedTuple):
    """One thing that tells."""

    name: str
    scores: np.ndarray
    """(n_latents,) 0 to 1"""
    words: np.ndarray | None = None
    """(words of the store,) which of them it is about."""


class Meanings:
    """All that is said of the latents of a store. May be used by several threads."""

    def __init__(self, store: Explained) -> None:
        self.n = store.n_latents
        self.explanations = store.explanations()
        names = store.tables.run("select name from features order by latent").column("name").to_pylist()
        said = [(latent, name, NAME_WEIGHT) for latent, name in enumerate(names) if name]
        quality = np.full(self.n, UNSURE)
        for item in self.explanations:
            known = item.value if item.value is not None else item.sure
            for latent in item.latents:
                if 0 <= latent < self.n:
                    said.append((latent, QUOTED.sub(" ", item.text), 1.0))
                    said += [(latent, word, QUOTED_WEIGHT) for word in QUOTED.findall(item.text)]
                    if known is not None:
                        quality[latent] = min(1.0, max(0.0, known))
        self._said, self._quality, self._names = StemIndex(self.n, said), quality, names
        self._embeddings = store.embeddings
        parts = range(-(-self.n // PART) if store.things == "tokens" else 0)
        peaks = [
            store.word_index(part).peak_words() for part in each("reading words at peaks", parts, PART, "features")
        ]
        said_at = [word for words, _, _ in peaks for word in words]
        self._latent = np.concatenate([np.zeros(0, np.int64), *(latents for _, latents, _ in peaks)])
        self._strength = np.concatenate([np.zeros(0), *(strengths for _, _, strengths in peaks)])
        self._words = sorted(set(said_at))
        number = {word: i for i, word in enumerate(self._words)}
        self._word = np.array([number[word] for word in said_at], np.int64)
        self._total = np.bincount(self._latent, self._strength, self.n)
        self._of_stem: dict[str, list[int]] = {}
        for i, word in enumerate(self._words):
            self._of_stem.setdefault(stem(word), []).append(i)

    @functools.cached_property
    def _kinds(self) -> np.ndarray:
        """(words, kinds) which word of the store is of which."""
        return kinds.table(self._words)

    def find(self, query: str, limit: int = 50, labels: Mapping[int, str] | None = None) -> list[Meant]:
        """The latents that are about something, best first.

        Args:
            query: "negation", "names of countries".
            limit: latents, at most.
            labels: what people call latents.

        Raises:
            ConfigError: there is no word in the query.
        """
        wanted = asked(query)
        if not wanted:
            raise ConfigError(f"search by meaning of what? {query!r} has no words")
        reasons = self._reasons(query, wanted, labels or {})
        total = 1 - np.prod([1 - reason.scores for reason in reasons], 0)
        found = np.flatnonzero(total > 0)
        if len(found) > limit:  # equal ones at the edge by number, as all others
            edge = np.partition(total[found], len(found) - limit)[len(found) - limit]
            found = found[total[found] >= edge]
        best = found[np.argsort(-total[found], kind="stable")][:limit]
        return [Meant(int(latent), float(total[latent]), self._why(int(latent), reasons)) for latent in best]

    def said(self, latent: int) -> str:
        """What is said of a latent, in a line: its explanation or name, and the words at its peaks."""
        item = self.explanations.get(latent)
        words = ", ".join(self._fired_on(latent, np.ones(len(self._words), bool)))
        return ": ".join(part for part in (item.text if item else self._names[latent], words) if part)

    def _reasons(self, query: str, wanted: Sequence[str], labels: Mapping[int, str]) -> list[Reason]:
        told = self._said.find(wanted)
        reasons = [Reason("explanation", 0.9 * told * self._quality)]
        if labels:
            given = np.zeros(self.n)
            for latent, label in labels.items():
                given[latent] = 0.95 * len(set(wanted) & set(stems(label))) / len(wanted)
            reasons.append(Reason("label", given))
        named = self.named(wanted)
        if self._words:
            for kind, match in named:
                members = self._kinds[:, kinds.names().index(kind)]
                reasons.append(Reason(kind, match * self._on(members), members))
            same = np.zeros(len(self._words), bool)
            same[[i for each in wanted for i in self._of_stem.get(each, ())]] = True
            weight = 0.35 if named else 0.8
            reasons.append(Reason("its words", weight / len(wanted) * self._on(same, breadth=False), same))
        if self._embeddings is not None:
            surely = any(match > SURELY for _, match in named)
            close = self._embeddings.find(query) * (BESIDE_A_KIND if surely else 1)
            reasons.append(Reason("close in meaning", close))
        return reasons

    def names_a_kind(self, query: str) -> bool:
        """Whether a query is the name of a kind of words, and of nothing beside."""
        return any(match > SURELY for _, match in self.named(asked(query)))

    def named(self, wanted: Sequence[str]) -> list[tuple[str, float]]:
        """The kinds of words that a query names, and how well."""
        names, rarities = _kind_stems()

        def worth(those: set[str]) -> float:
            return sum(rarities.get(each, max(rarities.values())) for each in those)

        found: list[tuple[str, float]] = []
        for kind, ways in names.items():
            match = max(2 * worth(own & set(wanted)) / (worth(own) + worth(set(wanted))) for own in ways)
            if match >= NAMED:
                found.append((kind, match))
        return sorted(found, key=lambda pair: -pair[1])[:3]

    def _on(self, members: np.ndarray, breadth: bool = True) -> np.ndarray:
        """(n_latents,) how much of a latent's strongest firings are at some words, and at several of them."""
        rows = members[self._word]
        held = np.bincount(self._latent[rows], self._strength[rows], self.n)
        score = held / (self._total + FEW)
        if breadth:
            keys = self._latent[rows] * len(self._words) + self._word[rows]
            pairs, place = np.unique(keys, return_inverse=True)
            squares = np.bincount(place, self._strength[rows], len(pairs)) ** 2
            alone = np.bincount(pairs // max(1, len(self._words)), squares, self.n) / np.maximum(held, 1e-9) ** 2
            score *= 1 - ALONE * alone
        return np.minimum(0.98, score)

    def _why(self, latent: int, reasons: Sequence[Reason]) -> str:
        """The reasons that count, most first, with words that show them."""
        parts: list[str] = []
        told: list[str] = []
        for reason in sorted(reasons, key=lambda reason: -reason.scores[latent]):
            if reason.scores[latent] < 0.05:
                continue
            if reason.words is not None:
                shown = ", ".join(self._fired_on(latent, reason.words))
                if shown in told:
                    continue
                told.append(shown)
                kind = "" if reason.name == "its words" else f"{reason.name}: "
                parts.append(f"fires on {kind}{shown}")
            elif reason.name == "explanation":
                parts.append("explained so" if self.explanations.of(latent) else "named so")
            elif reason.name == "label":
                parts.append("labelled so")
            else:
                parts.append(reason.name)
        return "; ".join(parts[:3])

    def _fired_on(self, latent: int, members: np.ndarray) -> list[str]:
        first, last = np.searchsorted(self._latent, (latent, latent + 1))
        words = self._word[first:last]
        words, times = np.unique(words[members[words]], return_counts=True)
        return [self._words[word] for word in words[np.argsort(-times, kind="stable")][:SHOWN]]


@functools.cache
def _kind_stems() -> tuple[dict[str, list[set[str]]], dict[str, float]]:
    """The stems of what each kind is called, and how much each tells."""
    names = {kind: [set(asked(name)) for name in (kind, *ALSO.get(kind, ()))] for kind in kinds.names()}
    known = sorted({stem for ways in names.values() for own in ways for stem in own})
    holders = [sum(any(stem in own for own in ways) for ways in names.values()) for stem in known]
    return names, dict(zip(known, rarity(holders, len(names)).tolist(), strict=True))
