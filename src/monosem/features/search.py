"""Finding features in a store: by tokens, by words, and those worth a first look."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa

from monosem.errors import ConfigError

if TYPE_CHECKING:
    from monosem.features.vocabulary import Vocabulary


class Tables(Protocol):
    """What is searched: the tables of a store."""

    index: dict[str, Any]

    @functools.cached_property
    def vocabulary(self) -> Vocabulary: ...

    def sql(self, query: str, values: Sequence[Any] = ()) -> pa.Table:
        """As `FeatureStore.sql`."""
        ...


def by_token(store: Tables, token: str, limit: int) -> pa.Table:
    """Features that are named so, by clarity; whose lists have the token, by its share of firings or its weight."""
    tokens, wanted = store.vocabulary.find(token), token.strip().lower()
    among = ", ".join(map(str, tokens)) or "-1"

    def lists(how: str, names: str, values: str, score: str) -> str:
        return (
            f"select latent, {score} as score, '{how}' as how from (select latent, unnest({names}) as token, "
            f"unnest({values}) as value from details where list_has_any({names}, [{among}]))"
            f" join features using (latent) where token in ({among})"
        )

    parts = [
        "select latent, clarity as score, 'named' as how from features where lower(name) = ?",
        lists("fires on", "firing_tokens", "firing_shares", "value"),
        lists("promotes", "promoted_tokens", "promoted_weights", "value / greatest(logit_deviation, 1e-9) / 10"),
        lists("suppresses", "suppressed_tokens", "suppressed_weights", "-value / greatest(logit_deviation, 1e-9) / 10"),
    ]
    found = store.sql(
        f"select latent, sum(score)::float as score, how from ({' union all '.join(parts)}) group by latent, how "
        f"order by how = 'named' desc, how = 'fires on' desc, score desc, latent limit {int(limit)}",
        [wanted],
    )
    if not tokens and not len(found):
        raise ConfigError(
            f"no token of the vocabulary is {token!r}, and no feature is named so: "
            f"search(words={token!r}) looks in passages"
        )
    return found


def by_words(store: Tables, words: str, limit: int) -> pa.Table:
    """Features by the share of their strongest windows that contain all the words, those at the peak counting more."""
    wanted = words.lower().split()
    if not wanted:
        raise ConfigError("there are no words to search for")
    pieces = store.vocabulary.pieces
    found: dict[int, str] = {}
    for row in store.sql("select passage, tokens from passages").to_batches():
        for passage, tokens in zip(row.column("passage").to_pylist(), row.column("tokens").to_pylist(), strict=True):
            text = b"".join([pieces[t] for t in tokens]).decode(errors="replace").lower()
            if all(word in text for word in wanted):
                found[passage] = text
    scores: dict[int, float] = {}
    if found:
        rows = store.sql(
            "select e.latent, e.activation / greatest(f.max, 1e-30) as strength, e.peak, e.start, e.length, p.tokens "
            "from (select * from examples where kind = 'top') e join passages p using (passage) "
            f"join features f using (latent) where e.passage in ({', '.join(map(str, found))})"
        )
        for row in rows.to_pylist():
            window = row["tokens"][row["start"] : row["start"] + row["length"]]
            text = b"".join([pieces[t] for t in window]).decode(errors="replace").lower()
            if all(word in text for word in wanted):
                near = window[max(0, row["peak"] - 1) : row["peak"] + 1]
                close = b"".join([pieces[t] for t in near]).decode(errors="replace").lower()
                worth = row["strength"] * (1 + 2 * any(word in close for word in wanted))
                scores[row["latent"]] = scores.get(row["latent"], 0.0) + worth
    top = store.index["settings"]["top"]
    best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:limit]
    return pa.table(
        {
            "latent": pa.array([latent for latent, _ in best], pa.int32()),
            "score": pa.array([score / top / 3 for _, score in best], pa.float32()),
            "how": pa.array(["passages"] * len(best), pa.string()),
        }
    )


RARE_ENOUGH, OFTEN_ENOUGH, CLEAR_ENOUGH = 0.01, 30, 0.5


def notable(store: Tables, n: int, whole_words: bool) -> list[int]:
    """As `FeatureStore.notable`."""
    word = " and regexp_full_match(name, '\\p{L}{3,}')" if whole_words else ""
    rows = store.sql(
        "select arg_max(latent, clarity * max) as best, max(clarity * max) as score from features "
        f"where count >= {OFTEN_ENOUGH} and rate < {RARE_ENOUGH} and clarity >= {CLEAR_ENOUGH}{word} "
        f"group by lower(name) order by score desc, best limit {int(n)}"
    )
    return rows.column("best").to_pylist()
