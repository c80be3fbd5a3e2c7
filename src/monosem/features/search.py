"""Finding features in a store: by tokens, by words, and those worth a first look."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from monosem.errors import ConfigError
from monosem.features.files import PART
from monosem.features.lookup import HOWS, Searched
from monosem.features.rows import numbers


def by_token(store: Searched, token: str, limit: int) -> pa.Table:
    """Features that are named so, by clarity; whose lists have the token, by its share of firings or its weight."""
    tokens = store.vocabulary.find(token)
    named = store.tables.run("select latent, clarity from features where lower(name) = ?", [token.strip().lower()])
    if not tokens and not len(named):
        raise ConfigError(
            f"no token of the vocabulary is {token!r}, and no feature is named so: "
            f"search(words={token!r}) looks in passages"
        )
    latents, kinds, scores = store.token_index.find(tokens)
    latents = np.concatenate([numbers(named.column("latent")), latents])
    scores = np.concatenate([numbers(named.column("clarity")), scores])
    kinds = np.concatenate([np.full(len(named), -1), kinds])
    order = np.lexsort((latents, -scores, kinds > 0, kinds >= 0))[:limit]
    return _found(latents[order], scores[order], [("named", *HOWS)[kind + 1] for kind in kinds[order]])


def by_words(store: Searched, words: str, limit: int) -> pa.Table:
    """Features by the share of their strongest windows that contain all the words, those at the peak counting more."""
    wanted = words.split()
    if not wanted:
        raise ConfigError("there are no words to search for")
    worth = np.zeros(store.n_latents)
    for part in range(-(-store.n_latents // PART)):
        latents, strengths = store.word_index(part).find(wanted)
        np.add.at(worth, latents, strengths)
    best = np.lexsort((np.arange(len(worth)), -worth))[:limit]
    best = best[worth[best] > 0]
    return _found(best, worth[best] / store.index["settings"]["top"] / 3, ["passages"] * len(best))


def _found(latents: np.ndarray, scores: np.ndarray, hows: list[str]) -> pa.Table:
    return pa.table(
        {
            "latent": pa.array(latents.astype(np.int32)),
            "score": pa.array(scores.astype(np.float32), from_pandas=True),
            "how": pa.array(hows, pa.string()),
        }
    )


RARE_ENOUGH, OFTEN_ENOUGH, CLEAR_ENOUGH = 0.01, 30, 0.5


def notable(store: Searched, n: int, whole_words: bool) -> list[int]:
    """As `FeatureStore.notable`."""
    word = " and regexp_full_match(name, '\\p{L}{3,}')" if whole_words else ""
    rows = store.tables.run(
        "select arg_max(latent, clarity * max) as best, max(clarity * max) as score from features "
        f"where count >= {OFTEN_ENOUGH} and rate < {RARE_ENOUGH} and clarity >= {CLEAR_ENOUGH}{word} "
        f"group by lower(name) order by score desc, best limit {int(n)}"
    )
    return rows.column("best").to_pylist()
