"""Search: by number, token, words, notes, activating text and similarity."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from monosem.errors import ConfigError
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.shapes import Found, FoundRow
from monosem.explorer.subject import Subjects, rarity, strongest
from monosem.explorer.table import rows_of

KINDS = ("all", "token", "words", "notes", "text", "similar")
FIRST = (
    "number",
    "label",
    "list",
    "comment",
    "named",
    "fires on",
    "images",
    "rows",
    "passages",
    "promotes",
    "suppresses",
)
MOST = 200
READ_AT_EACH_TOKEN = 128


class Hit(NamedTuple):
    """A latent, how good a hit it is, and why."""

    latent: int
    score: float
    how: str


def search(dictionary: Dictionary, subjects: Subjects, query: str, kind: str = "all", limit: int = 50) -> Found:
    """What a query finds, best first, each latent once.

    Raises:
        ConfigError: the query is empty or the kind unknown.
    """
    if not query.strip():
        raise ConfigError("search for what? q= is empty")
    ways: dict[str, Callable[[], list[Hit]]] = {
        "token": lambda: _by_token(dictionary, query, limit),
        "words": lambda: _by_words(dictionary, query, limit),
        "notes": lambda: _by_notes(dictionary, query),
        "text": lambda: _by_text(dictionary, subjects, query),
        "similar": lambda: _by_similarity(dictionary, query, limit),
    }
    words: str | None = None
    if kind == "all":
        hits = _by_number(dictionary, query) + ways["notes"]()
        found: list[Hit] = []
        for way in ("token", "words"):
            try:
                found += ways[way]()
            except ConfigError as error:  # no such token, no such class of images: the other may find something
                words = str(error).partition(":")[0]
        if found and dictionary.store.things != "tokens":
            words = None
        hits = _a_part_of_each(hits + found, max(1, limit // 4))
    elif kind in ways:
        hits = ways[kind]()
    else:
        raise ConfigError(f"kind={kind}: search by {', '.join(KINDS)}")
    best: dict[int, Hit] = {}
    for hit in hits:
        best.setdefault(hit.latent, hit)
    chosen = list(best.values())[: min(max(1, limit), MOST)]
    rows = rows_of(dictionary, [hit.latent for hit in chosen])
    results = [FoundRow(**row, score=hit.score, how=hit.how) for row, hit in zip(rows, chosen, strict=True)]
    return Found(query=query, kind=kind, results=results, words=words)


def _a_part_of_each(hits: list[Hit], most: int) -> list[Hit]:
    """Of each kind of hit the best few, kinds that say most first: many hits of one kind hide no other."""
    kinds: dict[str, list[Hit]] = {how: [] for how in FIRST}
    seen: set[int] = set()
    for hit in sorted(hits, key=lambda hit: FIRST.index(hit.how)):
        if hit.latent not in seen and len(kinds[hit.how]) < most:
            seen.add(hit.latent)
            kinds[hit.how].append(hit)
    return [hit for found in kinds.values() for hit in found]


def _by_number(dictionary: Dictionary, query: str) -> list[Hit]:
    text = query.strip()
    if text.isascii() and text.isdigit() and len(text) < 12 and int(text) < dictionary.n_latents:
        return [Hit(int(text), 1.0, "number")]
    return []


def _by_token(dictionary: Dictionary, query: str, limit: int) -> list[Hit]:
    found = dictionary.store.search(token=query, limit=3 * limit)
    return [Hit(row["latent"], row["score"], row["how"]) for row in found.to_pylist()]


def _by_words(dictionary: Dictionary, query: str, limit: int) -> list[Hit]:
    found = dictionary.store.search(words=query, limit=limit)
    return [Hit(row["latent"], row["score"], row["how"]) for row in found.to_pylist()]


def _by_notes(dictionary: Dictionary, query: str) -> list[Hit]:
    wanted = query.strip().lower()
    hits: list[Hit] = []
    for latent, note in dictionary.notes.all().items():
        label, comment = (note["label"] or "").lower(), (note["comment"] or "").lower()
        if wanted in label:
            hits.append(Hit(latent, 3.0 + (wanted == label), "label"))
        elif any(wanted in name.lower() for name in note["lists"]):
            hits.append(Hit(latent, 2.0, "list"))
        elif wanted in comment:
            hits.append(Hit(latent, 1.0, "comment"))
    return sorted(hits, key=lambda hit: -hit.score)


def _by_text(dictionary: Dictionary, subjects: Subjects, query: str) -> list[Hit]:
    done = subjects.read(dictionary, query)
    _, values, latents = strongest(done.codes, READ_AT_EACH_TOKEN)
    rarities = rarity(dictionary, latents, values)
    order = np.argsort(-rarities, kind="stable")
    return [Hit(int(latents[i]), float(rarities[i]), "activating text") for i in order]


def _by_similarity(dictionary: Dictionary, query: str, limit: int) -> list[Hit]:
    try:
        latent = dictionary.check(int(query))
    except ValueError:
        raise ConfigError(f"search by similarity takes the number of a feature, not {query!r}") from None
    try:
        directions = dictionary.directions()
    except Unavailable:  # what the store itself knows: the closest few
        found = dictionary.store.similar(latent, limit)
        return [Hit(other, cosine, "similar") for other, cosine in found]
    cosines = directions @ directions[latent]
    cosines[latent] = -2
    best = cosines.topk(min(limit, dictionary.n_latents - 1))
    return [Hit(i, c, "similar") for i, c in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
