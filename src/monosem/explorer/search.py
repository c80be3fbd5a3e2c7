"""Search: by meaning, number, word, token, passages, notes, activating text and similarity."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, cast

import numpy as np

from monosem.errors import ConfigError, MonosemError
from monosem.explorer.answers import Ready, Rounded, digits
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.shapes import (
    FiredOn,
    Found,
    FoundEverywhere,
    FoundIn,
    FoundRow,
    Group,
    SearchPassage,
    WordEvidence,
)
from monosem.explorer.subject import Subjects, rarity, strongest
from monosem.explorer.table import rows_of
from monosem.features.search import Hit, by_effect, by_name, by_passages, by_words_fired_on
from monosem.features.stems import asked
from monosem.features.word_table import Firing, WordTable

ALL_OF = {
    "fires on": "word",
    "named": "token",
    "fires on token": "token",
    "promotes": "promotes",
    "suppresses": "suppresses",
    "passages": "words",
    "images": "words",
    "rows": "words",
    "meaning": "meaning",
    "label": "notes",
    "list": "notes",
    "comment": "notes",
}
"""Which kind of search lists every hit of a way in which one is found."""
KINDS = ("all", "meaning", "word", "token", "promotes", "suppresses", "words", "notes", "text", "similar")
ORDER = (
    "number", "label", "list", "comment", "fires on", "named", "fires on token", "images", "rows", "passages",
    "meaning", "promotes", "suppresses",
)  # fmt: skip
NAMED_FIRST = ("number", "label", "list", "comment", "meaning")
"""Before all others, where a query names a kind of words."""
LEAST_MEANT = 0.25
"""Score from which what is found by meaning stands in a search for everything."""
MOST = 200
READ_AT_EACH_TOKEN = 128
AROUND = (12, 8)
"""Tokens before and after a word that are shown."""
WARM = 65_536
"""Latents of a dictionary up to which its indices are read before somebody asks."""


class Hits(NamedTuple):
    """What was found, and what shows it."""

    hits: list[Hit]
    evidence: Mapping[int, Firing] = MappingProxyType({})
    passages: Mapping[int, SearchPassage] = MappingProxyType({})
    whys: Mapping[int, str] = MappingProxyType({})
    words: str | None = None


def search(
    dictionary: Dictionary, subjects: Subjects, query: str, kind: str = "all", limit: int = 50, offset: int = 0
) -> Found:
    """What a query finds, best first, each latent once.

    Raises:
        ConfigError: the query is empty or the kind unknown.
    """
    if not query.strip():
        raise ConfigError("search for what? q= is empty")
    ways: dict[str, Callable[[], Hits]] = {
        "all": lambda: _by_everything(dictionary, query),
        "meaning": lambda: _by_meaning(dictionary, query, offset + limit),
        "word": lambda: _by_word(dictionary, query),
        "token": lambda: Hits(_by_token(dictionary, query)),
        "promotes": lambda: Hits(by_effect(dictionary.store, query, ("promotes",))),
        "suppresses": lambda: Hits(by_effect(dictionary.store, query, ("suppresses",))),
        "words": lambda: _by_words(dictionary, query),
        "notes": lambda: Hits(_by_notes(dictionary, query)),
        "text": lambda: _by_text(dictionary, subjects, query),
        "similar": lambda: Hits(_by_similarity(dictionary, query)),
    }
    if kind not in ways:
        raise ConfigError(f"kind={kind}: search by {', '.join(KINDS)}")
    found = ways[kind]()
    hits = _each_once(found.hits)
    counted = found.hits if kind == "all" else hits  # a kind's own list has also what stands here under another head
    totals = Counter(how for how, _ in dict.fromkeys((hit.how, hit.latent) for hit in counted))
    limit = min(max(1, limit), MOST)
    chosen = _a_part_of_each(hits, max(1, limit // 4))[:limit] if kind == "all" else hits[offset : offset + limit]
    rows = rows_of(dictionary, [hit.latent for hit in chosen])
    results = [_result(dictionary, hit, row, found) for hit, row in zip(chosen, rows, strict=True)]
    groups = [Group(how=how, total=total, kind=ALL_OF.get(how)) for how, total in totals.items()]
    return Found(query=query, kind=kind, groups=groups, results=results, words=found.words)


def falls_back(dictionary: Dictionary, found: Found) -> bool:
    """Whether nothing was found but by running the model on the query something may be."""
    return found["kind"] == "all" and not found["results"] and dictionary.can["prompt"] is None


def search_as_text(dictionary: Dictionary, subjects: Subjects, query: str, limit: int) -> Found:
    """What fires on the query itself, as an answer to a search for everything that has found nothing."""
    found = search(dictionary, subjects, query, "text", limit)
    words = f"“{query}” is no word, token or passage that was harvested: these fire when the model reads it"
    return {**found, "words": words if found["results"] else f"{words}: none does"}


def search_everywhere(
    dictionaries: Sequence[Dictionary], subjects: Subjects, query: str, kind: str, limit: int
) -> FoundEverywhere:
    """What a query finds in several dictionaries, or why it cannot be asked of one."""

    def ask(dictionary: Dictionary) -> FoundIn:
        try:
            found = search(dictionary, subjects, query, kind, limit)
        except MonosemError as error:
            return FoundIn(name=dictionary.name, found=None, error=str(error))
        return FoundIn(name=dictionary.name, found=found, error=None)

    if not query.strip():
        raise ConfigError("search for what? q= is empty")
    return FoundEverywhere(query=query, kind=kind, dictionaries=[ask(dictionary) for dictionary in dictionaries])


def warm(dictionaries: Sequence[Dictionary]) -> None:
    """Begin to read what searches look in, so that the first one is as quick as the others."""

    def read() -> None:
        for dictionary in dictionaries:
            store = dictionary.store
            if store.things == "tokens" and dictionary.n_latents <= WARM:
                try:
                    _ = (store.words, store.token_index)
                    by_passages(store, "the")
                    store.meanings.find("the")
                except MonosemError:  # whoever asks is told
                    continue

    threading.Thread(target=read, daemon=True).start()


def _each_once(hits: list[Hit]) -> list[Hit]:
    """Every latent by the way that says most."""
    best: dict[int, Hit] = {}
    for hit in hits:
        best.setdefault(hit.latent, hit)
    return list(best.values())


def _a_part_of_each(hits: list[Hit], most: int) -> list[Hit]:
    """Of each way the best few: many hits of one hide no other."""
    taken: dict[str, list[Hit]] = {}
    for hit in hits:
        of_way = taken.setdefault(hit.how, [])
        if len(of_way) < most:
            of_way.append(hit)
    return [hit for of_way in taken.values() for hit in of_way]


def _result(dictionary: Dictionary, hit: Hit, row: object, found: Hits) -> FoundRow:
    evidence, passage = found.evidence.get(hit.latent), found.passages.get(hit.latent)
    word: WordEvidence | None = None
    if evidence is not None and dictionary.store.words is not None and hit.how == "fires on":
        (shown,) = firings_json(dictionary.store.words, [evidence])
        word, passage = shown["word"], shown["passage"]
    why = found.whys.get(hit.latent) if hit.how == "meaning" else None
    more = {"score": hit.score, "how": hit.how, "why": why, "word": word, "passage": passage}
    return {**row, **more}  # pyright: ignore


def firings_json(words: WordTable, firings: Sequence[Firing]) -> list[FiredOn]:
    """What a search by a word gives of each latent that fires on it, beside the latent's row."""
    found: list[FiredOn] = []
    for firing in firings:
        shown = words.shown(firing)
        activations = Rounded([digits(a, 4) if a else 0 for a in shown.activations])
        found.append(
            FiredOn(
                latent=firing.latent,
                score=firing.score,
                word=cast(WordEvidence, firing.evidence._asdict()),
                passage=cast(SearchPassage, Ready(texts=shown.texts, activations=activations, peak=shown.peak)),
            )
        )
    return found


