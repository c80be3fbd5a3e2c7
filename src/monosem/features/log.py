# pyright: basic, reportAttributeAccessIssue=false
"""Every firing of a random sample of contexts: what is counted from it is exact while all contexts fit."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from monosem.codes import SparseCodes

UNREAD = np.uint32(2**32 - 1)
"""In place of a number of firings, at a position that the SAE does not read."""


class Logged(NamedTuple):
    """Some contexts and all that fires in them."""

    keys: np.ndarray
    """(contexts,) hashes: those of the smallest are kept."""
    places: np.ndarray
    """(contexts,) the place of the first token of each."""
    n_tokens: np.ndarray
    """(contexts,)"""
    n_firings: np.ndarray
    """(contexts,)"""
    tokens: np.ndarray
    """(tokens,) of all contexts, one after the other."""
    fired: np.ndarray
    """(tokens,) how many latents fire at each; UNREAD where the SAE does not read."""
    latents: np.ndarray
    """(firings,) token after token."""
    values: np.ndarray
    """(firings,) the activation of each as bfloat16: the upper half of a float32, to within 1/256."""

    @property
    def read(self) -> np.ndarray:
        """(tokens,) whether the SAE reads it."""
        return self.fired != UNREAD

    @property
    def offsets(self) -> np.ndarray:
        """(tokens + 1,) where the firings of each token begin."""
        return np.concatenate([[0], np.cumsum(np.where(self.read, self.fired, 0), dtype=np.int64)])

    def taken(self, which: np.ndarray) -> Logged:
        """The contexts of a mask, in their order."""
        if which.all():
            return self
        tokens, firings = np.repeat(which, self.n_tokens), np.repeat(which, self.n_firings)
        masks = (which, which, which, which, tokens, tokens, firings, firings)
        return Logged(*(column[mask] for column, mask in zip(self, masks, strict=True)))


class FiringLog:
    """The contexts of smallest key, as many as have no more tokens and firings than it holds; at least one.

    What is kept does not depend on the order in which contexts come, nor on what was merged.
    """

    def __init__(self, capacity: int, token_type: np.dtype, latent_type: np.dtype) -> None:
        """Begin, with room for so many tokens and firings."""
        self.capacity = capacity
        self.limit = np.uint64(2**64 - 1)
        """Only smaller keys can still come in."""
        kinds = (np.uint64, np.int64, np.int32, np.int64, token_type, np.uint32, latent_type, np.uint16)
        self._parts = [Logged(*(np.zeros(0, kind) for kind in kinds))]
        self._waiting = 0

    @property
    def whole(self) -> bool:
        """Whether every context is in it."""
        return bool(self.limit == np.uint64(2**64 - 1))

    def add(
        self, keys: np.ndarray, places: np.ndarray, tokens: np.ndarray, cells: np.ndarray, codes: SparseCodes
    ) -> None:
        """Take in the contexts of a batch.

        Args:
            keys: (contexts,)
            places: (contexts,) of the first token of each.
            tokens: (contexts * width,)
            cells: (rows,) which of the tokens the SAE reads, ascending.
            codes: of these.
        """
        wanted = keys < self.limit
        if not wanted.any():
            return
        width = len(tokens) // len(keys)
        values = codes.values.detach().float().cpu().numpy()
        latents, offsets = codes.indices.cpu().numpy(), codes.offsets.cpu().numpy()
        on = values > 0
        before = np.concatenate([[0], np.cumsum(on)])
        counts = before[offsets[1:]] - before[offsets[:-1]]
        fired = np.full(len(tokens), UNREAD)
        fired[cells] = counts
        n_firings = np.bincount(cells // width, counts, len(keys)).astype(np.int64)
        bits = (values[on].view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)
        kinds = self._parts[0]
        batch = Logged(
            keys,
            places,
            np.full(len(keys), width, np.int32),
            n_firings,
            tokens.astype(kinds.tokens.dtype),
            fired,
            latents[on].astype(kinds.latents.dtype),
            bits.astype(np.uint16),
        )
        self.take(batch.taken(wanted))

    def take(self, part: Logged) -> None:
        """Take in contexts that another log holds."""
        self._parts.append(part.taken(part.keys < self.limit))
        self._waiting += _size(self._parts[-1])
        if self._waiting > self.capacity + self.capacity // 4:
            self._sort_out()

    def merge(self, other: FiringLog) -> None:
        """Take in what another one holds."""
        self.limit = min(self.limit, other.limit)
        self._parts = [part.taken(part.keys < self.limit) for part in self._parts]
        self.take(other.kept())

    def load(self, part: Logged, limit: int, n_latents: int, vocabulary_size: int) -> None:
        """Hold what was saved.

        Raises:
            ValueError: its columns do not fit one another, or the sizes given.
        """
        kinds, sums = self._parts[0], [int(part.n_tokens.sum())] * 2 + [int(part.n_firings.sum())] * 2
        fits = all(column.ndim == 1 and column.dtype == kind.dtype for column, kind in zip(part, kinds, strict=True))
        fits = fits and [len(c) for c in part] == [len(part.keys)] * 4 + sums
        fits = fits and not any((column < 0).any() for column in (part.n_tokens, part.n_firings))
        fits = fits and int(part.offsets[-1]) == sums[-1]
        fits = (
            fits and int(part.latents.max(initial=0)) < n_latents and int(part.tokens.max(initial=0)) < vocabulary_size
        )
        if not fits:
            raise ValueError("its log of firings is damaged")
        self._parts, self._waiting, self.limit = [part], _size(part), np.uint64(limit)

    def kept(self) -> Logged:
        """What is in it, ordered by place."""
        self._sort_out()
        found = self._parts[0]
        order = np.argsort(found.places, kind="stable")
        if not np.array_equal(order, np.arange(len(order))):
            found = _ordered(found, order)
            self._parts = [found]
        return found

    def _sort_out(self) -> None:
        keys = np.concatenate([part.keys for part in self._parts])
        order = np.argsort(keys)
        sizes = np.cumsum(np.concatenate([part.n_tokens + part.n_firings for part in self._parts])[order])
        n = max(1, int(np.searchsorted(sizes, self.capacity, side="right")))
        if n < len(keys):
            self.limit = keys[order[n]]
            self._parts = [part.taken(part.keys < self.limit) for part in self._parts]
        self._parts = [Logged(*(np.concatenate(columns) for columns in zip(*self._parts, strict=True)))]
        self._waiting = _size(self._parts[0])


def _size(part: Logged) -> int:
    return len(part.tokens) + len(part.latents)


def _ordered(found: Logged, order: np.ndarray) -> Logged:
    tokens, firings = np.empty_like(found.tokens), np.empty_like(found.latents)
    fired, values = np.empty_like(found.fired), np.empty_like(found.values)
    for ends, columns in (
        (found.n_tokens, ((found.tokens, tokens), (found.fired, fired))),
        (found.n_firings, ((found.latents, firings), (found.values, values))),
    ):
        starts = np.concatenate([[0], np.cumsum(ends, dtype=np.int64)])
        for source, target in columns:
            _copy_runs(source, starts, order, target)
    keys, places, n_tokens, n_firings = (column[order] for column in found[:4])
    return Logged(keys, places, n_tokens, n_firings, tokens, fired, firings, values)


@njit(cache=True)
def _copy_runs(source, starts, order, target):
    at = 0
    for i in order:
        n = starts[i + 1] - starts[i]
        target[at : at + n] = source[starts[i] : starts[i + 1]]
        at += n


@njit(cache=True, inline="always")
def float_of(bits):
    """An activation from its bfloat16."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


def as_floats(values: np.ndarray) -> np.ndarray:
    """Activations from their bfloat16."""
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
