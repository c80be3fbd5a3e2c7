# pyright: basic, reportAttributeAccessIssue=false
"""The kernels for CPU: matmuls by torch in tiles that stay in cache, everything else compiled by numba.

Signatures are those of plain.py. Every output row is written by one thread, in a fixed order: the same input gives the
same bits, whatever the number of threads.
"""

import numba
import numpy as np
import torch
from numba import njit, prange
from numba.core import config
from torch import Tensor

from monosem.kernels.plain import only_above

config.THREADING_LAYER = "omp"

TILE_ROWS = 512
GROUP = 16  # a row's maxima are first taken over this many entries, a stride apart


def top_k(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    rows, n = x.shape[0], weight.shape[0]
    values = torch.empty(rows, k, dtype=x.dtype)
    indices = torch.empty(rows, k, dtype=torch.int32)
    buffer = torch.empty(min(rows, TILE_ROWS), n, dtype=x.dtype)
    _match_threads()
    for start in range(0, rows, TILE_ROWS):
        stop = min(start + TILE_ROWS, rows)
        pre = torch.addmm(bias, x[start:stop], weight.T, out=buffer[: stop - start])
        if n < 2 * GROUP * k:  # too large a share for groups to help
            values[start:stop], indices[start:stop] = torch.topk(pre, k, sorted=False)
        else:
            _top_k_rows(pre.numpy(), values[start:stop].numpy(), indices[start:stop].numpy())
    return values, indices


def top_k_screened(x: Tensor, weight: Tensor, bias: Tensor, k: int, n_candidates: int) -> tuple[Tensor, Tensor]:
    rows, n = x.shape[0], weight.shape[0]
    candidates = torch.empty(rows, n_candidates, dtype=torch.int32)
    keys = torch.empty(min(rows, TILE_ROWS), n_candidates, dtype=torch.int16)
    buffer = torch.empty(min(rows, TILE_ROWS), n, dtype=torch.bfloat16)
    x16, weight16, bias16 = x.bfloat16(), weight.bfloat16().T, bias.bfloat16()
    _match_threads()
    for start in range(0, rows, TILE_ROWS):
        stop = min(start + TILE_ROWS, rows)
        pre = torch.addmm(bias16, x16[start:stop], weight16, out=buffer[: stop - start])
        ordered = pre.view(torch.int16).numpy()
        _order_as_integers(ordered)
        _top_k_rows(ordered, keys[: stop - start].numpy(), candidates[start:stop].numpy())
    offsets = torch.arange(rows + 1) * n_candidates
    exact = gather_dot(x, weight, candidates.reshape(-1), offsets).add_(bias[candidates.reshape(-1)])
    values = torch.empty(rows, k, dtype=x.dtype)
    indices = torch.empty(rows, k, dtype=torch.int32)
    _top_k_rows(exact.reshape(rows, n_candidates).numpy(), values.numpy(), indices.numpy())
    return values, candidates.gather(1, indices.long())


def above_screened(
    x: Tensor, weight: Tensor, bias: Tensor, threshold: float, limits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    x16, weight16, bias16 = x.bfloat16(), weight.bfloat16(), bias.bfloat16()
    _, indices, offsets = above(x16, weight16, bias16, torch.zeros(()), limits)
    values = gather_dot(x, weight, indices, offsets).add_(bias[indices])
    return only_above(values, indices, offsets, threshold)


def above(
    x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor, row_limits: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """As in plain.py; `row_limits` are added to the thresholds."""
    rows, n = x.shape[0], weight.shape[0]
    exact = torch.float32 if x.dtype == torch.bfloat16 else x.dtype
    limits = threshold.to(exact).expand(n).contiguous().numpy()
    extra = _array(torch.zeros(rows, dtype=exact) if row_limits is None else row_limits)
    buffer = torch.empty(min(rows, TILE_ROWS), n, dtype=x.dtype)
    compared = buffer if exact == x.dtype else torch.empty(buffer.shape, dtype=exact)
    counts = torch.zeros(rows + 1, dtype=torch.int64)
    values: list[Tensor] = []
    indices: list[Tensor] = []
    _match_threads()
    for start in range(0, rows, TILE_ROWS):
        stop = min(start + TILE_ROWS, rows)
        pre = torch.addmm(bias, x[start:stop], weight.T, out=buffer[: stop - start])
        if compared is not buffer:
            pre = compared[: stop - start].copy_(pre)
        tile_counts = counts[start + 1 : stop + 1].numpy()
        _count_above(pre.numpy(), limits, extra[start:stop], tile_counts)
        ends = np.cumsum(tile_counts)
        tile_values = torch.empty(int(ends[-1]), dtype=exact)
        tile_indices = torch.empty(int(ends[-1]), dtype=torch.int32)
        starts = ends - tile_counts
        _write_above(pre.numpy(), limits, extra[start:stop], starts, tile_values.numpy(), tile_indices.numpy())
        values.append(tile_values)
        indices.append(tile_indices)
    if not values:
        return torch.zeros(0, dtype=exact), torch.zeros(0, dtype=torch.int32), counts
    return torch.cat(values), torch.cat(indices), counts.cumsum(0)


def gather_dot(x: Tensor, weight: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    out = torch.empty(indices.numel(), dtype=x.dtype)
    _match_threads()
    _gather_dot(_array(x), _array(weight), indices.numpy(), offsets.numpy(), out.numpy())
    return out


def weighted_sum(values: Tensor, indices: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty(offsets.numel() - 1, weight.shape[1], dtype=weight.dtype)
    _match_threads()
    _weighted_sum(_array(values), indices.numpy(), offsets.numpy(), _array(weight), out.numpy())
    return out


def scatter_outer(values: Tensor, order: Tensor, latent_offsets: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    out = torch.empty(latent_offsets.numel() - 1, y.shape[1], dtype=y.dtype)
    _match_threads()
    arrays = (order.numpy(), latent_offsets.numpy(), rows.numpy())
    _scatter_outer(_array(values), *arrays, _array(y), out.numpy())
    return out


def by_latent(indices: Tensor, offsets: Tensor, n_latents: int) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.empty(indices.numel(), dtype=torch.int32)
    rows = torch.empty(indices.numel(), dtype=torch.int32)
    latent_offsets = torch.zeros(n_latents + 1, dtype=torch.int64)
    _by_latent(indices.numpy(), offsets.numpy(), latent_offsets.numpy(), order.numpy(), rows.numpy())
    return order, latent_offsets, rows


def to_dense(values: Tensor, indices: Tensor, offsets: Tensor, n_latents: int) -> Tensor:
    dense = torch.zeros(offsets.numel() - 1, n_latents, dtype=values.dtype)
    _match_threads()
    _to_dense(_array(values), indices.numpy(), offsets.numpy(), dense.numpy())
    return dense


def from_dense(dense: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    values = torch.empty(indices.numel(), dtype=dense.dtype)
    _match_threads()
    _from_dense(_array(dense), indices.numpy(), offsets.numpy(), values.numpy())
    return values


def adam_(
    parameter: Tensor, grad: Tensor, mean: Tensor, square: Tensor, settings: tuple[float, ...], unit_rows: bool
) -> None:
    arrays = [t.detach().numpy() for t in (parameter, grad.contiguous(), mean, square)]
    if parameter.ndim == 1:
        arrays = [a.reshape(-1, 1) for a in arrays]
    _match_threads()
    parameter_rows, grad_rows, mean_rows, square_rows = arrays
    _adam(parameter_rows, grad_rows, mean_rows, square_rows, np.array(settings, dtype=arrays[0].dtype), unit_rows)


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


def _match_threads() -> None:
    numba.set_num_threads(min(torch.get_num_threads(), config.NUMBA_NUM_THREADS))


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


@njit(cache=True, parallel=True)
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
        for g in range(1, n // n_groups):
            block = row[g * n_groups : (g + 1) * n_groups]
            for i in range(n_groups):
                maxima[i] = max(maxima[i], block[i])
        for i in range(n - (n // n_groups) * n_groups):
            maxima[i] = max(maxima[i], row[(n // n_groups) * n_groups + i])
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


@njit(cache=True, parallel=True)
def _order_as_integers(bits):
    """Turn the bits of bfloat16 numbers into integers of the same order."""
    for r in prange(bits.shape[0]):
        row = bits[r]
        for i in range(row.shape[0]):
            row[i] = row[i] ^ ((row[i] >> 15) & 0x7FFF)


@njit(cache=True, parallel=True)
def _count_above(pre, limits, extra, counts):
    for r in prange(pre.shape[0]):
        count = 0
        for i in range(pre.shape[1]):
            count += pre[r, i] > limits[i] + extra[r]
        counts[r] = count


@njit(cache=True, parallel=True)
def _write_above(pre, limits, extra, starts, values, indices):
    for r in prange(pre.shape[0]):
        at = starts[r]
        for i in range(pre.shape[1]):
            if pre[r, i] > limits[i] + extra[r]:
                values[at] = pre[r, i]
                indices[at] = i
                at += 1


@njit(cache=True, parallel=True, fastmath={"reassoc", "contract", "nsz"})
def _gather_dot(x, weight, indices, offsets, out):
    for r in prange(x.shape[0]):
        row = x[r]
        for e in range(offsets[r], offsets[r + 1]):
            latent = weight[indices[e]]
            total = row[0] * 0
            for c in range(row.shape[0]):
                total += row[c] * latent[c]
            out[e] = total


@njit(cache=True, parallel=True)
def _weighted_sum(values, indices, offsets, weight, out):
    for r in prange(out.shape[0]):
        row = out[r]
        row[:] = 0
        for e in range(offsets[r], offsets[r + 1]):
            value, latent = values[e], weight[indices[e]]
            for c in range(row.shape[0]):
                row[c] += value * latent[c]


@njit(cache=True, parallel=True)
def _scatter_outer(values, order, latent_offsets, rows, y, out):
    for latent in prange(out.shape[0]):
        row = out[latent]
        row[:] = 0
        for o in range(latent_offsets[latent], latent_offsets[latent + 1]):
            e = order[o]
            value, source = values[e], y[rows[e]]
            for c in range(row.shape[0]):
                row[c] += value * source[c]


@njit(cache=True)
def _by_latent(indices, offsets, latent_offsets, order, rows):
    for e in range(indices.shape[0]):
        latent_offsets[indices[e] + 1] += 1
    for i in range(latent_offsets.shape[0] - 1):
        latent_offsets[i + 1] += latent_offsets[i]
    cursor = latent_offsets[:-1].copy()
    for r in range(offsets.shape[0] - 1):
        for e in range(offsets[r], offsets[r + 1]):
            rows[e] = r
            at = cursor[indices[e]]
            order[at] = e
            cursor[indices[e]] = at + 1


@njit(cache=True, parallel=True)
def _to_dense(values, indices, offsets, dense):
    for r in prange(dense.shape[0]):
        for e in range(offsets[r], offsets[r + 1]):
            dense[r, indices[e]] = values[e]


@njit(cache=True, parallel=True)
def _from_dense(dense, indices, offsets, values):
    for r in prange(dense.shape[0]):
        for e in range(offsets[r], offsets[r + 1]):
            values[e] = dense[r, indices[e]]


@njit(cache=True, parallel=True, fastmath={"reassoc", "contract", "nsz"})
def _adam(parameter, grad, mean, square, settings, unit_rows):
    lr, beta1, beta2, eps, correction1, correction2 = settings
    one = beta1 - beta1 + 1
    rate, scale = lr / correction1, one / correction2
    for r in prange(parameter.shape[0]):
        p, g, m, v = parameter[r], grad[r], mean[r], square[r]
        parallel = one - one
        if unit_rows:
            for c in range(p.shape[0]):
                parallel += g[c] * p[c]
        norm = one - one
        for c in range(p.shape[0]):
            tangent = g[c] - parallel * p[c]
            m[c] = beta1 * m[c] + (one - beta1) * tangent
            v[c] = beta2 * v[c] + (one - beta2) * tangent * tangent
            p[c] -= rate * m[c] / (np.sqrt(v[c] * scale) + eps)
            norm += p[c] * p[c]
        if unit_rows and norm > 0:
            inverse = one / np.sqrt(norm)
            for c in range(p.shape[0]):
                p[c] *= inverse
