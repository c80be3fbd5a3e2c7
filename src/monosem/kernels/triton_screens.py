# pyright: basic, reportAttributeAccessIssue=false, reportIndexIssue=false, reportInvalidTypeForm=false
"""Screens on CUDA: rows rounded in one pass with the norms of what is lost, and which entries can reach an edge.

The rules are those of `screening`. In eight-bit integers and in bfloat16 errors are bounded: the former are added
exactly, the latter in float32. Eight-bit floats are added in fewer bits, by how many no maker says: they are good for
a rough screen alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int, Int32
from torch import Tensor

from monosem.kernels import launch, matmul
from monosem.kernels.rounding import TINY, WEIGHT_LEVELS, Precision, Rounded

LARGEST = {"int8": float(WEIGHT_LEVELS), "float8": 448.0}
"""What a row's largest number becomes."""
STORED = {"int8": torch.int8, "float8": torch.float8_e4m3fn, "bfloat16": torch.bfloat16, "float32": torch.float32}
ROUNDED = 4  # rows that a program rounds at a time
TOGETHER = 8  # rows that a program compares at a time
COLUMNS = 512  # of these, at a time


def rounded(x: Float[Tensor, "rows d"], precision: Precision) -> Rounded:
    """Rows in few bits, each with a scale of its own where the bits have need of one."""
    rows, d = x.shape
    x = x.detach().contiguous()
    values = torch.empty(rows, d, dtype=STORED[precision], device=x.device)
    scale, norms = torch.ones(rows, device=x.device), torch.zeros(3, rows, device=x.device)
    shape = {"ROWS": ROUNDED, "BLOCK": min(COLUMNS, triton.next_power_of_2(d)), "LARGEST": LARGEST.get(precision, 0.0)}
    kind = {"FLOATS": precision == "float8", "NORMS": precision != "float8"}
    launch.run(_round, (triton.cdiv(rows, ROUNDED),), x, values, scale, norms, rows, d, **shape, **kind)
    return Rounded(values, scale, 0, *norms)


@dataclass
class Screen:
    """Weights in few bits, and what is added to their products."""

    precision: Precision
    weight: Rounded
    bias: Float[Tensor, " n"]

    @staticmethod
    def of(weight: Float[Tensor, "n d"], bias: Float[Tensor, " n"], precision: Precision) -> Screen:
        """Round weights."""
        return Screen(precision, rounded(weight, precision), bias.detach().float().contiguous())

    def product(self, x: Rounded) -> Tensor:
        """The matmul of few bits: times the scales of row and latent, and with the bias, what is looked for.

        Of eight-bit floats all of that is within it.
        """
        if self.precision == "int8":
            return matmul.integers(x.values, self.weight.values)
        if self.precision == "float8":
            return matmul.eight_bit_floats(x.values, x.scale, self.weight.values, self.weight.scale, self.bias)
        return matmul.unreduced(x.values, self.weight.values)

    def beside(self, x: Rounded) -> tuple[Tensor, Tensor, Tensor] | None:
        """What a selection does to products: scales of rows, scales of latents, biases."""
        return None if self.precision == "float8" else (x.scale, self.weight.scale, self.bias)

    def counts(
        self, product: Tensor, x: Rounded, edges: Float[Tensor, " rows"], limits: Float[Tensor, " n"]
    ) -> Int[Tensor, " rows"]:
        """How many entries of each row can reach its edge plus their latent's limit."""
        counts = torch.zeros(len(product), dtype=torch.int64, device=product.device)
        self._compare(_count_reaching, product, x, edges, limits, counts)
        return counts

    def places(
        self,
        product: Tensor,
        x: Rounded,
        edges: Float[Tensor, " rows"],
        limits: Float[Tensor, " n"],
        offsets: Int[Tensor, " rows_plus_1"],
    ) -> Int32[Tensor, " entries"]:
        """Which those are, row by row in the order of latents."""
        places = torch.empty(int(offsets[-1]), dtype=torch.int32, device=product.device)
        self._compare(_write_reaching, product, x, edges, limits, offsets, places)
        return places

    def _compare(self, kernel: object, product: Tensor, x: Rounded, *given: Tensor) -> None:
        edges, limits, *outputs = given
        rows, n = product.shape
        d = x.values.shape[1]
        row_error = 1.001 * x.error + (2 * d + 16) * 2.0**-23 * x.norm + TINY  # of tensor cores, and of float32
        of_rows = (x.scale, row_error, 1.001 * x.rounded_norm + TINY, edges)
        of_latents = (self.weight.scale, self.bias, self.weight.norm + TINY, self.weight.error + TINY, limits)
        # without fusion two kernels that compare the same numbers find the same of them, to the last bit
        shape = {"ROWS": TOGETHER, "BLOCK": COLUMNS, "num_warps": 8, "enable_fp_fusion": False}
        launch.run(kernel, (triton.cdiv(rows, TOGETHER),), product, *of_rows, *of_latents, *outputs, rows, n, **shape)


