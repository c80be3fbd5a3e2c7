"""Words and their stems, and which latents have what said of them: a small index ranked as BM25 does."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import snowballstemmer

WORD = re.compile(r"[^\W_]+")
IDLE = frozenset(
    "the a an of and or in on at to is are be it its that this these those with for as by from word words token tokens "  # noqa: SIM905
    "feature features fires fire about which what where when some any".split()
)
"""Words of a query that ask for nothing."""
HALF = 0.6
"""Weight at which a stem counts half of what it can (BM25's k1; Robertson and Zaragoza, 2009)."""

_LOCK = threading.Lock()
"""A stemmer works on one word at a time."""


@functools.cache
def _stemmer() -> Any:
    return snowballstemmer.stemmer("english")


@functools.lru_cache(1 << 17)
def stem(word: str) -> str:
    """The stem of an English word: "countries" and "country" have one."""
    with _LOCK:
        return _stemmer().stemWord(word.lower())


def stems(text: str) -> list[str]:
    """Of all words of a text."""
    return [stem(word) for word in WORD.findall(text.lower())]


def asked(query: str) -> list[str]:
    """The stems of a query, each once; its idle words only where it has no others."""
    words = WORD.findall(query.lower())
    return list(dict.fromkeys(stem(word) for word in ([word for word in words if word not in IDLE] or words)))


def rarity(holders: Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """How much it says that something has a stem which `holders` of `n` have (BM25's inverse document frequency)."""
    df = np.asarray(holders, float)
    return np.log1p((n - df + 0.5) / (df + 0.5))


class StemIndex:
    """Stems by the latents of which they are said."""

    def __init__(self, n: int, said: Iterable[tuple[int, str, float]]) -> None:
        """Index what is said.

        Args:
            n: latents.
            said: latent, text, and how much its words weigh.
        """
        self.n, self._number = n, dict[str, int]()
        latents, numbers, weights = list[int](), list[int](), list[float]()
        for latent, text, weight in said:
            for each in set(stems(text)):
                latents.append(latent)
                numbers.append(self._number.setdefault(each, len(self._number)))
                weights.append(weight)
        keys = np.array(numbers, np.int64) * n + np.array(latents, np.int64)
        known, place = np.unique(keys, return_inverse=True)
        self._latents = (known % n).astype(np.int32)
        self._weights = np.bincount(place, np.array(weights, np.float64), len(known)).astype(np.float32)
        self._first = np.searchsorted(known // n, np.arange(len(self._number) + 1))

    def find(self, wanted: Sequence[str]) -> np.ndarray:
        """(n,) for every latent the share of the stems that is said of it, rare ones counting more: 0 to 1."""
        score, total = np.zeros(self.n), 0.0
        for each in wanted:
            number = self._number.get(each)
            span = slice(0, 0) if number is None else slice(self._first[number], self._first[number + 1])
            worth = float(rarity([span.stop - span.start], self.n)[0])
            total += worth
            weights = self._weights[span]
            score[self._latents[span]] += worth * weights / (weights + HALF) * (1 + HALF)
        return np.minimum(1.0, score / total) if total else score
