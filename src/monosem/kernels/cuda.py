# pyright: basic, reportAttributeAccessIssue=false, reportIndexIssue=false, reportInvalidTypeForm=false
# pyright: reportGeneralTypeIssues=false
"""The kernels for CUDA: matmuls and sorting by torch, everything else in Triton.

Signatures are those of plain.py. No kernel uses atomics: every number is written by one program, in a fixed order, and
the same input gives the same bits. Sums are in float32 (float64 for float64), never in TF32: no kernel has a matmul.
With a fixed k nothing waits for the device; `above` waits once, for its number of entries.

A weight matrix is larger than the L2 cache, but each of its rows is read for several rows of the batch. So kernels
that gather rows go over all of the batch with one block of columns, which stays in the cache, before the next.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from monosem.kernels import launch, plain
from monosem.kernels.plain import from_dense, only_above, to_dense
from monosem.kernels.rounding import Precision, Rounded
from monosem.kernels.screening import WIDEST, n_rough
from monosem.kernels.triton_screens import Screen, rounded

__all__ = [
    "above",
    "above_screened",
    "adam_",
    "by_latent",
    "decode_error",
    "from_dense",
    "gather_dot",
    "scatter_outer",
    "to_dense",
    "top_k",
    "top_k_screened",
    "weighted_sum",
]

TILE_BYTES = 2**30  # of pre-activations at a time: at batch 4096 all of 65536 latents' in float32
CACHE_BYTES = 24 * 2**20  # of a gathered matrix at a time: half of an H100's L2 cache
GATHERED = 2048  # numbers that a program holds at a time: so many rows by so many columns
SLAB = 256  # entries: longer sums are made of such parts
WIDEST_SELECTION = 8192  # numbers that a program can choose among
ROUGH_BITS = 20  # of float32, in which a rough screen is compared
WIDEST_ROW = 16384  # numbers of a row that a program holds to give it norm 1
FLAT = 1024  # numbers of a parameter without such rows


def top_k(x: Tensor, weight: Tensor, bias: Tensor, k: int) -> tuple[Tensor, Tensor]:
    parts = [_largest(pre, k) for pre in _pre_activations(x, weight, bias)]
    return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])


def top_k_screened(
    x: Tensor, weight: Tensor, bias: Tensor, k: int, precision: Precision, exact: bool
) -> tuple[Tensor, Tensor]:
    if exact:
        screen = Screen.of(weight, bias, precision)
        parts = [_exactly(rows, few, weight, bias, k, screen) for rows, few in _screened(x, screen)]
        return torch.cat([values for values, _ in parts]), torch.cat([indices for _, indices in parts])
    candidates = _roughly(x, weight, bias, n_rough(k, precision), precision)
    values, places = _largest(_evaluated(x, weight, bias, candidates), k)
    return values, candidates.gather(1, places.long())


def _roughly(x: Tensor, weight: Tensor, bias: Tensor, count: int, precision: Precision) -> Tensor:
    """The largest of each row in few bits."""
    if precision in ("float32", "bfloat16"):
        dtype = getattr(torch, precision)
        return top_k(x.to(dtype), weight.to(dtype), bias.to(dtype), count)[1]
    screen = Screen.of(weight, bias, precision)
    return torch.cat([_largest(screen.product(few), count, screen.beside(few))[1] for _, few in _screened(x, screen)])


def _exactly(x: Tensor, few: Rounded, weight: Tensor, bias: Tensor, k: int, screen: Screen) -> tuple[Tensor, Tensor]:
    """The largest of each row, among all that can be: any k true values have the edge at or above their smallest."""
    product, rows, n = screen.product(few), len(x), len(weight)
    some = _largest(product, k, screen.beside(few))[1]
    edges, nothing = _evaluated(x, weight, bias, some).amin(1), torch.zeros(n, device=x.device)
    counts = screen.counts(product, few, edges, nothing)
    whole = (counts > max(n // WIDEST, 2 * k)) | (counts < k)
    offsets = F.pad(counts.masked_fill(whole, 0).cumsum(0), (1, 0))
    indices = screen.places(product, few, edges.masked_fill(whole, float("inf")), nothing, offsets)
    found = gather_dot(x, weight, indices, offsets) + bias[indices]
    held = offsets.diff()
    row = torch.repeat_interleave(torch.arange(rows, device=x.device), held, output_size=indices.numel())
    at = torch.arange(indices.numel(), device=x.device) - offsets[row]
    width = max(k, int(held.max()))
    values, latents = x.new_full((rows, width), float("-inf")), indices.new_zeros(rows, width)
    values[row, at], latents[row, at] = found, indices
    if whole.any():
        others = top_k(x[whole], weight, bias, k)[1]
        values[whole, :k], latents[whole, :k] = _evaluated(x[whole], weight, bias, others), others
    best, places = _largest(values, k)
    return best, latents.gather(1, places.long())


def _evaluated(x: Tensor, weight: Tensor, bias: Tensor, indices: Tensor) -> Tensor:
    """What is named of each row, in float32."""
    offsets = torch.arange(len(x) + 1, device=x.device) * indices.shape[1]
    return gather_dot(x, weight, indices.reshape(-1), offsets).reshape(indices.shape) + bias[indices]


def _screened(x: Tensor, screen: Screen) -> Iterator[tuple[Tensor, Rounded]]:
    """Rows, and the same in few bits: so many that their products are not too many."""
    few, tile = rounded(x, screen.precision), max(1, TILE_BYTES // (4 * len(screen.bias)))
    for start in range(0, max(1, len(x)), tile):
        yield x[start : start + tile], few[start : start + tile]


def above(x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    wide = _wide(x.dtype)
    limits = threshold.to(x.device, wide).expand(len(weight)).contiguous()
    counts = torch.zeros(len(x) + 1, dtype=torch.int64, device=x.device)
    values: list[Tensor] = []
    indices: list[Tensor] = []
    start = 0
    for pre in _pre_activations(x, weight, bias):
        stop = start + len(pre)
        tensors, grid = (pre, limits), (len(pre),)
        launch.run(_count_above, grid, *tensors, counts[start + 1 : stop + 1], len(weight), BLOCK=2048, num_warps=8)
        offsets = counts[start : stop + 1].cumsum(0) - counts[start]
        values.append(torch.empty(int(offsets[-1]), dtype=wide, device=x.device))
        indices.append(torch.empty_like(values[-1], dtype=torch.int32))
        launch.run(_write_above, grid, *tensors, offsets, values[-1], indices[-1], len(weight), BLOCK=2048, num_warps=8)
        start = stop
    return torch.cat(values).to(x.dtype), torch.cat(indices), counts.cumsum(0)


def above_screened(
    x: Tensor, weight: Tensor, bias: Tensor, threshold: Tensor, precision: Precision
) -> tuple[Tensor, Tensor, Tensor]:
    screen = Screen.of(weight, bias, "bfloat16" if precision == "float8" else precision)
    limits = threshold.to(x.device, torch.float32).expand(len(weight)).contiguous()
    parts, counts = list[Tensor](), [torch.zeros(1, dtype=torch.int64, device=x.device)]
    for rows, few in _screened(x, screen):
        product, nowhere = screen.product(few), torch.zeros(len(rows), device=x.device)
        counts.append(screen.counts(product, few, nowhere, limits))
        offsets = F.pad(counts[-1].cumsum(0), (1, 0))
        parts.append(screen.places(product, few, nowhere, limits, offsets))
    indices, offsets = torch.cat(parts), torch.cat(counts).cumsum(0)
    values = gather_dot(x, weight, indices, offsets) + bias[indices]
    return only_above(values, indices, offsets, limits[indices])


def gather_dot(x: Tensor, weight: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    d, n_entries, columns = weight.shape[1], indices.numel(), _columns(weight)
    n_parts = triton.cdiv(d, columns)
    parts = torch.empty(n_parts, n_entries, dtype=_wide(x.dtype), device=x.device)
    tensors = (x.contiguous(), weight.contiguous(), indices, offsets, parts)
    launch.run(_gather_dot, (len(x), n_parts), *tensors, d, n_entries, ENTRIES=GATHERED // columns, COLUMNS=columns)
    if n_parts == 1:
        return parts[0].to(x.dtype)
    out = torch.empty(n_entries, dtype=x.dtype, device=x.device)
    launch.run(_sum_parts, (triton.cdiv(n_entries, FLAT),), parts, out, n_parts, n_entries, BLOCK=FLAT)
    return out


def weighted_sum(values: Tensor, indices: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    n_segments, d, columns = offsets.numel() - 1, weight.shape[1], _columns(weight)
    n_slabs, n_parts = values.numel() // SLAB, triton.cdiv(d, columns)
    values, weight = values.contiguous(), weight.contiguous()
    starts = torch.arange(n_slabs, device=values.device) * SLAB
    ends = offsets[torch.searchsorted(offsets, starts, right=True)]
    slabs = torch.empty(n_slabs, d, dtype=_wide(weight.dtype), device=weight.device)
    out = torch.empty(n_segments, d, dtype=weight.dtype, device=weight.device)
    shape: dict[str, Any] = {"LENGTH": SLAB, "ENTRIES": GATHERED // columns, "COLUMNS": columns}
    launch.run(_sum_slabs, (n_slabs, n_parts), values, indices, ends, weight, slabs, d, **shape)
    launch.run(_sum_segments, (n_segments, n_parts), values, indices, offsets, weight, slabs, out, d, **shape)
    return out


def decode_error(
    values: Tensor, indices: Tensor, offsets: Tensor, weight: Tensor, bias: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    error = target - bias - weighted_sum(values, indices, offsets, weight)
    return error, gather_dot(error, weight, indices, offsets)


def scatter_outer(values: Tensor, order: Tensor, latent_offsets: Tensor, rows: Tensor, y: Tensor) -> Tensor:
    return weighted_sum(values[order], rows, latent_offsets, y)


def by_latent(indices: Tensor, offsets: Tensor, n_latents: int) -> tuple[Tensor, Tensor, Tensor]:
    latents, order = torch.sort(indices, stable=True)
    numbers = torch.arange(n_latents + 1, dtype=indices.dtype, device=indices.device)
    rows = torch.arange(offsets.numel() - 1, dtype=torch.int32, device=indices.device)
    rows = torch.repeat_interleave(rows, offsets.diff(), output_size=indices.numel())
    return order, torch.searchsorted(latents, numbers), rows[order]


def adam_(
    parameter: Tensor, grad: Tensor, mean: Tensor, square: Tensor, settings: tuple[float, ...], unit_rows: bool
) -> None:
    lr, beta1, beta2, eps, correction1, correction2 = settings
    width = parameter.shape[-1] if unit_rows else FLAT
    if width > WIDEST_ROW or not parameter.is_contiguous():
        return plain.adam_(parameter, grad, mean, square, settings, unit_rows)  # pyright: ignore
    total, block = parameter.numel(), triton.next_power_of_2(width)
    numbers = (total, width, lr / correction1, beta1, beta2, eps, 1 / correction2)
    tensors = (parameter, grad.contiguous(), mean, square)
    warps = max(4, min(32, block // 512))
    launch.run(_adam, (triton.cdiv(total, width),), *tensors, *numbers, UNIT=unit_rows, BLOCK=block, num_warps=warps)
    return None


def _pre_activations(x: Tensor, weight: Tensor, bias: Tensor) -> Iterator[Tensor]:
    tile = max(1, TILE_BYTES // (len(weight) * x.element_size()))
    return (F.linear(rows, weight, bias) for rows in x.split(tile))


def _largest(pre: Tensor, k: int, beside: tuple[Tensor, Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """The k largest of each row and where they are: they lie in the k groups of the largest maxima.

    A group is made of runs of 16 bytes, evenly spread. There are about as many groups as entries in the k best ones.
    What stands `beside` products of few bits (scales of rows and of latents, and biases) is applied to them here, and
    they are compared in the first `ROUGH_BITS` of float32; the values are the products.
    """
    rows, n = pre.shape
    size = 1
    while size < 128 and k * (2 * size) ** 2 <= n:
        size *= 2
    n_groups, run = triton.cdiv(n, size), min(size, 16 // max(pre.element_size(), 1 if beside is None else 4))
    if max(n_groups, k * size) > WIDEST_SELECTION:
        found = pre if beside is None else torch.addcmul(beside[2], pre * beside[0][:, None], beside[1])
        places = torch.topk(found, k, sorted=False).indices
        return pre.gather(1, places), places.to(torch.int32)
    groups = torch.empty(rows, k, dtype=torch.int32, device=pre.device)
    indices, values = torch.empty_like(groups), pre.new_empty(rows, k)
    bits = 8 * pre.element_size() if beside is None else ROUGH_BITS
    shape: dict[str, Any] = {"SIZE": size, "RUN": run, "SCALED": beside is not None, "BITS": bits}
    tensors = (pre, *(beside or (pre, pre, pre)), groups)
    for kernel, outputs, width in ((_best_groups, (), n_groups), (_best_of_groups, (values, indices), k * size)):
        block = triton.next_power_of_2(width)
        warps = max(4, block // 256)
        launch.run(kernel, (rows,), *tensors, *outputs, n, n_groups, k, **shape, BLOCK=block, num_warps=warps)
    return values, indices


def _columns(matrix: Tensor) -> int:
    """How wide a block of columns of a matrix is gathered from at a time."""
    fit = max(1, CACHE_BYTES // (max(1, len(matrix)) * matrix.element_size()))
    return max(32, min(512, 2 ** (fit.bit_length() - 1), triton.next_power_of_2(matrix.shape[1])))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are made in."""
    return dtype if dtype == torch.float64 else torch.float32


