# pyright: basic, reportAttributeAccessIssue=false
"""Random orders that are computed, not stored: a permutation of any size whose every place is known by itself."""

from __future__ import annotations

import hashlib

import numpy as np
from numba import njit

ROUNDS = 6


def shuffled(first: int, stop: int, n: int, *key: int) -> np.ndarray:
    """(stop - first,) where places first to stop of 0 ... n - 1 go in a random order, which the key decides.

    A Feistel network of 6 rounds on the smallest power of four that holds n; what falls outside goes through it again
    (Black and Rogaway, Ciphers with arbitrary finite domains, 2002).

    Args:
        first: the first place.
        stop: the place after the last.
        n: places in all.
        key: integers.
    """
    if not 0 <= first <= stop <= n:
        raise IndexError(f"{first} to {stop} are not places of {n}")
    half = 1
    while 4**half < n:
        half += 1
    digest = hashlib.sha256(" ".join(map(str, (n, *key))).encode()).digest()
    return _shuffled(first, stop, n, np.uint64(half), np.uint64(int.from_bytes(digest[:8], "little")))


@njit(cache=True, nogil=True)
def _shuffled(first, stop, n, half, key):
    found = np.empty(stop - first, np.int64)
    for i in range(first, stop):
        place = np.uint64(i)
        while True:
            place = _through(place, half, key)
            if place < np.uint64(n):
                break
        found[i - first] = np.int64(place)
    return found


@njit(cache=True, inline="always")
def _through(place, half, key):
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = place >> half, place & mask
    for turn in range(ROUNDS):
        z = right + key + np.uint64(turn + 1) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ ((z ^ (z >> np.uint64(31))) & mask)
    return (left << half) | right
