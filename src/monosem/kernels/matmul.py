"""The matmuls of the engine, in any precision on any processor, and which of them are fast: asked by trying.

On a CPU oneDNN does them where it can: well ahead of MKL on other makers' processors, level on Intel's. And its sums do
not depend on the number of threads (in float32), which MKL's do: that cuts a matrix by the threads, and rounds
otherwise at the edges.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float, Int8, Int32, UInt8
from torch import Tensor
from torch.nn import functional as F

from monosem.kernels.rounding import Precision

FAST = 1.2
"""Times the speed of float32 from which a precision is worth the use of it."""
WIDE = 512
"""Width from which integers of few levels pay: those of processors that add two products in 16 bits."""
SLOW = 0.5
"""Times the speed of float32 below which one is worth a warning."""
LEAD, MOST = 4, 31
"""Trials by which those that show a precision fast must lead those that do not, or the other way round; most of all."""
CLEAR = 4
"""Times above or below `FAST` from which a trial counts twice."""
AT_ONCE = 16
SMALL = {"cpu": (1024, 768, 512), "cuda": (4096, 2048, 8192)}
"""Rows, width and latents of the matmul that is timed, some milliseconds: a part of a real one, with as many rows, as
libraries lay weights out anew for every tile of rows.
"""
EIGHT_BITS = 1.5
"""Times the speed of bfloat16 from which eight bits are worth the use of them, on a GPU."""
FLOAT8 = torch.float8_e4m3fn


SUMMED = 2048
"""Terms of a sum that oneDNN is given at once: longer ones it would cut by the threads."""


def linear(x: Float[Tensor, "rows d"], weight: Float[Tensor, "n d"], bias: Float[Tensor, " n"]) -> Tensor:
    """`x @ weight.T + bias`."""
    if x.device.type == "cpu" and _onednn_knows(x.dtype):
        return _onednn(x, weight, bias)
    return torch.addmm(bias, x, weight.T)


def product(a: Float[Tensor, "rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "rows columns"]:
    """`a @ b`."""
    if a.device.type != "cpu" or a.dtype != torch.float32 or not a.numel() or not _onednn_knows(a.dtype):
        return a @ b
    rows, columns = a.shape[0], b.shape[1]
    if rows == 1 < columns or (min(rows, columns) > 1 and a.T.is_contiguous()):
        # of one row it cuts the sums, a transposed matrix it copies
        return _in_parts(b.T, a.T).T.contiguous()
    return _in_parts(a, b)


def _in_parts(a: Tensor, b: Tensor) -> Tensor:
    out = _onednn(a[:, :SUMMED], b[:SUMMED].T, None)
    for start in range(SUMMED, a.shape[1], SUMMED):
        out += _onednn(a[:, start : start + SUMMED], b[start : start + SUMMED].T, None)
    return out


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@cache
def _onednn_knows(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    x, weight, bias = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=dtype), torch.ones(4, dtype=dtype)
    try:
        return bool((_onednn(x, weight, bias) == 4).all())
    except RuntimeError:
        return False


def packed(weight: Int8[Tensor, "n d"]) -> Tensor:
    """Weights as `integer_product` wants them."""
    return torch.ops.onednn.qlinear_prepack(weight, None)


def integer_product(x: UInt8[Tensor, "rows d"], zero: int, weight: Tensor, n: int) -> Float[Tensor, "rows n"]:
    """`(x - zero) @ weight.T` of packed weights: in bfloat16 where a processor has it, else exact in float32."""
    ones, zeros, out = torch.ones(n), torch.zeros(n, dtype=torch.int32), integer_output()
    return torch.ops.onednn.qlinear_pointwise(x, 1.0, zero, weight, ones, zeros, None, 1.0, 0, out, "none", [], "")


def integer_output() -> torch.dtype:
    """What `integer_product` returns."""
    return torch.bfloat16 if _onednn_knows(torch.bfloat16) else torch.float32


ALIGNED = 16
"""Numbers whose multiples the width and the latents of tensor cores' eight-bit products must be, at least."""
FEWEST = 32
"""Rows that such a product wants at least."""


def integers(x: Int8[Tensor, "rows d"], weight: Int8[Tensor, "n d"]) -> Int32[Tensor, "rows n"]:
    """`x @ weight.T`, exact: on a GPU's tensor cores, elsewhere by plain arithmetic."""
    if x.device.type != "cuda":
        return (x.double() @ weight.double().T).int()
    left, right = _aligned(x, FEWEST), _aligned(weight, 1)
    return torch._int_mm(left, right.T)[: len(x), : len(weight)].contiguous()  # pyright: ignore