# Selection --------------------------------------------------------------------------------------------------------


@triton.jit
def _keys(pre, scales, latent_scales, biases, row, column, there, n, SCALED: tl.constexpr, BITS: tl.constexpr):
    """Numbers as integers of the same order; the least stands for what is not there.

    One NaN has that key too, but what is not there lies behind it, and of equal keys the first are taken.
    """
    values = tl.load(pre + row * n + column, mask=there, other=0)
    if SCALED:
        factor = tl.load(scales + row) * tl.load(latent_scales + column, mask=there, other=0)
        values = values.to(tl.float32) * factor + tl.load(biases + column, mask=there, other=0)
    if BITS == 64:
        bits = values.to(tl.int64, bitcast=True)
    elif BITS == 16:
        bits = values.to(tl.int16, bitcast=True).to(tl.int32)
    else:
        bits = values.to(tl.int32, bitcast=True) >> (32 - BITS)
    largest: tl.constexpr = 2 ** (BITS - 1) - 1
    keys = tl.where(bits < 0, bits ^ largest, bits)
    return tl.where(there, keys, -largest - 1)


@triton.jit
def _among_largest(keys, k, BITS: tl.constexpr):
    """Which are the k largest (of equal ones, the first). The k-th largest is found bit by bit, from the top."""
    lowest: tl.constexpr = -(2 ** (BITS - 1))
    edge = tl.where(tl.sum((keys >= 0).to(tl.int32), 0) >= k, 0, lowest).to(keys.dtype)
    bit = tl.full((), 2 ** (BITS - 2), keys.dtype)
    for _ in range(BITS - 1):
        edge = tl.where(tl.sum((keys >= edge + bit).to(tl.int32), 0) >= k, edge + bit, edge)
        bit = bit >> 1
    larger = keys > edge
    equal = (keys == edge).to(tl.int32)
    missing = k - tl.sum(larger.to(tl.int32), 0)
    return larger | ((equal > 0) & (tl.cumsum(equal, 0) <= missing))


