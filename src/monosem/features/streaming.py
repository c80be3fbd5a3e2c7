# pyright: basic, reportAttributeAccessIssue=false
"""What a harvest does with every firing, compiled by numba: O(active), each latent in the hands of one thread.

What is kept never depends on the order of firings: the strongest by (activation, place), random ones by smallest hash.

A place is one token of a text: text << 48 | context << 16 | offset in the context.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit, prange

from monosem.features.ranking import largest_first
from monosem.kernels.parallel import parallel

BINS_AN_OCTAVE = 6
LOWEST_EXPONENT = -14
N_BINS = 28 * BINS_AN_OCTAVE
"""Of the histogram: activations from 2^-14 to 2^14; the outermost bins also hold what lies beyond."""
COARSE = 2
"""Bins of the histogram in one bin of the sample: a third of an octave."""
SAMPLE_BINS = 9
"""Bins below the maximum that are sampled one by one; all that is weaker is sampled together."""
EMPTY = -1
NO_KEY = np.uint64(2**64 - 1)
_C1, _C2, _C3 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)


class Slots(NamedTuple):
    """Kept examples, (n_latents, slots) each: the strongest, then the samples bin by bin, then the near misses."""

    place: np.ndarray
    document: np.ndarray
    position: np.ndarray
    content: np.ndarray
    """(n_latents, n_top) what the document holds, as a hash: equal documents are the same text."""
    activation: np.ndarray
    scale: np.ndarray
    """Largest activation in the window."""
    start: np.ndarray
    """Offset in the context at which the window begins: padding is outside it."""
    length: np.ndarray
    """Of the window."""
    tokens: np.ndarray
    """(n_latents, slots, window)"""
    shades: np.ndarray
    """(n_latents, slots, window): activations in 255ths of the scale, rounded up to 1."""


class Totals(NamedTuple):
    """Per latent: exact counts and sums."""

    count: np.ndarray
    sum: np.ndarray
    square: np.ndarray
    max: np.ndarray
    histogram: np.ndarray


class Layout(NamedTuple):
    """How many slots of which kind, and the window around a token."""

    n_top: int
    """Strongest places that are held. Some are dropped at the end where passages are alike: `features/alike.py`."""
    per_bin: int
    n_near: int
    before: int
    after: int
    seed: int

    @property
    def slots(self) -> int:
        return self.n_top + (SAMPLE_BINS + 1) * self.per_bin + self.n_near


class Firings(NamedTuple):
    """The firings of a batch, ordered by latent and then by cell (a token of the batch, counted through)."""

    starts: np.ndarray
    """(n_latents + 1,)"""
    cells: np.ndarray
    values: np.ndarray


class Tokens(NamedTuple):
    """The tokens of a batch, flat."""

    tokens: np.ndarray
    document: np.ndarray
    position: np.ndarray
    content: np.ndarray
    padding: np.ndarray
    width: int
    """Positions in a context of the batch."""
    first_place: int
    """The place of the first token of the batch's first context."""


@njit(cache=True, inline="always")
def mix(x):
    """A bijection of 64-bit numbers that looks random (splitmix64)."""
    x = (x + _C1) ^ ((x + _C1) >> _S30)
    x = x * _C2
    x = (x ^ (x >> _S27)) * _C3
    return x ^ (x >> _S31)


@njit(cache=True, inline="always")
def hash_of(seed, latent, place):
    """Different for different places of one latent."""
    return mix(mix(np.uint64(place) ^ mix(np.uint64(seed))) ^ mix(np.uint64(latent) + _C2))


@njit(cache=True)
def hashes(seed, latents, places):
    out = np.empty(len(places), np.uint64)
    for i in range(len(places)):
        out[i] = hash_of(seed, latents[i], places[i])
    return out


@njit(cache=True, inline="always")
def bin_of(value):
    """The histogram's bin of a positive activation."""
    bin = math.floor(math.log2(value) * BINS_AN_OCTAVE) - LOWEST_EXPONENT * BINS_AN_OCTAVE
    return min(max(bin, 0), N_BINS - 1)


