"""Indices of a store in memory, so that a search takes milliseconds: by tokens, and by words in passages."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from monosem.features.rows import numbers
from monosem.models.vocabulary import Vocabulary
from monosem.sql import Tables

HOWS = ("fires on token", "promotes", "suppresses")
ROWS_AT_ONCE = 1_024
"""Passages whose tokens are joined in one go, in which other threads wait."""


class Searched(Protocol):
    """What is searched: the parts of a `FeatureStore` that it takes."""

    index: dict[str, Any]
    n_latents: int

    @property
    def tables(self) -> Tables: ...

    @functools.cached_property
    def vocabulary(self) -> Vocabulary: ...

    @functools.cached_property
    def token_index(self) -> TokenIndex: ...

    def word_index(self, part: int) -> WordIndex:
        """Of part `part` of the latents."""
        ...


class TokenIndex(NamedTuple):
    """Every entry of the lists of tokens of all latents, by token."""

    tokens: np.ndarray
    """(entries,) ascending"""
    latents: np.ndarray
    scores: np.ndarray
    hows: np.ndarray
    """Which of HOWS each entry is."""

    @staticmethod
    def of(store: Searched) -> TokenIndex:
        """Read it: 17 bytes an entry, some 30 entries a latent."""
        found = store.tables.run(
            "select latent, firing_tokens, firing_shares, promoted_tokens, promoted_weights, suppressed_tokens, "
            "suppressed_weights, greatest(logit_deviation, 1e-9) as deviation from details join features using (latent)"
        )
        latents, deviations = numbers(found.column("latent")), numbers(found.column("deviation"))
        parts: list[tuple[np.ndarray, ...]] = []
        kinds = (("firing", "shares", 1.0), ("promoted", "weights", 10.0), ("suppressed", "weights", -10.0))
        for how, (name, values, scale) in enumerate(kinds):
            tokens = found.column(f"{name}_tokens").combine_chunks()
            weights = found.column(f"{name}_{values}").combine_chunks()
            rows = np.repeat(np.arange(len(latents)), np.diff(numbers(tokens.offsets)))
            scores = numbers(weights.flatten()).astype(float)
            scores = scores if how == 0 else scores / deviations[rows] / scale
            parts.append((numbers(tokens.flatten()), latents[rows], scores, np.full(len(rows), how, np.int8)))
        entries = tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(entries[0], kind="stable")
        return TokenIndex(*(column[order] for column in entries))

    def find(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Latent, which of HOWS, and score of every latent whose lists have some of these tokens."""
        starts, stops = (np.searchsorted(self.tokens, tokens, side) for side in ("left", "right"))
        spans = [np.arange(start, stop) for start, stop in zip(starts, stops, strict=True)]
        entries = np.concatenate([np.zeros(0, np.int64), *spans])
        keys = self.latents[entries].astype(np.int64) * len(HOWS) + self.hows[entries]
        known, place = np.unique(keys, return_inverse=True)
        return known // len(HOWS), known % len(HOWS), np.bincount(place, self.scores[entries], len(known))


