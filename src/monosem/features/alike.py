# pyright: basic, reportAttributeAccessIssue=false
"""Which of the strongest places are shown: one of every passage, where documents share passages."""

from __future__ import annotations

import numpy as np
from numba import njit, prange

from monosem.features.state import Harvest
from monosem.features.streaming import EMPTY
from monosem.kernels.parallel import parallel

ALIKE = 0.75
"""Share of equal tokens from which two windows, laid side by side, are alike."""
RUN = 0.5
"""Share of a window from which it is alike another if a run of tokens around the peak is the same in both."""
LEAST = 8
"""Tokens that windows must have side by side: of fewer nothing is said."""


def shown(harvest: Harvest, of_text: bool = True) -> np.ndarray:
    """(n_latents, held) of the strongest places those that are shown: at most `settings.top`, strongest first taken.

    A place is left out if its window is alike that of a stronger one that is shown: side by side from their peaks, or
    from their beginnings, or where they stand in one context, three quarters of their tokens are the same, or half of
    them in one run that has the peak in it. It depends on what is held alone, so that it is the same however a harvest
    came to be. Only tokens of text say so.
    """
    slots, n = harvest.slots, harvest.layout.n_top
    place, activation = slots.place[:, :n], slots.activation[:, :n]
    order = np.lexsort((place, -activation, place == EMPTY))
    chosen = np.zeros(place.shape, np.bool_)
    windows = (place, slots.start[:, :n].astype(np.int64), slots.length[:, :n].astype(np.int64), slots.tokens[:, :n])
    _choose(order, *windows, harvest.settings.top, of_text, chosen)
    return chosen


@parallel()
def _choose(order, place, start, length, tokens, top, of_text, chosen):
    for latent in prange(len(order)):
        n = 0
        for slot in order[latent]:
            if n == top or place[latent, slot] == EMPTY:
                break
            new = True
            for other in range(len(order[latent])):
                if new and of_text and chosen[latent, other]:
                    new = not _alike(place[latent], start[latent], length[latent], tokens[latent], slot, other)
            if new:
                chosen[latent, slot] = True
                n += 1


@njit(cache=True)
def _alike(place, start, length, tokens, a, b):
    shorter = max(LEAST, min(length[a], length[b]))
    peaks = (place[b] & 0xFFFF) - start[b] - ((place[a] & 0xFFFF) - start[a])
    same, beside = _same(tokens[a], length[a], tokens[b], length[b], peaks)
    if beside >= LEAST and same >= ALIKE * beside:
        return True
    if _run(tokens[a], length[a], tokens[b], length[b], (place[a] & 0xFFFF) - start[a], peaks) >= RUN * shorter:
        return True
    if _same(tokens[a], length[a], tokens[b], length[b], 0)[0] >= ALIKE * shorter:
        return True
    if place[a] >> 16 != place[b] >> 16:
        return False
    return _same(tokens[a], length[a], tokens[b], length[b], start[a] - start[b])[0] >= ALIKE * shorter


@njit(cache=True)
def _same(a, length_a, b, length_b, shift):
    """Tokens of a that are those of b so many places on, and tokens that stand beside one of b."""
    first, stop = max(0, -shift), min(length_a, length_b - shift)
    same = 0
    for i in range(first, stop):
        same += a[i] == b[i + shift]
    return same, max(0, stop - first)


@njit(cache=True)
def _run(a, length_a, b, length_b, peak, shift):
    """How many tokens around the peak of a are those of b so many places on, without a gap."""
    first = peak
    while first >= 0 and first + shift >= 0 and a[first] == b[first + shift]:
        first -= 1
    stop = peak
    while stop < length_a and stop + shift < length_b and a[stop] == b[stop + shift]:
        stop += 1
    return max(0, stop - first - 1)