@njit(cache=True)
def bins_of(values):
    out = np.empty(len(values), np.int64)
    for i in range(len(values)):
        out[i] = bin_of(values[i])
    return out


@njit(cache=True)
def sort_firings(rows, indices, values, cells, n_latents):
    """Firings by latent; rows ascend, so that each latent's cells do too. Values of 0 are left out."""
    starts = np.zeros(n_latents + 1, np.int64)
    for e in range(len(indices)):
        if values[e] > 0:
            starts[indices[e] + 1] += 1
    for i in range(n_latents):
        starts[i + 1] += starts[i]
    next_free = starts[:-1].copy()
    sorted_cells, sorted_values = np.empty(starts[-1], np.int64), np.empty(starts[-1], np.float32)
    for e in range(len(indices)):
        if values[e] > 0:
            at = next_free[indices[e]]
            next_free[indices[e]] += 1
            sorted_cells[at], sorted_values[at] = cells[rows[e]], values[e]
    return starts, sorted_cells, sorted_values


@parallel()
def take_in(firings, tokens, totals, slots, layout):
    """All firings of a batch."""
    for latent in prange(len(firings.starts) - 1):
        _take_in_latent(np.int64(latent), firings, tokens, totals, slots, layout)


@njit(cache=True)
def _take_in_latent(latent, firings, tokens, totals, slots, layout):
    for e in range(firings.starts[latent], firings.starts[latent + 1]):
        cell, value = firings.cells[e], firings.values[e]
        bin = bin_of(value)
        if value > totals.max[latent]:
            _raise_maximum(slots, layout, latent, totals.max[latent], bin)
            totals.max[latent] = value
        totals.count[latent] += 1
        totals.sum[latent] += value
        totals.square[latent] += np.float64(value) * value
        totals.histogram[latent, bin] += 1
        place = _place(tokens, cell)
        random = hash_of(layout.seed, latent, place)
        group = _group(layout, bin, bin_of(totals.max[latent]))
        slot = _random_slot(slots, layout, latent, group, layout.per_bin, layout.seed, random)
        if slot >= 0:
            _fill(slots, layout, latent, slot, place, value, cell, tokens, firings)
        slot = _top_slot(slots, layout, latent, value, place, tokens.content[cell])
        if slot >= 0:
            _fill(slots, layout, latent, slot, place, value, cell, tokens, firings)
            _weakest_first(slots, layout, latent)


@njit(cache=True)
def take_in_near_misses(cells, latents, values, firings, tokens, slots, layout):
    """Near misses: (cells, m) latents that were almost on, and their pre-activations; latents of -1 are none."""
    start = layout.n_top + (SAMPLE_BINS + 1) * layout.per_bin
    for i in range(latents.shape[0]):
        for j in range(latents.shape[1]):
            latent = latents[i, j]
            if latent < 0:
                continue
            place = _place(tokens, cells[i])
            random = hash_of(layout.seed, latent, place)
            slot = _random_slot(slots, layout, latent, start, layout.n_near, layout.seed, random)
            if slot >= 0:
                _fill(slots, layout, latent, slot, place, values[i, j], cells[i], tokens, firings)


@parallel()
def merge_into(totals, slots, other_totals, other_slots, layout):
    """Add another harvest's totals and examples to this one's."""
    for latent in prange(len(totals.count)):
        _merge_latent(np.int64(latent), totals, slots, other_totals, other_slots, layout)


