"""Finding features in a store: by tokens, by words, and those worth a first look."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from monosem.errors import ConfigError

if TYPE_CHECKING:
    from monosem.features.store import FeatureStore


def by_token(store: FeatureStore, token: str, limit: int) -> pa.Table:
    """Features whose lists have a token, by its share of firings, or by its weight in tens of deviations."""
    tokens = store.vocabulary.find(token)
    if not tokens:
        raise ConfigError(f"no token of the vocabulary is {token!r}: search(words={token!r}) looks in passages")
    among = f"({', '.join(map(str, tokens))})"

    def lists(how: str, names: str, values: str, score: str) -> str:
        return (
            f"select latent, {score} as score, '{how}' as how from (select latent, unnest({names}) as token, "
            f"unnest({values}) as value from details where list_has_any({names}, [{among[1:-1]}]))"
            f" join features using (latent) where token in {among}"
        )

    parts = [
        lists("fires on", "firing_tokens", "firing_shares", "value"),
        lists("promotes", "promoted_tokens", "promoted_weights", "value / greatest(logit_deviation, 1e-9) / 10"),
        lists("suppresses", "suppressed_tokens", "suppressed_weights", "-value / greatest(logit_deviation, 1e-9) / 10"),
    ]
    return store.sql(
        f"select latent, sum(score)::float as score, how from ({' union all '.join(parts)}) group by latent, how "
        f"order by how = 'fires on' desc, score desc, latent limit {int(limit)}"
    )


def by_words(store: FeatureStore, words: str, limit: int) -> pa.Table:
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


PASSAGES, TELLING = 8, 6
RARE_ENOUGH, OFTEN_ENOUGH = 0.01, 30
CANDIDATES = 20_000


def notable(store: FeatureStore, n: int, whole_words: bool) -> list[int]:
    """As `FeatureStore.notable`; of a very wide dictionary, among the first 20,000 that are sparse enough."""
    rows = store.sql(
        "select e.latent, e.activation, p.tokens[e.start + e.peak + 1] as peak, "
        "case when e.peak + 1 < e.length then p.tokens[e.start + e.peak + 2] else -1 end as after "
        "from (select * from examples where kind = 'top') e join passages p using (passage) where e.latent in "
        f"(select latent from features where count >= {OFTEN_ENOUGH} and rate < {RARE_ENOUGH} order by latent "
        f"limit {CANDIDATES}) order by e.latent, e.activation desc, p.context"
    )
    latent, activation, peak, after = (column.to_numpy() for column in rows.columns)
    starts = np.flatnonzero(np.r_[True, latent[1:] != latent[:-1]]) if len(latent) else np.zeros(0, int)
    starts = starts[np.diff(np.r_[starts, len(latent)]) >= PASSAGES]
    first = starts[:, None] + np.arange(PASSAGES)
    telling = _whole_words(store, peak, after)[first].sum(1) >= (TELLING if whole_words else 0)
    strength, peaks = activation[first].astype(float), peak[first]
    score = strength[:, -1] / strength[:, 0] * strength.mean(1)
    best: dict[int, int] = {}
    for i in np.argsort(-score, kind="stable"):
        if telling[i]:
            seen = peaks[i].tolist()
            best.setdefault(max(seen, key=seen.count), int(latent[starts[i]]))
    return list(best.values())[:n]


def _whole_words(store: FeatureStore, peak: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Whether a token is a word of at least three letters, and what comes after does not go on with it."""
    texts = [store.vocabulary.text(token) for token in range(len(store.vocabulary))]
    word = np.array([text.startswith(" ") and len(text) > 3 and text[1:].isalpha() for text in texts])
    goes_on = np.array([text[:1].isalpha() for text in texts])
    return word[peak] & ~(goes_on[after] & (after >= 0))
