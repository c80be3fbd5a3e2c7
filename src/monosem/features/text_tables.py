"""The tables of a store that are of text alone: words, which latents fire on them, and the contexts they stand in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from monosem.features.state import text_number
from monosem.features.tables import Sources, text_names
from monosem.features.words import Words, windows_of


def contexts_table(sources: Sources) -> pa.Table:
    """The contexts of the log: what words are shown in."""
    logged, names = sources.logged, text_names(sources.harvest)
    numbers = {text_number(name): i for i, name in enumerate(names)}
    ends = np.concatenate([[0], np.cumsum(logged.n_tokens)])
    return pa.table(
        {
            "text": pa.array([numbers[n] for n in (logged.places >> 48).tolist()], pa.int16()),
            "context": pa.array((logged.places >> 16) & 0xFFFFFFFF, pa.int64()),
            "tokens": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(logged.tokens, pa.int32())),
        }
    )


def words_table(words: Words) -> pa.Table:
    """One row a word."""
    return pa.table(
        {
            "word": pa.array(np.arange(len(words.texts)), pa.int32()),
            "text": pa.array(words.texts, pa.string()),
            "spelled": pa.array(words.spelled, pa.string()),
            "occurrences": pa.array(words.occurrences, pa.int64()),
        }
    )


def word_features_table(sources: Sources) -> pa.Table:
    """One row a word and latent that fires on it, the best latents of a word first."""
    found, logged = sources.of_words, sources.logged
    assert found is not None, "it is of text"
    which, rank = np.nonzero(found.latents >= 0)
    latents, best = found.latents[which, rank], found.best[which, rank]
    ends = np.cumsum(logged.n_tokens, dtype=np.int64)
    context = np.searchsorted(ends, best, side="right")
    scale = np.maximum(sources.harvest.totals.max[latents], 1e-30)
    first, activations, offsets = windows_of(logged, best, latents)
    shades = np.clip(np.round(activations / np.repeat(scale, np.diff(offsets)) * 255), activations > 0, 255)
    return pa.table(
        {
            "word": pa.array(found.words[which], pa.int32()),
            "latent": pa.array(latents, pa.int32()),
            "fires": pa.array(found.fires[which, rank], pa.int32()),
            "strength": pa.array(found.strengths[which, rank], pa.float32()),
            "firings": pa.array(found.firings[which, rank], pa.int32()),
            "context": pa.array(context, pa.int32()),
            "first": pa.array(first - (ends - logged.n_tokens)[context], pa.int32()),
            "peak": pa.array(best - first, pa.int16()),
            "shades": pa.ListArray.from_arrays(
                pa.array(offsets, pa.int32()), pa.array(shades.astype(np.uint8), pa.uint8())
            ),
        }
    )