@njit(cache=True)
def _merge_latent(latent, totals, slots, other_totals, other_slots, layout):
    near = layout.n_top + (SAMPLE_BINS + 1) * layout.per_bin
    if other_totals.max[latent] > totals.max[latent]:
        bin = bin_of(other_totals.max[latent])
        _raise_maximum(slots, layout, latent, totals.max[latent], bin)
        totals.max[latent] = other_totals.max[latent]
    totals.count[latent] += other_totals.count[latent]
    totals.sum[latent] += other_totals.sum[latent]
    totals.square[latent] += other_totals.square[latent]
    totals.histogram[latent] += other_totals.histogram[latent]
    for other in range(other_slots.place.shape[1]):
        place, value = other_slots.place[latent, other], other_slots.activation[latent, other]
        if place == EMPTY:
            continue
        if other < layout.n_top:
            slot = _top_slot(slots, layout, latent, value, place, other_slots.content[latent, other])
        else:
            group, size = near, layout.n_near
            if other < near:
                group, size = _group(layout, bin_of(value), bin_of(totals.max[latent])), layout.per_bin
            random = hash_of(layout.seed, latent, place)
            slot = _random_slot(slots, layout, latent, group, size, layout.seed, random)
        if slot >= 0:
            _copy(slots, latent, slot, other_slots, latent, other)
            if other < layout.n_top:
                _weakest_first(slots, layout, latent)


