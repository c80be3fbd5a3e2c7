"""The tables of a store, made from a harvest: docs/feature_store.md says what every column means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from monosem.activations import VectorRows
from monosem.data import Images
from monosem.errors import ConfigError
from monosem.features import alike, statistics, streaming
from monosem.features.described import ByLatent, described
from monosem.features.log import Logged
from monosem.features.names import Named, named_by_documents, named_by_words
from monosem.features.parts import Parts, parts_of
from monosem.features.pictures import class_name
from monosem.features.state import Harvest, text_number
from monosem.features.statistics import FiringTokens, Ranked
from monosem.features.streaming import BINS_AN_OCTAVE, COARSE, EMPTY, N_BINS, SAMPLE_BINS
from monosem.features.words import OfWords, Words, of_words
from monosem.features.worth import Worth, contexts_of, steering_worth
from monosem.models import ModelSet, SubjectModel
from monosem.models.vocabulary import Vocabulary
from monosem.sae import SAE

KINDS = ("top", "sample", "near_miss", "silent")
Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Sources:
    """A harvest and all that is computed once from it, for all latents."""

    harvest: Harvest
    sae: SAE
    vocabulary: Vocabulary
    logged: Logged
    firing: FiringTokens
    together: Ranked
    lifts: np.ndarray
    neighbours: Ranked
    logits: statistics.LogitEffects | None
    parts: Parts | None
    """What several sources have of each latent."""
    shown: np.ndarray
    """(n_latents, held) which of the strongest places are shown."""
    peaks: np.ndarray
    """(n_latents,) the commonest token at the peaks of the strongest examples; -1 if there are none."""
    named: Named
    words: Words | None
    """Of text."""
    of_words: OfWords | None
    worth: Worth | None
    """In steering: of a model that writes text."""

    @staticmethod
    def of(
        harvest: Harvest,
        sae: SAE,
        model: SubjectModel | ModelSet | None,
        vocabulary: Vocabulary,
        shown: Images | VectorRows | None = None,
    ) -> Sources:
        """Compute it.

        Args:
            harvest: what was gathered.
            sae: of this dictionary.
            model: of this model; None for ready vectors.
            vocabulary: what stands at positions.
            shown: what was read, if it was not text.
        """
        m = harvest.settings.listed
        parts = parts_of(sae, model, harvest.facts.get("hooks"), m, vocabulary.known)
        logits = None if parts is None else parts.together
        if isinstance(model, SubjectModel) and parts is None:
            try:
                logits = statistics.logit_effects(sae, model, m, vocabulary.known)
            except ConfigError:  # a model without output embeddings, or an SAE that writes another width
                logits = None
        logged = harvest.log.kept()
        firings = ByLatent.of(logged, harvest.n_latents)
        firing = statistics.firing_tokens(harvest, logged, firings, m)
        together, lifts = statistics.cofiring(harvest, logged, m)
        neighbours = statistics.decoder_neighbours(sae, m)
        if isinstance(shown, VectorRows):  # every position of rows is the same
            firing.tokens.indices[:] = -1
        chosen = alike.shown(harvest, of_text=shown is None)
        peaks = _commonest_peaks(harvest, chosen)
        words = counted = None
        if shown is None:
            words = Words.of(logged, vocabulary)
            named = named_by_words(*described(logged, words, firings, vocabulary), words, vocabulary)
            rates = harvest.totals.count / max(1, harvest.n_tokens)
            counted = of_words(logged, words, rates, harvest.totals.max.astype(float))
        else:
            named = named_by_documents(harvest, chosen, vocabulary, peaks, _names_of_documents(shown))
        worth = None
        if isinstance(model, SubjectModel) and shown is None and logits is not None and parts is None:
            worth = _worth(harvest, sae, model, logged, logits.promoted)
        known = (
            logged,
            firing,
            together,
            lifts,
            neighbours,
            logits,
            parts,
            chosen,
            peaks,
            named,
            words,
            counted,
            worth,
        )
        return Sources(harvest, sae, vocabulary, *known)


def _worth(harvest: Harvest, sae: SAE, model: SubjectModel, logged: Logged, promoted: Ranked) -> Worth | None:
    """What the latents are worth in steering, unless that is left out or there is no context for it."""
    contexts = contexts_of(logged, harvest.settings.worth) if harvest.settings.worth else None
    hook = harvest.facts.get("hook")
    if contexts is None or hook is None:
        return None
    return steering_worth(sae, model, hook, contexts, harvest.totals.max, promoted)


def _names_of_documents(shown: Images | VectorRows | None) -> Callable[[int], str] | None:
    """What latents are called by in place of words: classes of images, labels of rows or else their numbers."""
    if isinstance(shown, VectorRows):
        return lambda row: shown.label(row) or f"row {row}"
    if shown is None or shown.labels is None:
        return None
    labels, classes = shown.labels, shown.classes
    return lambda image: class_name(int(labels[image]), classes)


def _commonest_peaks(harvest: Harvest, shown: np.ndarray) -> np.ndarray:
    """Of the strongest examples of every latent; of several equally common tokens the one with the strongest place."""
    held = slice(harvest.layout.n_top)
    peak = np.where(shown, (harvest.slots.place[:, held] & 0xFFFF) - harvest.slots.start[:, held], 0)
    tokens = np.take_along_axis(harvest.slots.tokens[:, held], peak[..., None], 2)[..., 0].astype(int)
    tokens[~shown] = -1
    same = (tokens[:, :, None] == tokens[:, None, :]) & (tokens >= 0)[:, :, None]
    strength = harvest.slots.activation[:, held] / np.maximum(harvest.totals.max, 1e-30)[:, None]
    best = np.argmax(same.sum(2) + 0.5 * strength, axis=1)
    return tokens[np.arange(len(tokens)), best]


def features_table(sources: Sources, first: int, stop: int) -> pa.Table:
    """One row a latent, plain numbers and strings."""
    h, part = sources.harvest, slice(first, stop)
    count, n = h.totals.count[part], h.totals.count[part] > 0
    mean = h.totals.sum[part] / np.maximum(1, count)
    variance = np.maximum(0, h.totals.square[part] / np.maximum(1, count) - mean**2)
    names = [sources.vocabulary.text(token) for token in range(len(sources.vocabulary))]

    def text(tokens: np.ndarray) -> pa.Array:
        return pa.array([names[t] if 0 <= t < len(names) else None for t in tokens.tolist()], pa.string())

    def number(values: np.ndarray, known: np.ndarray, kind: Any = None) -> pa.Array:
        return pa.array(values, kind or pa.float32(), mask=~known)

    top, peak, partner = sources.firing.tokens.indices[part, 0], sources.peaks[part], sources.together.indices[part, 0]
    nearest = sources.neighbours
    none, everywhere = np.zeros(len(n), bool), np.ones(len(n), bool)
    closest = nearest.indices[part, 0] if nearest.indices.shape[1] else none - 1
    cosine = nearest.values[part, 0] if nearest.indices.shape[1] else none + 0.0
    encoder = statistics.encoder_cosines(sources.sae)
    lengths = sources.sae.decoder_directions(range(first, stop)).float().flatten(1).norm(dim=-1).cpu().numpy()
    columns: dict[str, Any] = {
        "latent": pa.array(np.arange(first, stop), pa.int32()),
        "name": pa.array(sources.named.names[part], pa.string()),
        "name_piece": pa.array(sources.named.pieces[part], pa.list_(pa.int16())),
        "clarity": number(sources.named.clarity[part], n),
        "count": count,
        "rate": count / max(1, h.n_tokens),
        "mean": number(mean, n),
        "deviation": number(np.sqrt(variance), n),
        "max": number(h.totals.max[part], n),
        "top_token": number(top, top >= 0, pa.int32()),
        "top_token_text": text(top),
        "top_token_share": number(sources.firing.tokens.values[part, 0], top >= 0),
        "peak_token": number(peak, peak >= 0, pa.int32()),
        "peak_token_text": text(peak),
        "decoder_norm": number(lengths, everywhere),
        "nearest": number(closest, closest >= 0, pa.int32()),
        "nearest_cosine": number(cosine, closest >= 0),
        "encoder_cosine": number(none + 0.0 if encoder is None else encoder[part], none if encoder is None else ~none),
        "partner": number(partner, partner >= 0, pa.int32()),
        "partner_lift": number(sources.lifts[part, 0], partner >= 0),
    }
    for name in Worth._fields:
        values = none + np.nan if sources.worth is None else getattr(sources.worth, name)[part]
        columns[name] = number(values, ~np.isnan(values))
    for i, name in enumerate(("mean", "deviation", "skew", "kurtosis")):
        values = none + 0.0 if sources.logits is None else sources.logits.moments[part, i]
        columns[f"logit_{name}"] = number(values, none if sources.logits is None else everywhere)
    for name in ("promoted", "suppressed"):
        ranked = getattr(sources.logits, name, None)
        columns[f"{name}_text"] = text(ranked.indices[part, 0] if ranked else none - 1)
    if sources.parts is not None:
        reads = sources.parts.read_by(np.arange(first, stop))
        if reads is not None:
            columns["reads"] = pa.array(reads, pa.int16())
        for i, share in enumerate(sources.parts.shares[part].T):
            columns[f"share_{i}"] = pa.array(share, pa.float32())
    return pa.table(columns)


def details_table(sources: Sources, first: int, stop: int) -> pa.Table:
    """One row a latent, lists."""
    part, n = slice(first, stop), stop - first
    empty = Ranked(np.full((n, 0), -1), np.zeros((n, 0), np.float32))
    columns: dict[str, Any] = {"latent": pa.array(np.arange(first, stop), pa.int32())}
    columns |= _histograms(sources.harvest.totals.histogram[part])

    def ranked(names: tuple[str, str], ranked: Ranked, *more: tuple[str, np.ndarray]) -> None:
        known = ranked.indices >= 0
        columns[names[0]] = _lists(ranked.indices, known, pa.int32())
        for name, values in ((names[1], ranked.values), *more):
            columns[name] = _lists(values, known, pa.float32())

    def cut(ranked: Ranked) -> Ranked:
        return Ranked(ranked.indices[part], ranked.values[part])

    for name in ("promoted", "suppressed"):
        found = cut(getattr(sources.logits, name)) if sources.logits is not None else empty
        ranked((f"{name}_tokens", f"{name}_weights"), found)
    firing = sources.firing
    ranked(("firing_tokens", "firing_shares"), cut(firing.tokens), ("firing_recalls", firing.recalls[part]))
    columns["logged"] = pa.array(firing.logged[part], pa.int64())
    ranked(("neighbours", "neighbour_cosines"), cut(sources.neighbours))
    ranked(("cofiring_latents", "cofiring_shares"), cut(sources.together), ("cofiring_lifts", sources.lifts[part]))
    return pa.table(columns)


def _lists(values: np.ndarray, known: np.ndarray, kind: pa.DataType) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(known.sum(1))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values[known], kind))


def _histograms(counts: np.ndarray) -> dict[str, pa.Array]:
    on = counts > 0
    first = np.where(on.any(1), on.argmax(1), 0)
    stop = np.where(on.any(1), counts.shape[1] - on[:, ::-1].argmax(1), 0)
    bins = np.arange(counts.shape[1])
    inside = (bins >= first[:, None]) & (bins < stop[:, None])
    return {"histogram_first": pa.array(first, pa.int32()), "histogram": _lists(counts, inside, pa.int64())}


def examples_tables(sources: Sources, first: int, stop: int, first_passage: int) -> tuple[pa.Table, pa.Table]:
    """The examples of latents `first` to `stop`, and the passages that they stand in."""
    harvest = sources.harvest
    kept, silent = _kept_examples(sources, first, stop), _silent_examples(harvest, first, stop)
    columns = {name: np.concatenate([kept[name], silent[name]]) for name in kept}
    order = np.lexsort((columns["place"], -columns["activation"], columns["kind"], columns["latent"]))
    columns = {name: column[order] for name, column in columns.items()}
    begin, length = columns["start"].astype(np.int64), columns["length"].astype(np.int64)
    window = np.arange(columns["tokens"].shape[1])[None] < length.reshape(-1, 1)
    number, starts, passages = _passages(
        columns["place"] >> 16, begin, length, columns["tokens"], window, columns["latent"]
    )
    shaded = window & (columns["shades"].max(1, keepdims=True) > 0)
    examples = {
        "latent": pa.array(columns["latent"], pa.int32()),
        "kind": pa.DictionaryArray.from_arrays(pa.array(columns["kind"], pa.int8()), pa.array(KINDS)),
        "activation": pa.array(columns["activation"], pa.float32()),
        "weight": pa.array(columns["weight"], pa.float32()),
        "document": pa.array(columns["document"], pa.int32()),
        "position": pa.array(columns["position"], pa.int32()),
        "passage": pa.array(number + first_passage, pa.int64()),
        "start": pa.array(starts, pa.int16()),
        "peak": pa.array((columns["place"] & 0xFFFF) - begin, pa.int16()),
        "length": pa.array(length, pa.int16()),
        "scale": pa.array(columns["scale"], pa.float32()),
        "shades": _lists(columns["shades"], shaded, pa.uint8()),
    }
    names = text_names(harvest)
    numbers = {text_number(name): i for i, name in enumerate(names)}
    texts = np.array([numbers[n] for n in passages["text_number"].tolist()], np.int16)
    n_passages = len(texts)
    table = {
        "passage": pa.array(np.arange(first_passage, first_passage + n_passages), pa.int64()),
        "text": pa.array(texts, pa.int16()),
        "context": pa.array(passages["context"], pa.int64()),
        "offset": pa.array(passages["offset"], pa.int32()),
        "tokens": pa.ListArray.from_arrays(
            pa.array(passages["ends"], pa.int32()), pa.array(passages["tokens"], pa.int32())
        ),
    }
    return pa.table(examples), pa.table(table)


def text_names(harvest: Harvest) -> list[str]:
    """The texts that were read, in order."""
    return list(dict.fromkeys(span.text for span in harvest.spans))


def _kept_examples(sources: Sources, first: int, stop: int) -> Columns:
    harvest = sources.harvest
    layout, slots = harvest.layout, harvest.slots
    near = layout.n_top + (SAMPLE_BINS + 1) * layout.per_bin
    kind_of_slot = np.repeat([0, 1, 2], [layout.n_top, near - layout.n_top, layout.n_near])
    there = slots.place[first:stop] != EMPTY
    there[:, : layout.n_top] = sources.shown[first:stop]
    latents, slot = np.nonzero(there)
    latents += first
    columns = {name: column[latents, slot] for name, column in slots._asdict().items() if name != "content"}
    kind = kind_of_slot[slot]
    weight = np.ones(len(latents), np.float32)
    weight[kind == 1] = _sample_weights(harvest, latents[kind == 1], slot[kind == 1] - layout.n_top, first, stop)
    return columns | {"latent": latents, "kind": kind, "weight": weight}


def _sample_weights(harvest: Harvest, latents: np.ndarray, slot: np.ndarray, first: int, stop: int) -> np.ndarray:
    """How many firings each sampled one stands for: firings in its bin of the sample over those kept of it."""
    coarse = harvest.totals.histogram[first:stop].reshape(stop - first, N_BINS // COARSE, COARSE).sum(2)
    top = streaming.bins_of(np.maximum(harvest.totals.max[first:stop], 1e-30)) // COARSE
    bins = np.arange(coarse.shape[1])
    ring = np.where(bins > top[:, None] - SAMPLE_BINS, bins % SAMPLE_BINS, SAMPLE_BINS)
    firings = np.zeros((stop - first, SAMPLE_BINS + 1))
    np.add.at(firings, (np.arange(stop - first)[:, None], ring), coarse)
    group = slot // harvest.layout.per_bin
    members = np.zeros_like(firings)
    np.add.at(members, (latents - first, group), 1)
    return (firings / np.maximum(1, members))[latents - first, group]


def _silent_examples(harvest: Harvest, first: int, stop: int) -> Columns:
    """For every latent the windows of smallest hash among those in which it is off throughout."""
    _, pool = harvest.windows.kept()
    latents, windows = np.zeros(0, int), np.zeros(0, int)
    m = min(harvest.settings.silent, len(pool["place"]))
    if m:
        on = np.unpackbits(pool["on"], axis=1, count=harvest.n_latents)[:, first:stop].T.astype(bool)
        n, n_windows = on.shape
        keys = streaming.hashes(
            harvest.settings.seed, np.repeat(np.arange(first, stop), n_windows), np.tile(pool["place"], n)
        ).reshape(n, n_windows)
        keys[on] = streaming.NO_KEY
        best = np.argpartition(keys, m - 1, axis=1)[:, :m]
        latents, rank = np.nonzero(~np.take_along_axis(on, best, 1))
        windows = best[latents, rank]
        latents += first
    zeros = np.zeros(len(latents), np.float32)
    shades = np.zeros((len(latents), pool["tokens"].shape[1]), np.uint8)
    columns = {name: pool[name][windows] for name in ("place", "document", "position", "start", "length", "tokens")}
    columns |= {
        "activation": zeros,
        "scale": zeros,
        "shades": shades,
        "latent": latents,
    }
    return columns | {"kind": np.full(len(latents), 3), "weight": np.ones(len(latents), np.float32)}


def _passages(
    contexts: np.ndarray,
    begin: np.ndarray,
    length: np.ndarray,
    tokens: np.ndarray,
    window: np.ndarray,
    latents: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, Columns]:
    """The union of windows that overlap or touch, each token once.

    Returns:
        Of every window its passage and where in it it begins; and the passages, in the order of the first latent that
        uses them.
    """
    _, context = np.unique(contexts, return_inverse=True)
    line = context * 2**17 + begin  # all contexts on one line, far apart
    order = np.argsort(line, kind="stable")
    reach = np.maximum.accumulate((line + length)[order]) if len(order) else line
    new = np.ones(len(order), bool)
    new[1:] = line[order][1:] > reach[:-1]
    leaders = np.flatnonzero(new)
    number = np.empty(len(order), int)
    number[order] = np.cumsum(new) - 1
    user = np.full(len(leaders), np.iinfo(np.int64).max)
    np.minimum.at(user, number, latents)
    by_user = np.lexsort((np.arange(len(leaders)), user))
    renumbered = np.empty(len(leaders), int)
    renumbered[by_user] = np.arange(len(leaders))
    number, leader = renumbered[number], order[leaders][by_user]
    sizes = np.zeros(len(leaders), int)
    starts = begin - begin[leader][number]
    np.maximum.at(sizes, number, starts + length)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    flat = np.zeros(ends[-1], tokens.dtype)
    places = (ends[:-1][number] + starts)[:, None] + np.arange(tokens.shape[1])
    flat[places[window]] = tokens[window]
    place = contexts[leader]
    found = {"text_number": place >> 32, "context": place & 0xFFFFFFFF, "offset": begin[leader]}
    return number, starts, found | {"ends": ends, "tokens": flat}


def vocabulary_table(harvest: Harvest, vocabulary: Vocabulary) -> pa.Table:
    """One row a token id."""
    tokens = range(len(vocabulary))
    return pa.table(
        {
            "token": pa.array(tokens, pa.int32()),
            "bytes": pa.array(vocabulary.pieces, pa.binary()),
            "text": pa.array([vocabulary.text(t) for t in tokens], pa.string()),
            "special": pa.array([t in vocabulary.special for t in tokens], pa.bool_()),
            "count": harvest.token_counts[: len(vocabulary)],
        }
    )


def histogram_edges(first: int, n: int) -> np.ndarray:
    """The n + 1 edges of n bins from bin `first` on."""
    return 2.0 ** (streaming.LOWEST_EXPONENT + np.arange(first, first + n + 1) / BINS_AN_OCTAVE)
