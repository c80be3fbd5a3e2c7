# pyright: basic
"""Enrichment of token sets in rankings of the vocabulary: signed running-sum scores, their exact null, corrected p.

A ranking walks through all V tokens from the first to the last. Of a set of n tokens the running sum goes up by 1/n at
each of its own and down by 1/(V - n) at each other; the score is the value of the sum that lies furthest from 0, with
its sign: 1 where all of the set stand first, -1 where all stand last. This is the signed, unweighted statistic of
Kolmogorov and Smirnov for two samples, so the score of a random set has one known distribution for each n and V: it is
counted here, which is what infinitely many permutations would give.

Source: Subramanian et al., Gene set enrichment analysis, 2005 (unweighted); Hodges, The significance probability of the
Smirnov two-sample test, 1958.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import prange

from monosem.kernels.parallel import parallel

MOST_KNOTS = 64
"""Exact p values of a set's scores: of all of them if they are no more than this, else of so many points between."""
FURTHEST = 6.5
"""Up to this many 1/sqrt(n V'/(n + V')), where p is below 1e-36, stand the points."""


class Sets(NamedTuple):
    """Sets of tokens, by token."""

    starts: np.ndarray
    """(tokens + 1,) where the sets of each token begin in `members`."""
    members: np.ndarray
    """Numbers of sets."""
    sizes: np.ndarray
    """(sets,) tokens of each."""


def sets_of(tokens: list[np.ndarray], n_tokens: int) -> Sets:
    """Sets from the numbers of their tokens, each 0 to n_tokens - 1 and only once in a set."""
    sizes = np.array([len(each) for each in tokens], np.int64)
    places = np.concatenate([*tokens, np.zeros(0, np.int64)]).astype(np.int64)
    order = np.argsort(places, kind="stable")
    members = np.repeat(np.arange(len(tokens)), sizes)[order].astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(np.bincount(places, minlength=n_tokens))])
    return Sets(starts, members, sizes)


def scores(values: np.ndarray, order: np.ndarray, sets: Sets) -> np.ndarray:
    """The signed score of every set in every ranking, (rankings, sets).

    Args:
        values: (rankings, tokens) float, descending; equal ones count as one step of the walk.
        order: (rankings, tokens) the tokens in this order.
        sets: the sets, none of them empty or all of the tokens.
    """
    return _scores(np.ascontiguousarray(values), np.ascontiguousarray(order), *sets)


@parallel()
def _scores(values, order, starts, members, sizes):
    n_rankings, n_tokens = order.shape
    found = np.empty((n_rankings, len(sizes)), np.float32)
    for r in prange(n_rankings):
        highest, lowest = np.zeros(len(sizes)), np.zeros(len(sizes))
        counts, seen = np.zeros(len(sizes), np.int64), np.full(len(sizes), -1, np.int64)
        place = 0
        while place < n_tokens:
            stop = place + 1
            while stop < n_tokens and values[r, stop] == values[r, place]:
                stop += 1
            for i in range(place, stop):
                token = order[r, i]
                for e in range(starts[token], starts[token + 1]):
                    s = members[e]
                    if seen[s] != place:  # the sum before a step that has some of the set
                        seen[s] = place
                        misses = (place - counts[s]) / (n_tokens - sizes[s])
                        lowest[s] = min(lowest[s], counts[s] / sizes[s] - misses)
                    counts[s] += 1
            for i in range(place, stop):
                token = order[r, i]
                for e in range(starts[token], starts[token + 1]):
                    s = members[e]
                    misses = (stop - counts[s]) / (n_tokens - sizes[s])
                    highest[s] = max(highest[s], counts[s] / sizes[s] - misses)
            place = stop
        for s in range(len(sizes)):
            found[r, s] = highest[s] if highest[s] >= -lowest[s] else lowest[s]
    return found


def exact_p(found: np.ndarray, sizes: np.ndarray, n_tokens: int) -> np.ndarray:
    """How often a random set of the same size scores as far from 0, (rankings, sets).

    Exact where a size has at most `MOST_KNOTS` different scores; else exact at so many points, and between them
    interpolated, to a few per cent of p.
    """
    p = np.empty(found.shape)
    for n in np.unique(sizes):
        columns = sizes == n
        far = np.abs(found[:, columns]).astype(float)
        knots = np.unique(far)
        if len(knots) > MOST_KNOTS:
            knots = _knots(int(n), n_tokens - int(n))
        scale = 2 * n * (n_tokens - n) / n_tokens  # in the limit p is 2 exp(-scale d^2): what is left varies little
        tails = _tails(int(n), n_tokens - int(n), knots)
        knots, tails = knots[tails > 0], tails[tails > 0]
        rest = np.log(tails) + scale * knots**2
        p[:, columns] = np.exp(np.minimum(0, np.interp(far, knots, rest) - scale * far**2))
    return p


def _knots(n: int, m: int) -> np.ndarray:
    """Points between which log p + scale d^2 is nearly straight: dense where p is near 1, and where d is near 1."""
    unit = np.sqrt((n + m) / (n * m))
    bulk = unit * np.r_[np.arange(0, 1.6, 0.1), np.arange(1.6, FURTHEST, 0.3)]
    near_one = 1 - 2.0 ** -np.arange(0, np.log2(n * m), 0.25) if min(n, m) < FURTHEST**2 else []
    return np.unique(np.r_[bulk[bulk < 1], near_one, 1.0])


@parallel()
def _tails(n, m, distances):
    """Of each distance d, the share of the ways through a lattice of n and m steps that leave |i/n - j/m| < d.

    The share that has left at (i, j) is the mean of those at the two points before, by how many ways come from each:
    only positive numbers are added, so that the smallest p is right to the last digits.
    """
    if n > m:
        n, m = m, n
    found = np.ones(len(distances))
    for k in prange(len(distances)):
        far = distances[k] - 1e-7  # scores are in single precision
        if far * n * m <= 1:
            continue  # every way is so far from the start
        left = np.ones(m + 1)
        left[: int(np.ceil(m * far))] = 0.0  # with none of the n steps done
        for i in range(1, n + 1):
            first = max(0, int(np.floor(m * (i / n - far))) + 1)
            last = min(m, int(np.ceil(m * (i / n + far))) - 1)
            beside = 1.0
            for j in range(first, last + 1):
                share = i / (i + j)
                beside = share * left[j] + (1 - share) * beside
                left[j] = beside
            if first > last:
                left[m] = 1.0
                break
        found[k] = left[m]
    return found


def corrected(p: np.ndarray) -> np.ndarray:
    """Of p values of any shape, the least false discovery rate at which each is called (Benjamini-Hochberg, 1995)."""
    flat = p.ravel()
    order = np.argsort(flat, kind="stable")
    q = flat[order] * len(flat) / np.arange(1, len(flat) + 1)
    result = np.empty(len(flat))
    result[order] = np.minimum(1, np.minimum.accumulate(q[::-1])[::-1])
    return result.reshape(p.shape)