@njit(cache=True, inline="always")
def _place(tokens, cell):
    return tokens.first_place + ((cell // tokens.width) << 16) + cell % tokens.width


@njit(cache=True)
def window_of(tokens, cell, before, after):
    """The cells around one that are shown with it: of its context, and none of padding."""
    context = cell // tokens.width * tokens.width
    first, stop = max(context, cell - before), min(context + tokens.width, cell + after + 1)
    while first < cell and tokens.padding[first]:
        first += 1
    while stop > cell + 1 and tokens.padding[stop - 1]:
        stop -= 1
    return first, stop


@njit(cache=True, inline="always")
def _group(layout, bin, top_bin):
    """First slot of the sample that an activation belongs to: a ring of bins below the maximum, then the rest."""
    coarse = bin // COARSE
    ring = coarse % SAMPLE_BINS if coarse > top_bin // COARSE - SAMPLE_BINS else SAMPLE_BINS
    return layout.n_top + ring * layout.per_bin


@njit(cache=True)
def _raise_maximum(slots, layout, latent, old_maximum, new_bin):
    """Samples of bins that are now too far below the maximum join the rest."""
    if old_maximum <= 0:
        return
    old_top, new_top = bin_of(old_maximum) // COARSE, new_bin // COARSE
    rest = layout.n_top + SAMPLE_BINS * layout.per_bin
    for coarse in range(old_top - SAMPLE_BINS + 1, min(old_top, new_top - SAMPLE_BINS) + 1):
        group = layout.n_top + coarse % SAMPLE_BINS * layout.per_bin
        for slot in range(group, group + layout.per_bin):
            place = slots.place[latent, slot]
            if place == EMPTY:
                continue
            random = hash_of(layout.seed, latent, place)
            free = _random_slot(slots, layout, latent, rest, layout.per_bin, layout.seed, random)
            if free >= 0:
                _copy(slots, latent, free, slots, latent, slot)
            slots.place[latent, slot] = EMPTY


@njit(cache=True)
def _random_slot(slots, layout, latent, start, size, seed, random):
    """The slot of a sample that a new member may have: a free one, or that of the largest hash; -1 if none."""
    worst, worst_slot = random, -1
    for slot in range(start, start + size):
        place = slots.place[latent, slot]
        if place == EMPTY:
            return slot
        other = hash_of(seed, latent, place)
        if other > worst:
            worst, worst_slot = other, slot
    return worst_slot


@njit(cache=True)
def _top_slot(slots, layout, latent, value, place, content):
    """The slot of the strongest for a new place, one per text; -1 if none. In a full list slot 0 is weakest."""
    if slots.place[latent, 0] != EMPTY and not _stronger(
        value, place, slots.activation[latent, 0], slots.place[latent, 0]
    ):
        return -1
    free = 0
    for slot in range(layout.n_top):
        held = slots.place[latent, slot]
        if held == EMPTY:
            free = slot
        elif slots.content[latent, slot] == content:
            return slot if _stronger(value, place, slots.activation[latent, slot], held) else -1
    return free


@njit(cache=True)
def _weakest_first(slots, layout, latent):
    """Once a list of the strongest is full, its weakest stands in slot 0: what is weaker yet needs one comparison."""
    if slots.place[latent, 0] == EMPTY:
        return
    weakest = 0
    for slot in range(1, layout.n_top):
        if _stronger(
            slots.activation[latent, weakest],
            slots.place[latent, weakest],
            slots.activation[latent, slot],
            slots.place[latent, slot],
        ):
            weakest = slot
    if weakest:
        _swap(slots, latent, 0, weakest)


@njit(cache=True, inline="always")
def _stronger(value, place, other_value, other_place):
    return value > other_value or (value == other_value and place < other_place)


@njit(cache=True)
def _fill(slots, layout, latent, slot, place, value, cell, tokens, firings):
    """Write an example and its window into a slot."""
    slots.place[latent, slot] = place
    slots.document[latent, slot] = tokens.document[cell]
    slots.position[latent, slot] = tokens.position[cell]
    if slot < layout.n_top:
        slots.content[latent, slot] = tokens.content[cell]
    slots.activation[latent, slot] = value
    first, stop = window_of(tokens, cell, layout.before, layout.after)
    slots.start[latent, slot] = first % tokens.width
    slots.length[latent, slot] = stop - first
    for i in range(stop - first):
        slots.tokens[latent, slot, i] = tokens.tokens[first + i]
        slots.shades[latent, slot, i] = 0
    start, end = firings.starts[latent], firings.starts[latent + 1]
    near = start + np.searchsorted(firings.cells[start:end], first)
    scale = np.float32(0)
    e = near
    while e < end and firings.cells[e] < stop:
        scale = max(scale, firings.values[e])
        e += 1
    slots.scale[latent, slot] = scale
    e = near
    while e < end and firings.cells[e] < stop:
        slots.shades[latent, slot, firings.cells[e] - first] = max(1, round(firings.values[e] / scale * 255))
        e += 1


@njit(cache=True)
def _copy(slots, latent, slot, source, source_latent, source_slot):
    slots.place[latent, slot] = source.place[source_latent, source_slot]
    slots.document[latent, slot] = source.document[source_latent, source_slot]
    slots.position[latent, slot] = source.position[source_latent, source_slot]
    if slot < source.content.shape[1] and source_slot < source.content.shape[1]:
        slots.content[latent, slot] = source.content[source_latent, source_slot]
    slots.start[latent, slot] = source.start[source_latent, source_slot]
    slots.length[latent, slot] = source.length[source_latent, source_slot]
    slots.activation[latent, slot] = source.activation[source_latent, source_slot]
    slots.scale[latent, slot] = source.scale[source_latent, source_slot]
    for i in range(slots.tokens.shape[2]):  # to assign a slice takes seconds to compile
        slots.tokens[latent, slot, i] = source.tokens[source_latent, source_slot, i]
        slots.shades[latent, slot, i] = source.shades[source_latent, source_slot, i]


@njit(cache=True)
def _swap(slots, latent, a, b):
    _exchange(slots.place, latent, a, b)
    _exchange(slots.document, latent, a, b)
    _exchange(slots.position, latent, a, b)
    _exchange(slots.content, latent, a, b)
    _exchange(slots.activation, latent, a, b)
    _exchange(slots.scale, latent, a, b)
    _exchange(slots.start, latent, a, b)
    _exchange(slots.length, latent, a, b)
    for i in range(slots.tokens.shape[2]):
        tokens, shades = slots.tokens[latent], slots.shades[latent]
        tokens[a, i], tokens[b, i] = tokens[b, i], tokens[a, i]
        shades[a, i], shades[b, i] = shades[b, i], shades[a, i]


@njit(cache=True, inline="always")
def _exchange(column, latent, a, b):
    column[latent, a], column[latent, b] = column[latent, b], column[latent, a]


@njit(cache=True)
def strongest(offsets, indices, values, rows, out):
    """The strongest latents of some rows, as many as `out` (rows, m) has places; what stays over keeps its filling."""
    for i in range(len(rows)):
        start, stop = offsets[rows[i]], offsets[rows[i] + 1]
        n = 0
        for e in largest_first(values[start:stop], np.arange(stop - start), out.shape[1]):
            if values[start + e] > 0:
                out[i, n] = indices[start + e]
                n += 1