@triton.jit
def _best_groups(
    pre,
    scales,
    latent_scales,
    biases,
    groups,
    n,
    n_groups,
    k,
    SIZE: tl.constexpr,
    RUN: tl.constexpr,
    SCALED: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, BLOCK)
    maxima = tl.full((BLOCK,), -(2 ** (BITS - 1)), tl.int64 if BITS == 64 else tl.int32)
    for part in range(SIZE // RUN):
        column = (part * n_groups + group[:, None]) * RUN + tl.arange(0, RUN)[None, :]
        there = (group < n_groups)[:, None] & (column < n)
        keys = _keys(pre, scales, latent_scales, biases, row, column, there, n, SCALED, BITS)
        maxima = tl.maximum(maxima, tl.max(keys, 1))
    best = _among_largest(maxima, k, BITS)
    tl.store(groups + row * k + tl.cumsum(best.to(tl.int32), 0) - 1, group, mask=best)


@triton.jit
def _best_of_groups(
    pre,
    scales,
    latent_scales,
    biases,
    groups,
    values,
    indices,
    n,
    n_groups,
    k,
    SIZE: tl.constexpr,
    RUN: tl.constexpr,
    SCALED: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    group = tl.load(groups + row * k + at // SIZE, mask=at < k * SIZE, other=0)
    column = ((at % SIZE) // RUN * n_groups + group) * RUN + at % RUN
    there = (at < k * SIZE) & (column < n)
    keys = _keys(pre, scales, latent_scales, biases, row, column, there, n, SCALED, BITS)
    best = _among_largest(keys, k, BITS)
    place = row * k + tl.cumsum(best.to(tl.int32), 0) - 1
    tl.store(indices + place, column, mask=best)
    tl.store(values + place, tl.load(pre + row * n + column, mask=best), mask=best)


@triton.jit
def _count_above(pre, limits, counts, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        limit = tl.load(limits + column, mask=column < n, other=0)
        value = tl.load(pre + row * n + column, mask=column < n, other=0).to(limit.dtype)
        count += ((value > limit) & (column < n)).to(tl.int32)
    tl.store(counts + row, tl.sum(count, 0).to(tl.int64))


@triton.jit
def _write_above(pre, limits, offsets, values, indices, n, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + row)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        limit = tl.load(limits + column, mask=column < n, other=0)
        value = tl.load(pre + row * n + column, mask=column < n, other=0).to(limit.dtype)
        on = (value > limit) & (column < n)
        place = first + tl.cumsum(on.to(tl.int32), 0) - 1
        tl.store(values + place, value, mask=on)
        tl.store(indices + place, column, mask=on)
        first += tl.sum(on.to(tl.int32), 0)


# Evaluation -------------------------------------------------------------------------------------------------------


@triton.jit
def _gather_dot(x, weight, indices, offsets, parts, d, n_entries, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    wide = parts.dtype.element_ty
    source = tl.load(x + row * d + column, mask=column < d, other=0).to(wide)
    stop = tl.load(offsets + row + 1)
    for first in range(tl.load(offsets + row), stop, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        tile = _gather(weight, indices, entry, entry < stop, column, d).to(wide)
        tl.store(parts + part * n_entries + entry, tl.sum(tile * source[None, :], 1), mask=entry < stop)


@triton.jit
def _sum_parts(parts, out, n_parts, n_entries, BLOCK: tl.constexpr):
    """One after the other, whatever their number: an entry has the same bits in any company."""
    entry = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), parts.dtype.element_ty)
    pointers = parts + entry
    for _ in range(n_parts):
        total += tl.load(pointers, mask=entry < n_entries, other=0)
        pointers += n_entries
    tl.store(out + entry, total.to(out.dtype.element_ty), mask=entry < n_entries)


@triton.jit
def _sum_slabs(
    values, indices, ends, matrix, slabs, d, LENGTH: tl.constexpr, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):
    """Sum the slabs of entries that belong to one segment altogether; `ends` says where the first entry's ends."""
    slab, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    if tl.load(ends + slab) >= (slab + 1) * LENGTH:
        column = part * COLUMNS + tl.arange(0, COLUMNS)
        wide = slabs.dtype.element_ty
        total = tl.zeros((ENTRIES, COLUMNS), wide)
        for first in range(slab * LENGTH, (slab + 1) * LENGTH, ENTRIES):
            entry = first + tl.arange(0, ENTRIES)
            value = tl.load(values + entry).to(wide)
            total += value[:, None] * _gather(matrix, indices, entry, entry >= 0, column, d).to(wide)
        tl.store(slabs + slab * d + column, tl.sum(total, 0), mask=column < d)


@triton.jit
def _sum_segments(
    values,
    indices,
    offsets,
    matrix,
    slabs,
    out,
    d,
    LENGTH: tl.constexpr,
    ENTRIES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sum each segment: its entries one by one, but those of whole slabs together."""
    segment, part = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column = part * COLUMNS + tl.arange(0, COLUMNS)
    wide = slabs.dtype.element_ty
    total = tl.zeros((ENTRIES, COLUMNS), wide)
    start, stop = tl.load(offsets + segment), tl.load(offsets + segment + 1)
    first_slab, last_slab = (start + LENGTH - 1) // LENGTH, stop // LENGTH
    skipped = tl.maximum(last_slab - first_slab, 0) * LENGTH
    for first in range(start, stop - skipped, ENTRIES):
        entry = first + tl.arange(0, ENTRIES)
        entry += tl.where(entry >= first_slab * LENGTH, skipped, 0)
        value = tl.load(values + entry, mask=entry < stop, other=0).to(wide)
        total += value[:, None] * _gather(matrix, indices, entry, entry < stop, column, d).to(wide)
    for first in range(first_slab, last_slab, ENTRIES):
        slab = first + tl.arange(0, ENTRIES)
        there = (slab < last_slab)[:, None] & (column < d)[None, :]
        total += tl.load(slabs + slab[:, None] * d + column[None, :], mask=there, other=0)
    tl.store(out + segment * d + column, tl.sum(total, 0).to(out.dtype.element_ty), mask=column < d)


@triton.jit
def _gather(matrix, indices, entry, there, column, d):
    """For each entry the given columns of the row of the matrix that it names."""
    source = tl.load(indices + entry, mask=there, other=0).to(tl.int64)
    return tl.load(matrix + source[:, None] * d + column[None, :], mask=there[:, None] & (column < d)[None, :], other=0)


# The optimiser ----------------------------------------------------------------------------------------------------


@triton.jit
def _adam(
    parameter,
    grad,
    mean,
    square,
    total,
    width,
    rate: tl.float64,
    beta1: tl.float64,
    beta2: tl.float64,
    eps: tl.float64,
    scale: tl.float64,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    at = tl.program_id(0).to(tl.int64) * width + column
    there = (column < width) & (at < total)
    narrow = parameter.dtype.element_ty
    wide = tl.float64 if narrow == tl.float64 else tl.float32
    p = tl.load(parameter + at, mask=there, other=0).to(wide)
    g = tl.load(grad + at, mask=there, other=0).to(wide)
    m = tl.load(mean + at, mask=there, other=0).to(wide)
    v = tl.load(square + at, mask=there, other=0).to(wide)
    if UNIT:
        g -= tl.sum(g * p, 0) * p
    m = tl.full((), beta1, wide) * m + tl.full((), 1 - beta1, wide) * g
    v = tl.full((), beta2, wide) * v + tl.full((), 1 - beta2, wide) * g * g
    p -= tl.full((), rate, wide) * m / (tl.sqrt(v * tl.full((), scale, wide)) + tl.full((), eps, wide))
    if UNIT:
        norm = tl.sqrt(tl.sum(p * p, 0))
        p /= tl.where(norm > 0, norm, 1)
    tl.store(parameter + at, p.to(narrow), mask=there)
    tl.store(mean + at, m.to(mean.dtype.element_ty), mask=there)
    tl.store(square + at, v.to(square.dtype.element_ty), mask=there)