class WordIndex(NamedTuple):
    """The passages of a part of the latents as one text, and where in it their strongest windows stand."""

    text: bytes
    """UTF-8, in small letters; every character as long as the one that was there."""
    latents: np.ndarray
    """(windows,)"""
    strengths: np.ndarray
    """Activation at the peak over the latent's maximum."""
    windows: np.ndarray
    """(windows, 2) first byte, and the one behind the last"""
    peaks: np.ndarray
    """(windows, 2) of the token at the peak and the one before"""

    @staticmethod
    def of(store: Searched, first: int, stop: int) -> WordIndex:
        """Read the passages of latents `first` to `stop`."""
        rows = store.tables.run(
            "select e.latent, passage, start, length, peak, e.activation / greatest(f.max, 1e-30) as strength "
            "from examples e join features f using (latent) "
            f"where kind = 'top' and latent >= {first} and latent < {stop}"
        )
        latents, passages, starts, lengths, peaks, strengths = (numbers(column) for column in rows.columns)
        chosen = f"between {passages.min()} and {passages.max()}" if len(passages) else "is null"
        found = store.tables.run(f"select passage, tokens from passages where passage {chosen} order by passage")
        pieces = store.vocabulary.pieces
        sizes = np.array([len(piece) for piece in pieces], np.int64)
        parts: list[bytes] = []
        begins, tokens_before, bytes_before = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)], 0
        total = 0
        for batch in found.to_batches(ROWS_AT_ONCE):
            column = batch.column("tokens")
            tokens = numbers(column.flatten())
            parts.append(b"".join(map(pieces.__getitem__, tokens.tolist())))
            begins.append(bytes_before + np.cumsum(sizes[tokens]))
            bytes_before += len(parts[-1])
            tokens_before.append(total + numbers(column.offsets)[:-1] - numbers(column.offsets)[0])
            total += len(tokens)
        at, row_of = np.concatenate(begins), np.concatenate(tokens_before)
        places = row_of[np.searchsorted(numbers(found.column("passage")), passages)] + starts
        around = places + np.maximum(0, peaks - 1), places + np.minimum(peaks + 1, lengths)
        return WordIndex(
            _small(b"".join(parts)),
            latents,
            strengths,
            np.stack([at[places], at[places + lengths]], 1),
            np.stack([at[around[0]], at[around[1]]], 1),
        )

    def find(self, words: Sequence[str], whole: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Latent and strength of every window with all the words, whole or also as parts of others; those near the peak
        count three times.
        """
        inside, near = np.ones(len(self.latents), bool), np.zeros(len(self.latents), bool)
        for word in words:
            wanted = _small(word.encode(errors="replace"))
            before, behind = _EDGES if whole else (b"", b"")
            pattern = (before if _of_word(wanted[:1]) else b"") + re.escape(wanted)
            pattern += behind if _of_word(wanted[-1:]) else b""
            places = np.array([match.start() for match in re.finditer(b"(?=" + pattern + b")", self.text)])
            inside &= _holds(places.astype(np.int64), len(wanted), self.windows)
            near |= _holds(places.astype(np.int64), len(wanted), self.peaks)
        return self.latents[inside], (self.strengths * (1 + 2 * near))[inside]

    def peak_words(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """Of every window, latent after latent, the word in which its peak ends, its latent and its strength.

        Where no word ends there it is what stands there between spaces.
        """
        codes = np.frombuffer(self.text, np.uint8)
        whole, last = _OF_WORD[codes], self.peaks[:, 1] - 1
        inside = whole[np.minimum(last, max(0, len(codes) - 1))] if len(codes) else np.zeros(0, bool)
        spans = np.where(inside[:, None], _runs(whole, last), _runs(~whole & (codes > 32), last))
        order = np.argsort(self.latents, kind="stable")
        words = [self.text[start:stop].decode(errors="replace").strip() for start, stop in spans[order].tolist()]
        return words, self.latents[order].astype(np.int64), self.strengths[order]


def _runs(inside: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(places, 2) where the run of True around each place begins and ends; of one outside, the place alone."""
    if not len(at):
        return np.zeros((0, 2), np.int64)
    edges = np.flatnonzero(np.diff(inside.astype(np.int8), prepend=0, append=0))
    run = np.searchsorted(edges, at, "right") - 1
    starts, stops = edges[np.maximum(run, 0)], edges[np.minimum(run + 1, len(edges) - 1)]
    return np.where(inside[at][:, None], np.stack([starts, stops], 1), np.stack([at, at + 1], 1))


_OF_WORD = np.zeros(256, bool)
"""Which bytes are of words in small letters, as in `_EDGES`."""
_OF_WORD[[*b"0123456789abcdefghijklmnopqrstuvwxyz", *range(128, 256)]] = True
_EDGES = rb"(?<![0-9a-z\x80-\xff])", rb"(?![0-9a-z\x80-\xff])"
"""Of words in small letters; bytes beyond ASCII are taken for letters."""


def _of_word(byte: bytes) -> bool:
    return re.fullmatch(rb"[0-9a-z\x80-\xff]", byte) is not None


def _holds(places: np.ndarray, length: int, spans: np.ndarray) -> np.ndarray:
    """Whether something of some length begins at one of the places, which ascend, and lies within each span."""
    next_place = np.append(places, np.iinfo(np.int64).max - length)[np.searchsorted(places, spans[:, 0])]
    return next_place + length <= spans[:, 1]


def _small(text: bytes) -> bytes:
    """UTF-8 in small letters, so far as these take as many bytes; what is no UTF-8 stays."""
    decoded = text.decode(errors="surrogateescape")
    capitals = {c: c.lower() for c in set(decoded) if c.lower() != c and len(c.lower().encode()) == len(c.encode())}
    return decoded.translate(str.maketrans(capitals)).encode(errors="surrogateescape")