@triton.jit
def _round(
    x,
    values,
    scales,
    norms,
    rows,
    d,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    LARGEST: tl.constexpr,
    FLOATS: tl.constexpr,
    NORMS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = row.to(tl.int64)[:, None] * d
    scale = tl.full((ROWS,), 1.0, tl.float32)
    if LARGEST > 0:
        largest = tl.zeros((ROWS, BLOCK), tl.float32)
        for start in range(0, d, BLOCK):
            column = start + tl.arange(0, BLOCK)
            there = (row < rows)[:, None] & (column < d)[None, :]
            value = tl.load(x + first + column[None, :], mask=there, other=0).to(tl.float32)
            largest = tl.maximum(largest, tl.abs(value))
        most = tl.max(largest, 1)
        scale = tl.where(most > 1e-30, most / LARGEST, 1.0)  # pyright: ignore
        tl.store(scales + row, scale, mask=row < rows)
    norm = tl.zeros((ROWS, BLOCK), tl.float32)
    rounded_norm = tl.zeros((ROWS, BLOCK), tl.float32)
    error = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(0, d, BLOCK):
        column = start + tl.arange(0, BLOCK)
        there = (row < rows)[:, None] & (column < d)[None, :]
        value = tl.load(x + first + column[None, :], mask=there, other=0).to(tl.float32)
        step = value / scale[:, None]
        if LARGEST > 0:
            unit = tl.full((ROWS, BLOCK), 1.0, tl.float32)
            if FLOATS:  # three bits of fraction, and none below 2^-9
                power = (step.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
                unit = tl.maximum(power * 0.125, 0.001953125)
            step = tl.floor(step / unit + 0.5) * unit
        stored = step.to(values.dtype.element_ty)
        tl.store(values + first + column[None, :], stored, mask=there)
        if NORMS:
            kept = stored.to(tl.float32) * scale[:, None]
            norm += value * value
            rounded_norm += kept * kept
            error += (value - kept) * (value - kept)
    if NORMS:
        tl.store(norms + row, tl.sqrt(tl.sum(norm, 1)), mask=row < rows)
        tl.store(norms + rows + row, tl.sqrt(tl.sum(rounded_norm, 1)), mask=row < rows)
        tl.store(norms + 2 * rows + row, tl.sqrt(tl.sum(error, 1)), mask=row < rows)


@triton.jit
def _reaches(
    products, scale, row_error, row_norm, edge, latent_scales, biases, norms, errors, limits, row, column, rows, n
):
    """Whether what a screen says and how far it may be wrong exceed an edge; what is not a number does."""
    there = (row < rows)[:, None] & (column < n)[None, :]
    raw = tl.load(products + row.to(tl.int64)[:, None] * n + column[None, :], mask=there, other=0).to(tl.float32)
    latent_scale = tl.load(latent_scales + column, mask=column < n, other=0)
    bias = tl.load(biases + column, mask=column < n, other=0)
    norm = tl.load(norms + column, mask=column < n, other=0)
    error = tl.load(errors + column, mask=column < n, other=0)
    limit = tl.load(limits + column, mask=column < n, other=0)
    product = raw * (scale[:, None] * latent_scale[None, :])
    bound = row_error[:, None] * norm[None, :] + row_norm[:, None] * error[None, :] + 2.4e-7 * tl.abs(bias)[None, :]
    if products.dtype.element_ty == tl.bfloat16:
        bound += 0.003945 * tl.abs(product)  # 2^-8 of an output in bfloat16
    return there & ((product + bias[None, :] + bound < edge[:, None] + limit[None, :]) == 0)


@triton.jit
def _count_reaching(
    products,
    scales,
    row_errors,
    row_norms,
    edges,
    latent_scales,
    biases,
    norms,
    errors,
    limits,
    counts,
    rows,
    n,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    scale = tl.load(scales + row, mask=row < rows, other=0)
    row_error = tl.load(row_errors + row, mask=row < rows, other=0)
    row_norm = tl.load(row_norms + row, mask=row < rows, other=0)
    edge = tl.load(edges + row, mask=row < rows, other=0)
    count = tl.zeros((ROWS, BLOCK), tl.int32)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        on = _reaches(
            products, scale, row_error, row_norm, edge, latent_scales, biases, norms, errors, limits, row, column,
            rows, n,
        )  # fmt: skip
        count += on.to(tl.int32)
    tl.store(counts + row, tl.sum(count, 1).to(tl.int64), mask=row < rows)


@triton.jit
def _write_reaching(
    products,
    scales,
    row_errors,
    row_norms,
    edges,
    latent_scales,
    biases,
    norms,
    errors,
    limits,
    offsets,
    places,
    rows,
    n,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    scale = tl.load(scales + row, mask=row < rows, other=0)
    row_error = tl.load(row_errors + row, mask=row < rows, other=0)
    row_norm = tl.load(row_norms + row, mask=row < rows, other=0)
    edge = tl.load(edges + row, mask=row < rows, other=0)
    first = tl.load(offsets + row, mask=row < rows, other=0)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        on = _reaches(
            products, scale, row_error, row_norm, edge, latent_scales, biases, norms, errors, limits, row, column,
            rows, n,
        )  # fmt: skip
        place = first[:, None] + tl.cumsum(on.to(tl.int32), 1) - 1
        tl.store(places + place, tl.broadcast_to(column[None, :], (ROWS, BLOCK)), mask=on)
        first += tl.sum(on.to(tl.int32), 1)
