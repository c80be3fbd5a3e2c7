"""Finding features in a store: by words, by tokens, by passages, and those worth a first look."""

from __future__ import annotations

import functools
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from monosem.errors import ConfigError
from monosem.features.files import PART
from monosem.features.lookup import HOWS, Searched
from monosem.features.word_table import Firing, WordTable

MARKS = "·…«»"


class SearchedWords(Searched, Protocol):
    """What is searched for words."""

    @functools.cached_property
    def words(self) -> WordTable | None: ...


class Hit(NamedTuple):
    """A latent, how good a hit it is, and why."""

    latent: int
    score: float
    how: str


def by_words_fired_on(store: SearchedWords, text: str) -> list[Firing]:
    """Latents that fire on a word, or on every one of several, most reliably and strongly first."""
    wanted = text.split() or [text]
    if store.words is None:
        return []
    return store.words.find(wanted[0]) if len(wanted) == 1 else store.words.find_all(wanted)


def by_name(store: Searched, text: str) -> list[Hit]:
    """Latents that are named so, or by a list in which it is, clearest first."""
    found = store.tables.run(
        "select latent, coalesce(clarity, 0) as clarity from features "
        "where list_contains(string_split(translate(lower(name), ?, ''), ', '), ?) order by clarity desc, latent",
        [MARKS, text.strip().lower()],
    )
    rows = zip(found.column("latent").to_pylist(), found.column("clarity").to_pylist(), strict=True)
    return [Hit(latent, clarity, "named") for latent, clarity in rows]


def by_effect(store: Searched, text: str, hows: tuple[str, ...] = HOWS) -> list[Hit]:
    """Latents of whose lists a token is one: by its share of their firings, or its weight in tens of deviations.

    Raises:
        ConfigError: the vocabulary has no such token.
    """
    tokens = store.vocabulary.find(text)
    if not tokens:
        raise ConfigError(f"no token of the vocabulary is {text!r}: it is made of several")
    latents, kinds, scores = store.token_index.find(tokens)
    chosen = np.isin(kinds, [HOWS.index(how) for how in hows])
    latents, kinds, scores = latents[chosen], kinds[chosen], scores[chosen]
    order = np.lexsort((latents, -scores, kinds))
    rows = zip(latents[order].tolist(), scores[order].tolist(), kinds[order].tolist(), strict=True)
    return [Hit(latent, score, HOWS[kind]) for latent, score, kind in rows]


def by_passages(store: Searched, text: str) -> list[Hit]:
    """Latents by the share of their strongest windows that hold all the words, those at the peak counting more.

    Whole words count; where no window has them, parts of words do.
    """
    wanted = text.split()
    if not wanted:
        raise ConfigError("there are no words to search for")
    for whole in (True, False):
        worth = np.zeros(store.n_latents)
        for part in range(-(-store.n_latents // PART)):
            latents, strengths = store.word_index(part).find(wanted, whole)
            np.add.at(worth, latents, strengths)
        if worth.any():
            break
    best = np.lexsort((np.arange(len(worth)), -worth))
    best = best[worth[best] > 0]
    scores = worth[best] / store.index["settings"]["top"] / 3
    return [Hit(*pair, "passages") for pair in zip(best.tolist(), scores.tolist(), strict=True)]


def by_token(store: SearchedWords, text: str, limit: int) -> pa.Table:
    """Everything that is said of a word or token, as a table.

    Raises:
        ConfigError: it is nowhere.
    """
    hits = [Hit(firing.latent, firing.score, "fires on") for firing in by_words_fired_on(store, text)]
    hits += by_name(store, text)
    try:
        hits += by_effect(store, text)
    except ConfigError as error:
        if not hits:
            nothing = f"and no feature is named so or fires on it: search(words={text!r}) looks in passages"
            raise ConfigError(f"{str(error).partition(':')[0]}, {nothing}") from error
    return as_table(hits[:limit])


def as_table(hits: list[Hit]) -> pa.Table:
    """Latent, score, how."""
    return pa.table(
        {
            "latent": pa.array([hit.latent for hit in hits], pa.int32()),
            "score": pa.array([hit.score for hit in hits], pa.float32()),
            "how": pa.array([hit.how for hit in hits], pa.string()),
        }
    )


RARE_ENOUGH, OFTEN_ENOUGH, CLEAR_ENOUGH = 0.01, 30, 0.5


def notable(store: Searched, n: int, whole_words: bool) -> list[int]:
    """As `FeatureStore.notable`."""
    word = " and regexp_full_match(name, '\\p{L}{3,}((, | )\\p{L}+)*')" if whole_words else ""
    rows = store.tables.run(
        "select arg_max(latent, clarity * max) as best, max(clarity * max) as score from features "
        f"where count >= {OFTEN_ENOUGH} and rate < {RARE_ENOUGH} and clarity >= {CLEAR_ENOUGH}{word} "
        f"group by lower(name) order by score desc, best limit {int(n)}"
    )
    return rows.column("best").to_pylist()
