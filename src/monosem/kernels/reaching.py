# pyright: basic, reportCallIssue=false
"""The loops of screens on CPU, compiled by numba: a row's edge, and which entries reach it.

A row's entries are looked at in groups, `n_groups` of them, whose entries are so many apart.
"""

import numpy as np
from numba import njit, prange

from monosem.kernels.parallel import parallel

AT_ONCE = 16
"""Groups that are passed by together, where none of them reaches the edge."""
BLOCK = 32
"""Entries that are passed by together, where none of them exceeds its limit."""


@njit(inline="always")
def _wide(value, half):
    """A number of a matmul's output."""
    if half:
        return np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return np.float32(value)


@njit(inline="always")
def _bound(product, bias, row_error, row_norm, norm, error, own):
    """How far an entry may be from what a screen says."""
    return row_error * norm + row_norm * error + own * abs(product) + np.float32(2.4e-7) * abs(bias)


@njit(cache=True, fastmath={"reassoc"})
def _n_from(keys, edge):
    """How many are at least so large; as floats, sixteen at a time."""
    found = np.float32(0)
    for i in range(keys.shape[0]):
        found += np.float32(1) if keys[i] >= edge else np.float32(0)
    return int(found)


@njit(cache=True)
def nth_largest(values, count):
    """Bit by bit from the top, of numbers as integers of the same order, until so many are left above."""
    keys = values.view(np.int32).copy()
    for i in range(keys.shape[0]):
        keys[i] ^= (keys[i] >> 31) & 0x7FFFFFFF
    edge = -(1 << 31)
    for bit in range(31, -1, -1):
        higher = np.int32(edge + (1 << bit))
        found = _n_from(keys, higher)
        if found >= count:
            edge = higher
        if found == count:
            break
    least = np.float32(np.inf)
    for i in range(keys.shape[0]):
        if keys[i] >= edge:
            least = min(least, values[i])
    return least


@parallel()
def gathered(places, counts, starts, out):
    for r in prange(places.shape[0]):
        out[starts[r] : starts[r] + counts[r]] = places[r, : counts[r]]


@njit(inline="always")
def _larger(a, b):
    return a if a > b else b


@njit(cache=True)
def _group_peaks(row, scale, latent_scales, biases, tops):
    """The largest of every group. A row is read at four places at once: memory is slow to begin, not to go on."""
    n, n_groups, half = row.shape[0], tops.shape[0], row.itemsize == 2
    tops[:] = -np.inf
    quarter = n // n_groups // 4 * n_groups
    for start in range(0, quarter, n_groups):
        a, b, c, d = start, start + quarter, start + 2 * quarter, start + 3 * quarter
        row_a, row_b, row_c, row_d = (
            row[a : a + n_groups],
            row[b : b + n_groups],
            row[c : c + n_groups],
            row[d : d + n_groups],
        )
        s_a, s_b, s_c, s_d = latent_scales[a:], latent_scales[b:], latent_scales[c:], latent_scales[d:]
        b_a, b_b, b_c, b_d = biases[a:], biases[b:], biases[c:], biases[d:]
        for i in range(n_groups):
            first = _larger(
                _wide(row_a[i], half) * (scale * s_a[i]) + b_a[i], _wide(row_b[i], half) * (scale * s_b[i]) + b_b[i]
            )
            second = _larger(
                _wide(row_c[i], half) * (scale * s_c[i]) + b_c[i], _wide(row_d[i], half) * (scale * s_d[i]) + b_d[i]
            )
            tops[i] = _larger(_larger(first, second), tops[i])
    for start in range(4 * quarter, n, n_groups):
        size = min(n_groups, n - start)
        part, scales, beside = row[start : start + size], latent_scales[start:], biases[start:]
        for i in range(size):
            tops[i] = _larger(_wide(part[i], half) * (scale * scales[i]) + beside[i], tops[i])


@njit(cache=True)
def _row_peaks(row, scale, row_error, row_norm, latent_scales, biases, norms, errors, own, count, tops, firsts):
    """The largest of every group, and the entries of the first groups; returns the `count`-th largest of the groups.

    Where entries are asked for, the edge that is returned is the smallest that one of them can be.
    """
    n, n_groups, half = row.shape[0], tops.shape[0], row.itemsize == 2
    _group_peaks(row, scale, latent_scales, biases, tops)
    edge = nth_largest(tops, count)
    sure, filled = edge, 0
    for g in range(n_groups):
        if filled < firsts.shape[0] and tops[g] >= edge:
            best, at = np.float32(-np.inf), g
            for i in range(g, n, n_groups):
                value = _wide(row[i], half) * (scale * latent_scales[i]) + biases[i]
                if value > best:
                    best, at = value, i
            firsts[filled] = at
            filled += 1
            product = _wide(row[at], half) * (scale * latent_scales[at])
            bound = _bound(product, biases[at], row_error, row_norm, norms[at], errors[at], own)
            sure = min(sure, product + biases[at] - bound)
    return sure