def _by_everything(dictionary: Dictionary, query: str) -> Hits:
    hits, said = _by_number(dictionary, query) + _by_notes(dictionary, query), list[str]()
    evidence: dict[int, Firing] = {}
    ways: list[Callable[[], Hits]] = [
        lambda: _by_word(dictionary, query),
        lambda: Hits(_by_token(dictionary, query)),
        lambda: _by_words(dictionary, query),
    ]
    if dictionary.store.things != "tokens":
        ways = [lambda: Hits(_by_token(dictionary, query)), lambda: _by_words(dictionary, query)]
    if asked(query):
        ways.append(lambda: _by_meaning(dictionary, query, MOST, LEAST_MEANT))
    found, whys = list[Hit](), dict[int, str]()
    for way in ways:
        try:
            one = way()
        except ConfigError as error:  # no such token, no such class of images: another way may find something
            said.append(str(error).partition(":")[0])
            continue
        found += one.hits
        evidence |= one.evidence
        whys |= one.whys
    first = NAMED_FIRST if dictionary.store.meanings.names_a_kind(query) else ()
    order = {how: i for i, how in enumerate(dict.fromkeys((*first, *ORDER)))}
    hits += sorted(found, key=lambda hit: order[hit.how])
    beside = dictionary.store.things != "tokens" or any(hit.how == "meaning" for hit in found)
    words = said[-1] if said and not (found and beside) else None
    if words is None and dictionary.store.words is not None and not evidence:
        n = dictionary.store.words.occurrences(query)
        counted = dictionary.store.words.tokens_counted
        if len(query.split()) == 1 and n < 3:
            often = ("nowhere", "once", "twice")[n]
            words = f"“{query.strip()}” stands {often} in the {counted:,} tokens that were counted"
    return Hits(hits, evidence, whys=whys, words=words)


