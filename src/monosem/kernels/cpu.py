# pyright: basic, reportAttributeAccessIssue=false
"""The kernels for CPU: matmuls by torch in tiles that stay in cache, everything else compiled by numba.

Signatures are those of plain.py. Every output row is written by one thread, in a fixed order: the same input gives the
same bits, whatever the number of threads.
"""

import numpy as np
import torch
from numba import njit, prange
from torch import Tensor

from monosem.kernels import screening
from monosem.kernels.buffers import empty
from monosem.kernels.matmul import linear
from monosem.kernels.parallel import parallel
from monosem.kernels.plain import only_above
from monosem.kernels.rounding import Precision
from monosem.kernels.screening import Screen

TILE_ROWS = 256
BLOCK_ROWS = 256  # so many rows of activations stay in a core's own cache
ENTRIES_PER_BLOCK = 8  # a latent's mean entries in a block that make a pass over all latents worth while
FAST = {"reassoc", "contract", "nsz"}
GROUP = 16  # a row's maxima are first taken over this many entries, a stride apart


def top_k(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    rows = x.shape[0]
    values = torch.empty(rows, k, dtype=x.dtype)
    indices = torch.empty(rows, k, dtype=torch.int32)
    for start in range(0, rows, TILE_ROWS):
        stop = min(start + TILE_ROWS, rows)
        pre = linear(x[start:stop], weight, bias)
        _select(pre, values[start:stop], indices[start:stop])
    return values, indices


def _select(pre: Tensor, values: Tensor, indices: Tensor) -> None:
    """Write the largest of every row."""
    if pre.shape[1] < 2 * GROUP * values.shape[1]:  # too large a share for groups to help
        bits = pre.view(torch.int32 if pre.dtype == torch.float32 else torch.int64)
        _top_k_rows_by_bits(pre.numpy(), bits.numpy(), values.numpy(), indices.numpy())
    else:
        _top_k_rows(pre.numpy(), values.numpy(), indices.numpy())


def top_k_screened(
    x: Tensor, weight: Tensor, bias: Tensor, k: int, precision: Precision, exact: bool
) -> tuple[Tensor, Tensor]:
    def evaluated(rows: Tensor, indices: Tensor) -> Tensor:
        offsets = torch.arange(len(rows) + 1) * indices.shape[1]
        products = gather_dot(rows, weight, indices.reshape(-1), offsets).reshape(indices.shape)
        return products.add_(bias[indices])

    screen = Screen.of(weight, bias, precision, x)
    candidates = screening.largest(x, screen, k, evaluated if exact else None)
    screen.done()
    values = gather_dot(x, weight, candidates.others, candidates.offsets).add_(bias[candidates.others])
    best, places = screening.best(candidates, values, k)
    unsure = candidates.unsure
    if unsure.any():
        whole = top_k(x[unsure], weight, bias, k)[1]
        order = (found := evaluated(x[unsure], whole)).argsort(dim=1, descending=True, stable=True)
        best[unsure], places[unsure] = found.gather(1, order), whole.gather(1, order)
    return best, places


def above_screened(
    x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor, precision: Precision
) -> tuple[Tensor, Tensor, Tensor]:
    limits = threshold.detach().expand(len(weight)).contiguous()
    screen = Screen.of(weight, bias, precision, x)
    indices, offsets = screening.above(x, screen, limits)
    screen.done()
    values = gather_dot(x, weight, indices, offsets).add_(bias[indices])
    return only_above(values, indices, offsets, limits[indices])


def above(x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, n = x.shape[0], weight.shape[0]
    limits = threshold.to(x.dtype).expand(n).contiguous().numpy()
    counts = torch.zeros(rows + 1, dtype=torch.int64)
    values: list[Tensor] = []
    indices: list[Tensor] = []
    for start in range(0, rows, TILE_ROWS):
        stop = min(start + TILE_ROWS, rows)
        pre = linear(x[start:stop], weight, bias)
        tile_counts = counts[start + 1 : stop + 1].numpy()
        _count_above(pre.numpy(), limits, tile_counts)
        ends = np.cumsum(tile_counts)
        tile_values = torch.empty(int(ends[-1]), dtype=x.dtype)
        tile_indices = torch.empty(int(ends[-1]), dtype=torch.int32)
        starts = ends - tile_counts
        _write_above(pre.numpy(), limits, starts, tile_values.numpy(), tile_indices.numpy())
        values.append(tile_values)
        indices.append(tile_indices)
    if not values:
        return torch.zeros(0, dtype=x.dtype), torch.zeros(0, dtype=torch.int32), counts
    return torch.cat(values), torch.cat(indices), counts.cumsum(0)


def gather_dot(x: Tensor, weight: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    order, starts, rows = by_latent(indices, offsets, weight.shape[0])
    dots, out = torch.empty(2, indices.numel(), dtype=x.dtype)
    arrays = (_array(x), _array(weight), order.numpy(), starts.numpy(), rows.numpy(), dots.numpy(), out.numpy())
    _gather_dot(*arrays, torch.get_num_threads())
    return out


def weighted_sum(values: Tensor, indices: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty(offsets.numel() - 1, weight.shape[1], dtype=weight.dtype)
    _weighted_sum(_array(values), indices.numpy(), offsets.numpy(), _array(weight), out.numpy())
    return out


def decode_error(
    values: Tensor, indices: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    error = torch.empty(target.shape, dtype=weight.dtype)
    dots = torch.empty(indices.numel(), dtype=weight.dtype)
    arrays = (_array(values), indices.numpy(), offsets.numpy(), _array(weight), _array(bias), _array(target))
    _decode_error(*arrays, error.numpy(), dots.numpy())
    return error, dots


def scatter_outer(values: Tensor, order: Tensor, starts: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    out = empty(starts.shape[1] - 1, y.shape[1], dtype=y.dtype)
    arrays = (_array(values.index_select(0, order)), starts.numpy(), rows.numpy(), _array(y), out.numpy())
    _scatter_outer(*arrays, 0, False, torch.get_num_threads())
    return out


def scatter_outer_of_all(every: list[list[Tensor]], latents: slice) -> Tensor:
    """As `scatter_outer`, of some latents, over the rows of several: each one's values in order, starts, rows and y."""
    y = every[0][-1]
    out = empty(latents.stop - latents.start, y.shape[1], dtype=y.dtype)
    for number, parts in enumerate(every):
        values, starts, rows, source = (_array(part) for part in parts)
        _scatter_outer(values, starts, rows, source, out.numpy(), latents.start, number > 0, torch.get_num_threads())
    return out


def by_latent(indices: Tensor, offsets: Tensor, n_latents: int) -> tuple[Tensor, Tensor, Tensor]:
    """The entries by block of rows, and within it by latent.

    Returns the entries' numbers in that order, where each latent's begin in each block (blocks, n_latents + 1), and
    their rows in that order. Blocks are as small as pays: their rows stay in a core's cache while all latents pass by.
    """
    n_rows, n_entries = offsets.numel() - 1, indices.numel()
    per_row = max(1, n_entries // max(1, n_rows))
    block = max(BLOCK_ROWS, ENTRIES_PER_BLOCK * n_latents // per_row)
    order = torch.empty(n_entries, dtype=torch.int32)
    rows = torch.empty(n_entries, dtype=torch.int32)
    starts = torch.zeros(max(1, -(-n_rows // block)), n_latents + 1, dtype=torch.int64)
    _by_latent(indices.numpy(), offsets.numpy(), block, starts.numpy(), order.numpy(), rows.numpy())
    return order, starts, rows


def to_dense(values: Tensor, indices: Tensor, offsets: Tensor, n_latents: int) -> Tensor:
    dense = torch.zeros(offsets.numel() - 1, n_latents, dtype=values.dtype)
    _to_dense(_array(values), indices.numpy(), offsets.numpy(), dense.numpy())
    return dense


def from_dense(dense: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    values = torch.empty(indices.numel(), dtype=dense.dtype)
    _from_dense(_array(dense), indices.numpy(), offsets.numpy(), values.numpy())
    return values


def adam_(
    parameter: Tensor, grad: Tensor, mean: Tensor, square: Tensor, settings: tuple[float, ...], unit_rows: bool
) -> None:
    arrays = [t.detach().numpy() for t in (parameter, grad.contiguous(), mean, square)]
    if parameter.ndim == 1:
        arrays = [a.reshape(-1, 1) for a in arrays]
    rows, grads, means, squares = arrays
    lr, beta1, beta2, eps, correction1, correction2 = settings
    numbers = (lr / correction1, 1 / correction2, beta1, 1 - beta1, beta2, 1 - beta2, eps, 0, 1)
    _adam(rows, grads, means, squares, np.array(numbers, dtype=rows.dtype), unit_rows)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


@njit(cache=True)
def _sift_down(values, indices, value, index, size):
    """Replace the smallest of a heap."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and values[child + 1] < values[child]:
            child += 1
        if values[child] >= value:
            break
        values[at], indices[at] = values[child], indices[child]
        at = child
    values[at], indices[at] = value, index


@njit(cache=True)
def _sift_up(values, indices, value, index, at):
    """Add to a heap that has `at` elements."""
    while at > 0:
        parent = (at - 1) // 2
        if values[parent] <= value:
            break
        values[at], indices[at] = values[parent], indices[parent]
        at = parent
    values[at], indices[at] = value, index


@parallel()
def _top_k_rows(pre, values, indices):
    """Exact: the k largest of a row lie in the k groups of the largest maxima."""
    n, k = pre.shape[1], values.shape[1]
    n_groups = (n + GROUP - 1) // GROUP
    grouped = n_groups >= 2 * k
    for r in prange(pre.shape[0]):
        row, heap, heap_indices = pre[r], values[r], indices[r]
        if not grouped:
            for i in range(k):
                _sift_up(heap, heap_indices, row[i], i, i)
            for i in range(k, n):
                if row[i] > heap[0]:
                    _sift_down(heap, heap_indices, row[i], i, k)
            continue
        maxima = row[:n_groups].copy()
        quarter = n // n_groups // 4 * n_groups
        for start in range(0, quarter, n_groups):  # at four places at once: memory is slow to begin, not to go on
            a, b = row[start : start + n_groups], row[start + quarter : start + quarter + n_groups]
            c, d = row[start + 2 * quarter :], row[start + 3 * quarter :]
            for i in range(n_groups):
                maxima[i] = max(maxima[i], max(max(a[i], b[i]), max(c[i], d[i])))
        for start in range(4 * quarter, n, n_groups):
            part = row[start : start + n_groups]
            for i in range(part.shape[0]):
                maxima[i] = max(maxima[i], part[i])
        groups = np.empty(k, np.int32)
        for i in range(k):
            _sift_up(heap, groups, maxima[i], i, i)
        for i in range(k, n_groups):
            if maxima[i] > heap[0]:
                _sift_down(heap, groups, maxima[i], i, k)
        filled = 0
        for g in range(k):
            i = groups[g]
            while i < n:
                if filled < k:
                    _sift_up(heap, heap_indices, row[i], i, filled)
                    filled += 1
                elif row[i] > heap[0]:
                    _sift_down(heap, heap_indices, row[i], i, k)
                i += n_groups


@parallel()
def _top_k_rows_by_bits(pre, bits, values, indices):
    """Exact: count by the leading bits, keep what lies in higher bins, and choose within the bin at the edge."""
    n, k = pre.shape[1], values.shape[1]
    shift, magnitude = bits.itemsize * 8 - 11, (1 << (bits.itemsize * 8 - 1)) - 1
    for r in prange(pre.shape[0]):
        counts = np.zeros(2048, np.int32)
        bins = np.empty(n, np.int16)
        for i in range(n):
            ordered = bits[r, i] if bits[r, i] >= 0 else bits[r, i] ^ magnitude
            bins[i] = (ordered >> shift) + 1024
            counts[bins[i]] += 1
        edge, above = 2047, 0
        while above + counts[edge] < k:
            above += counts[edge]
            edge -= 1
        sure, filled, wanted = 0, 0, k - above
        heap, heap_indices = values[r, above:], indices[r, above:]
        for i in range(n):
            if bins[i] > edge:
                values[r, sure], indices[r, sure] = pre[r, i], i
                sure += 1
            elif bins[i] == edge:
                if filled < wanted:
                    _sift_up(heap, heap_indices, pre[r, i], i, filled)
                    filled += 1
                elif pre[r, i] > heap[0]:
                    _sift_down(heap, heap_indices, pre[r, i], i, wanted)


@parallel()
def _count_above(pre, limits, counts):
    for r in prange(pre.shape[0]):
        count = 0
        for i in range(pre.shape[1]):
            count += pre[r, i] > limits[i]
        counts[r] = count


@parallel()
def _write_above(pre, limits, starts, values, indices):
    for r in prange(pre.shape[0]):
        at = starts[r]
        for i in range(pre.shape[1]):
            if pre[r, i] > limits[i]:
                values[at] = pre[r, i]
                indices[at] = i
                at += 1


@njit(cache=True, fastmath=FAST)
def _add_rows(total, values, which, source, first, last):
    """Add to `total` the rows of source that entries first to last name, times their values."""
    fours = first + (last - first) // 4 * 4
    for e in range(first, fours, 4):
        v0, v1, v2, v3 = values[e], values[e + 1], values[e + 2], values[e + 3]
        s0, s1, s2, s3 = source[which[e]], source[which[e + 1]], source[which[e + 2]], source[which[e + 3]]
        for c in range(total.shape[0]):
            total[c] += v0 * s0[c] + v1 * s1[c] + v2 * s2[c] + v3 * s3[c]
    for e in range(fours, last):
        v0, s0 = values[e], source[which[e]]
        for c in range(total.shape[0]):
            total[c] += v0 * s0[c]


@njit(cache=True, fastmath=FAST)
def _dot_rows(vector, which, source, first, last, out):
    """The products of `vector` with the rows of source that entries name: the same bits in any company."""
    for e in range(first, last, 4):
        e1, e2, e3 = min(e + 1, last - 1), min(e + 2, last - 1), min(e + 3, last - 1)
        s0, s1, s2, s3 = source[which[e]], source[which[e1]], source[which[e2]], source[which[e3]]
        t0 = t1 = t2 = t3 = vector.dtype.type(0)
        for c in range(vector.shape[0]):
            t0 += s0[c] * vector[c]
            t1 += s1[c] * vector[c]
            t2 += s2[c] * vector[c]
            t3 += s3[c] * vector[c]
        out[e], out[e1], out[e2], out[e3] = t0, t1, t2, t3


@parallel()
def _gather_dot(x, weight, order, starts, rows, dots, out, n_parts):
    n = weight.shape[0]
    for part in prange(n_parts):
        for block in range(starts.shape[0]):
            for latent in range(part * n // n_parts, (part + 1) * n // n_parts):
                first, last = starts[block, latent], starts[block, latent + 1]
                _dot_rows(weight[latent], rows, x, first, last, dots)
                for o in range(first, last):
                    out[order[o]] = dots[o]


@parallel()
def _weighted_sum(values, indices, offsets, weight, out):
    for r in prange(out.shape[0]):
        out[r, :] = 0
        _add_rows(out[r], values, indices, weight, offsets[r], offsets[r + 1])


@parallel()
def _decode_error(values, indices, offsets, weight, bias, target, error, dots):
    for r in prange(error.shape[0]):
        row, wanted = error[r], target[r]
        row[:] = 0
        _add_rows(row, values, indices, weight, offsets[r], offsets[r + 1])
        for c in range(row.shape[0]):
            row[c] = wanted[c] - bias[c] - row[c]
        _dot_rows(row, indices, weight, offsets[r], offsets[r + 1], dots)


@parallel()
def _scatter_outer(values, starts, rows, y, out, skipped, added, n_parts):
    n = out.shape[0]
    for part in prange(n_parts):
        for block in range(starts.shape[0]):
            for latent in range(part * n // n_parts, (part + 1) * n // n_parts):
                if block == 0 and not added:
                    out[latent, :] = 0
                first, last = starts[block, skipped + latent], starts[block, skipped + latent + 1]
                _add_rows(out[latent], values, rows, y, first, last)


@parallel()
def _by_latent(indices, offsets, block_rows, starts, order, rows):
    n_rows = offsets.shape[0] - 1
    for block in prange(starts.shape[0]):
        start = starts[block]
        first, last = block * block_rows, min(n_rows, (block + 1) * block_rows)
        for e in range(offsets[first], offsets[last]):
            start[indices[e] + 1] += 1
        start[0] = offsets[first]
        for i in range(start.shape[0] - 1):
            start[i + 1] += start[i]
        cursor = start[:-1].copy()
        for r in range(first, last):
            for e in range(offsets[r], offsets[r + 1]):
                at = cursor[indices[e]]
                order[at] = e
                rows[at] = r
                cursor[indices[e]] = at + 1


@parallel()
def _to_dense(values, indices, offsets, dense):
    for r in prange(dense.shape[0]):
        for e in range(offsets[r], offsets[r + 1]):
            dense[r, indices[e]] = values[e]


@parallel()
def _from_dense(dense, indices, offsets, values):
    for r in prange(dense.shape[0]):
        for e in range(offsets[r], offsets[r + 1]):
            values[e] = dense[r, indices[e]]


@njit(cache=True, fastmath=FAST, error_model="numpy")
def _adam_row(p, g, m, v, numbers, unit_row):
    """Of one row. All numbers are of its own precision: one of another would make all that is reckoned double."""
    rate, scale, beta1, rest1, beta2, rest2, eps, zero, one = numbers
    parallel = zero
    if unit_row:
        for c in range(p.shape[0]):
            parallel += g[c] * p[c]
    norm = zero
    for c in range(p.shape[0]):
        before = p[c]
        tangent = g[c] - parallel * before
        mean = beta1 * m[c] + rest1 * tangent
        square = beta2 * v[c] + rest2 * tangent * tangent
        after = before - rate * mean / (np.sqrt(square * scale) + eps)
        m[c], v[c], p[c] = mean, square, after
        norm += after * after
    if unit_row and norm > 0:
        inverse = one / np.sqrt(norm)
        for c in range(p.shape[0]):
            p[c] *= inverse


@parallel()
def _adam(parameter, grad, mean, square, numbers, unit_rows):
    for r in prange(parameter.shape[0]):
        _adam_row(parameter[r], grad[r], mean[r], square[r], numbers, unit_rows)