@njit(cache=True)
def _row_reach(
    row,
    scale,
    row_error,
    row_norm,
    latent_scales,
    biases,
    norms,
    errors,
    own,
    group_biases,
    group_norms,
    group_errors,
    tops,
    edge,
    beside,
    places,
    rough,
):
    """The entries that can reach a row's edge: a group's peak and largest error tell if any can. Returns how many.

    Where it is rough nothing is said to be in error. Of `tops` nothing is left.
    """
    n, n_groups, width, half = row.shape[0], tops.shape[0], places.shape[0], row.itemsize == 2
    for g in range(0 if rough else n_groups):
        size = abs(tops[g]) + group_biases[g]
        bound = _bound(size, group_biases[g], row_error, row_norm, group_norms[g], group_errors[g], own)
        tops[g] += np.float32(1.0001) * bound
    filled = 0
    for first in range(0, n_groups, AT_ONCE):
        some = tops[first : first + AT_ONCE]
        below = np.uint8(1)  # numbers, not truths: the loop is compiled to few steps then
        for g in range(some.shape[0]):
            below &= np.uint8(some[g] < edge)
        if below:
            continue
        for g in range(first, first + some.shape[0]):
            if tops[g] < edge:
                continue
            for i in range(g, n, n_groups):
                product = _wide(row[i], half) * (scale * latent_scales[i])
                reaches = product + biases[i] >= edge
                if not reaches and not rough:
                    bound = _bound(product, biases[i], row_error, row_norm, norms[i], errors[i], own)
                    reaches = product + biases[i] + bound >= edge
                if reaches:
                    known = False
                    for f in range(beside.shape[0]):
                        known |= beside[f] == i
                    if not known:
                        if filled < width:
                            places[filled] = i
                        filled += 1
    return filled


@parallel()
def peaks(products, scales, row_errors, row_norms, latents, own, count, tops, edges, firsts):
    for r in prange(products.shape[0]):
        given = (products[r], scales[r], row_errors[r], row_norms[r], *latents, own)
        edges[r] = _row_peaks(*given, count, tops[r], firsts[r])


@parallel()
def reach(products, scales, row_errors, row_norms, latents, own, groups, tops, edges, beside, places, counts, rough):
    """The entries beside those that are known."""
    for r in prange(products.shape[0]):
        given = (products[r], scales[r], row_errors[r], row_norms[r], *latents, own)
        counts[r] = _row_reach(*given, *groups, tops[r], edges[r], beside[r], places[r], rough)


@parallel()
def peaks_and_reach(
    products, scales, row_errors, row_norms, latents, own, groups, count, tops, edges, firsts, places, counts, rough
):
    """Both, while a row is in the cache: what a screen says of the first entries is edge enough."""
    nothing = firsts[0, :0]
    for r in prange(products.shape[0]):
        given = (products[r], scales[r], row_errors[r], row_norms[r], *latents, own)
        edges[r] = _row_peaks(*given, count, tops[r], firsts[r])
        counts[r] = _row_reach(*given, *groups, tops[r], edges[r], nothing, places[r], rough)


@parallel()
def reach_limits(products, scales, row_errors, row_norms, latents, own, blocks, limits, places, counts):
    """The entries that can exceed their latent's limit, and how many there are: those beyond `places` are not kept.

    A block's largest errors tell if any of it can.
    """
    latent_scales, biases, norms, errors = latents
    block_biases, block_norms, block_errors = blocks
    half, n, width = products.itemsize == 2, products.shape[1], places.shape[1]
    for r in prange(products.shape[0]):
        row, scale, row_error, row_norm = products[r], scales[r], row_errors[r], row_norms[r]
        filled = 0
        for block in range(block_biases.shape[0]):
            start, stop = block * BLOCK, min((block + 1) * BLOCK, n)
            rest = _bound(
                np.float32(0), block_biases[block], row_error, row_norm, block_norms[block], block_errors[block], own
            )
            rest *= np.float32(1.0001)
            few, few_scales, few_biases = row[start:stop], latent_scales[start:stop], biases[start:stop]
            few_limits, below = limits[start:stop], np.uint8(1)
            for i in range(few.shape[0]):
                product = _wide(few[i], half) * (scale * few_scales[i])
                below &= np.uint8(product + few_biases[i] + own * abs(product) + rest <= few_limits[i])
            if below:
                continue
            for i in range(start, stop):
                product = _wide(row[i], half) * (scale * latent_scales[i])
                bound = _bound(product, biases[i], row_error, row_norm, norms[i], errors[i], own)
                if not product + biases[i] + bound <= limits[i]:
                    if filled < width:
                        places[r, filled] = i
                    filled += 1
        counts[r] = filled


@parallel()
def best(known, known_places, values, indices, offsets, largest, places):
    """In falling order, of equal ones those of the first latents."""
    k, n_known = largest.shape[1], known.shape[1]
    for r in prange(largest.shape[0]):
        held, which, filled, first = largest[r], places[r], 0, offsets[r] - n_known
        for e in range(first, offsets[r + 1]):
            if e < offsets[r]:
                value, index = known[r, e - first], known_places[r, e - first]
            else:
                value, index = values[e], indices[e]
            if filled == k and (value < held[k - 1] or (value == held[k - 1] and index > which[k - 1])):
                continue
            at = filled if filled < k else k - 1
            filled = min(filled + 1, k)
            while at > 0 and (value > held[at - 1] or (value == held[at - 1] and index < which[at - 1])):
                held[at], which[at] = held[at - 1], which[at - 1]
                at -= 1
            held[at], which[at] = value, index