def _by_number(dictionary: Dictionary, query: str) -> list[Hit]:
    text = query.strip()
    if text.isascii() and text.isdigit() and len(text) < 12 and int(text) < dictionary.n_latents:
        return [Hit(int(text), 1.0, "number")]
    return []


def _by_meaning(dictionary: Dictionary, query: str, limit: int = MOST, least: float = 0.0) -> Hits:
    found = dictionary.store.meanings.find(query, limit, dictionary.notes.labels())
    found = [one for one in found if one.score >= least]
    hits = [Hit(one.latent, one.score, "meaning") for one in found]
    return Hits(hits, whys={one.latent: one.why for one in found})


def _by_word(dictionary: Dictionary, query: str) -> Hits:
    found = by_words_fired_on(dictionary.store, query)
    return Hits([Hit(one.latent, one.score, "fires on") for one in found], {one.latent: one for one in found})


def _by_token(dictionary: Dictionary, query: str) -> list[Hit]:
    if dictionary.store.rows is not None:
        raise ConfigError("rows of ready vectors have no tokens")
    named = by_name(dictionary.store, query)
    try:
        return named + by_effect(dictionary.store, query)
    except ConfigError:
        if not named:
            raise
        return named


def _by_words(dictionary: Dictionary, query: str) -> Hits:
    if dictionary.store.things == "tokens":
        return Hits(by_passages(dictionary.store, query))
    found = dictionary.store.search(words=query, limit=MOST)
    return Hits([Hit(row["latent"], row["score"], row["how"]) for row in found.to_pylist()])


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


def _by_text(dictionary: Dictionary, subjects: Subjects, query: str) -> Hits:
    done = subjects.read(dictionary, query)
    rows, values, latents = strongest(done.codes, READ_AT_EACH_TOKEN)
    rarities = rarity(dictionary, latents, values)
    order = np.argsort(-rarities, kind="stable")
    hits = [Hit(int(latents[i]), float(rarities[i]), "activating text") for i in order]
    texts, places = dictionary.store.vocabulary.texts(done.tokens), np.array(done.read, np.int64)[rows]
    passages: dict[int, SearchPassage] = {}
    for hit in _each_once(hits)[:MOST]:
        activations, mine = np.zeros(len(texts)), latents == hit.latent
        activations[places[mine]] = values[mine]
        peak = int(activations.argmax())
        first, stop = max(0, peak - AROUND[0]), min(len(texts), peak + AROUND[1] + 1)
        shown = [digits(a, 4) for a in activations[first:stop]]
        passages[hit.latent] = SearchPassage(texts=texts[first:stop], activations=shown, peak=peak - first)
    return Hits(hits, {}, passages)


def _by_similarity(dictionary: Dictionary, query: str) -> list[Hit]:
    try:
        latent = dictionary.check(int(query))
    except ValueError:
        raise ConfigError(f"search by similarity takes the number of a feature, not {query!r}") from None
    try:
        directions = dictionary.directions()
    except Unavailable:  # what the store itself knows: the closest few
        return [Hit(other, cosine, "similar") for other, cosine in dictionary.store.similar(latent, MOST)]
    cosines = directions @ directions[latent]
    cosines[latent] = -2
    best = cosines.topk(dictionary.n_latents - 1)
    return [Hit(i, c, "similar") for i, c in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