def eight_bit_floats(
    x: Tensor,
    scale: Float[Tensor, " rows"],
    weight: Tensor,
    weight_scale: Float[Tensor, " n"],
    bias: Float[Tensor, " n"],
) -> Float[Tensor, "rows n"]:
    """`scale x weight_scale x (x @ weight.T) + bias` in bfloat16, of e4m3: its sums have fewer bits than float32's."""
    if x.device.type != "cuda":
        sums = x.float() @ weight.float().T
        return (sums * scale[:, None] * weight_scale + bias.bfloat16()).bfloat16()
    left, right = _aligned(x, FEWEST), _aligned(weight, 1)
    product = torch._scaled_mm(  # pyright: ignore
        left,
        right.T,
        scale_a=F.pad(scale, (0, len(left) - len(x)))[:, None],
        scale_b=F.pad(weight_scale, (0, len(right) - len(weight)))[None],
        bias=F.pad(bias.bfloat16(), (0, len(right) - len(weight))),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return product[: len(x), : len(weight)].contiguous()


def _aligned(matrix: Tensor, fewest: int) -> Tensor:
    """A matrix with rows and columns of zeros, until their number is one that tensor cores take."""
    rows, columns = (-size % ALIGNED for size in matrix.shape)
    rows = max(rows, fewest - len(matrix))
    if not rows and not columns:
        return matrix
    return F.pad(matrix.view(torch.uint8), (0, columns, 0, rows)).view(matrix.dtype)


def unreduced(x: Float[Tensor, "rows d"], weight: Float[Tensor, "n d"]) -> Float[Tensor, "rows n"]:
    """`x @ weight.T`, of whose sums no part is rounded to bfloat16 on the way."""
    if x.dtype != torch.bfloat16 or x.device.type != "cuda":
        return x @ weight.T
    before = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    try:
        return x @ weight.T
    finally:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = before


@cache
def integer_levels() -> int:
    """Steps each way of zero that activations may have for `integer_product` to be right; 0 where there is none.

    Without instructions for it (VNNI) a processor adds two products in 16 bits, which 127 levels overflow and 63 do
    not: asked by a product that would.
    """
    for levels in (127, 63):
        x = torch.full((4, 64), 2 * levels + 1, dtype=torch.uint8)
        weight = torch.full((32, 64), 127, dtype=torch.int8)
        weight[1::2] = -127
        try:
            found = integer_product(x, levels + 1, packed(weight), len(weight)).double()
        except (RuntimeError, AttributeError, NotImplementedError):
            return 0
        expected = (x.double() - levels - 1) @ weight.double().T
        if bool(((found - expected).abs() <= 2**-8 * expected.abs()).all()):
            return levels
    return 0


@cache
def speed(dtype: torch.dtype, device: torch.device) -> float:
    """How many times as fast as in float32 a matmul is, tried once on a small one; 0 where there is none.

    Of int8 it is `integer_product`.
    """
    if device.type not in SMALL:
        return 1.0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        few, singles = _matmul(dtype, device), _matmul(torch.float32, device)
        for work in (singles, few):  # the first of each is not like the others
            _seconds(work, device)
        return _ratio(lambda: _seconds(singles, device) / _seconds(few, device))
    except (RuntimeError, AttributeError, NotImplementedError):
        return 0.0
    finally:
        torch.set_num_threads(threads)


def _ratio(trial: Callable[[], float]) -> float:
    """The median of as many trials as it takes to be sure on which side of `FAST` it is.

    What `fastest` answers must not hang on what else the machine does, for another precision gives another run: where
    one trial in ten is far off, as by the clock on a busy machine, one answer in thousands is another.
    """
    ratios, lead = list[float](), 0
    while abs(lead) < LEAD and len(ratios) < MOST:
        ratios.append(trial())
        weight = 1 if FAST / CLEAR < ratios[-1] < FAST * CLEAR else 2
        lead += weight if ratios[-1] > FAST else -weight
    return statistics.median(ratios)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether matmuls are faster in bfloat16 there."""
    return speed(torch.bfloat16, device) > FAST


def fastest(device: torch.device, d: int) -> Precision:
    """In which precision to look for the largest products of rows of width d.

    Bfloat16 where it is fast, as it shows few candidates, else eight bits where they are. Not a close call on any
    processor: every run on one of a kind takes the same, whatever else the machine does.
    """
    if device.type == "cuda":
        few = max(("float8", "int8"), key=lambda name: speed(_dtype(name), device))
        if speed(_dtype(few), device) > EIGHT_BITS * max(1, speed(torch.bfloat16, device)):
            return few
    if fast_bfloat16(device):
        return "bfloat16"
    if device.type != "cpu" or not integer_levels() or (integer_levels() < 127 and d < WIDE):
        return "float32"
    return "int8" if speed(torch.int8, device) > FAST else "float32"


def knows(precision: Precision, device: torch.device) -> bool:
    """Whether a processor can screen in that precision."""
    if device.type == "cpu" and precision in ("int8", "float8"):
        return precision == "int8" and integer_levels() > 0
    return precision == "float32" or speed(_dtype(precision), device) > 0


def _dtype(precision: Precision) -> torch.dtype:
    return FLOAT8 if precision == "float8" else getattr(torch, precision)


def _matmul(dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    rows, d, n = SMALL[device.type]
    if dtype == torch.int8 and device.type == "cuda":
        x, weight = (torch.ones(size, d, dtype=dtype, device=device) for size in (rows, n))
        return lambda: integers(x, weight)
    if dtype == FLOAT8:
        x, weight = (torch.ones(size, d, device=device).to(dtype) for size in (rows, n))
        scale, scales = torch.ones(rows, device=device), torch.ones(n, device=device)
        return lambda: eight_bit_floats(x, scale, weight, scales, scales)
    if dtype == torch.int8:
        x, weight = torch.ones(rows, d, dtype=torch.uint8), packed(torch.ones(n, d, dtype=torch.int8))
        return lambda: integer_product(x, 1, weight, n)
    x, weight = (torch.ones(size, d, dtype=dtype, device=device) for size in (rows, n))
    return lambda: linear(x, weight, weight[:, 0].contiguous())


def _seconds(work: Callable[[], Tensor], device: torch.device) -> float:
    """Of a GPU by the clock; of a CPU the time of the one thread that works, without its waits for other work."""
    if device.type != "cuda":
        start = _thread_time()
        work()
        return _thread_time() - start
    start = time.perf_counter()
    for _ in range(AT_ONCE):  # starting one takes about as long as one takes
        work()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / AT_ONCE


_thread_time = time.thread_time if time.get_clock_info("thread_time").resolution < 1e-4 else time.perf_counter
