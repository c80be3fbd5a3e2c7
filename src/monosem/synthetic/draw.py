# pyright: basic, reportAttributeAccessIssue=false
"""Rows of planted activations, drawn by compiled code.

Row r of seed s comes from a stream of random numbers of its own, so it is the same row in whatever batch, in whatever
order and by however many threads it is drawn. Children are drawn only where their parent fires.
"""

import math

import numpy as np
from numba import njit, prange

import monosem.kernels.cpu  # noqa: F401  (the threading layer is chosen there)
from monosem.kernels.parallel import parallel

BLOCK = 16  # rows that a thread draws at a time
LOW, BINS, WIDTH = -9.0, 4608, 1 / 256  # a table of upper tails: most features are seen to be off without computing one
UPPER = np.array([0.5 * math.erfc((LOW + i * WIDTH) / math.sqrt(2)) for i in range(BINS)])
UPPER[0] = 1.0


@njit(cache=True, inline="always")
def _mixed(word):
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


@njit(cache=True, inline="always")
def _uniform(state):
    """The next number of the stream (splitmix64), above 0 and at most 1."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    return (np.float64(_mixed(state[0]) >> np.uint64(11)) + 1.0) * 2.0**-53


@njit(cache=True, inline="always")
def _normal(state):
    return math.sqrt(-2 * math.log(_uniform(state))) * math.cos(2 * math.pi * _uniform(state))


@njit(cache=True, inline="always")
def _above(limit, uniform, upper):
    """Whether a normal variable, of which uniform is the upper tail, is above the limit."""
    place = int((limit - LOW) / WIDTH)
    place = min(max(place, 0), BINS - 1)
    return uniform <= upper[place] and uniform <= 0.5 * math.erfc(limit / math.sqrt(2))


@parallel(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def draw(
    seed, first, x, counts, indices, values, alone, by_rank, factor, own, limits, children, exclusive, scaled, size,
    deviation, features, mean, upper,
):  # fmt: skip
    """Fill x, and of each row how many features are on, which, and how strongly.

    alone: features that have no parent; by_rank: their factor / own, (rank, alone); children: (n, 2) the first of a
    feature's children and how many; size: mean magnitude; deviation: its standard deviation.
    """
    rows, rank = len(x), factor.shape[1]
    for block in prange((rows + BLOCK - 1) // BLOCK):
        state = np.empty(1, np.uint64)
        z = np.empty(rank, np.float32)
        threshold = np.empty(len(alone), np.float32)
        for row in range(block * BLOCK, min((block + 1) * BLOCK, rows)):
            state[0] = _mixed(np.uint64(seed) + _mixed(np.uint64(first + row) + np.uint64(0x632BE59BD9B4E019)))
            for r in range(rank):
                z[r] = _normal(state)
            for i in range(len(alone)):
                threshold[i] = limits[alone[i]]
            for r in range(rank):
                for i in range(len(alone)):
                    threshold[i] -= z[r] * by_rank[r, i]
            on = 0
            for i in range(len(alone)):
                if _above(threshold[i], _uniform(state), upper):
                    feature = alone[i]
                    value = size[feature] + deviation[feature] * _normal(state)
                    if value > 0:
                        indices[row, on] = feature
                        values[row, on] = value
                        on += 1
            head = 0
            while head < on:  # what fires is looked at for children, which are added at the end
                parent = indices[row, head]
                factor_of_parent = values[row, head] / size[parent] if scaled else 1.0
                drawn = 0
                for child in range(children[parent, 0], children[parent, 0] + children[parent, 1]):
                    shared = np.float32(0)
                    for r in range(rank):
                        shared += z[r] * factor[child, r]
                    if not _above(limits[child] - shared / own[child], _uniform(state), upper):
                        continue
                    value = size[child] + deviation[child] * _normal(state)
                    if value <= 0:
                        continue
                    drawn += 1
                    if exclusive and drawn > 1:  # of several, each is as likely to be the one
                        if _uniform(state) * drawn <= 1:
                            indices[row, on - 1] = child
                            values[row, on - 1] = value * factor_of_parent
                        continue
                    indices[row, on] = child
                    values[row, on] = value * factor_of_parent
                    on += 1
                head += 1
            counts[row] = on
            for k in range(x.shape[1]):
                x[row, k] = mean[k]
            for j in range(on):
                for k in range(x.shape[1]):
                    x[row, k] += values[row, j] * features[indices[row, j], k]


@njit(cache=True, nogil=True)
def pack(counts, indices, values):
    """The first `counts` entries of every row, one after another."""
    total = counts.sum()
    packed_indices, packed_values = np.empty(total, np.int32), np.empty(total, np.float32)
    place = 0
    for row in range(len(counts)):
        for j in range(counts[row]):
            packed_indices[place + j] = indices[row, j]
            packed_values[place + j] = values[row, j]
        place += counts[row]
    return packed_indices, packed_values
