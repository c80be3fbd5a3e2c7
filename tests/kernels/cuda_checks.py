"""What is claimed of the Triton kernels. test_cuda.py runs this file in processes of its own.

By hand: `pytest tests/kernels/cuda_checks.py` on a GPU; with TRITON_INTERPRET=1 set, in Triton's interpreter.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import linear, normalize

from monosem import kernels
from monosem.kernels import cuda, launch, matmul, plain, reference, sparse, triton_screens
from monosem.kernels.rounding import TINY

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
on_a_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
EXACT, SINGLE = torch.float64, torch.float32
ALL_TYPES = [torch.float64, torch.float32, torch.bfloat16]


def of_all_types(shapes: dict[str, tuple[Any, ...]], first: torch.dtype, *hardest: str) -> list[Any]:
    """Each shape in each type; in the interpreter, which is slow, the other types than the first on the hardest."""
    return [
        pytest.param(*shape, dtype, id=f"{name}-{dtype}")
        for name, shape in shapes.items()
        for dtype in ALL_TYPES
        if DEVICE == "cuda" or dtype == first or name in hardest
    ]


@pytest.fixture(autouse=True)
def _by_triton() -> Iterator[None]:
    with kernels.use_backend("cuda"):
        yield


@pytest.fixture(autouse=True, scope="session")
def _sought_once() -> Iterator[None]:
    """Triton's interpreter seeks all that it replaces in its language at every call, half its time: once is enough."""
    if DEVICE == "cuda":
        yield
        return
    from triton.language import core
    from triton.runtime import interpreter

    names: dict[object, list[str]] = {}

    def replace(place: object, builder: object, scope: Any) -> None:
        if place not in names:
            names[place] = [name for name, member in inspect.getmembers(place) if core.is_builtin(member)]
        for name in names[place]:
            if core.is_builtin(member := getattr(place, name)):  # else it is replaced already
                interpreter._patch_attr(place, name, member, builder, scope)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_builtin", replace)
        yield


def random(*shape: int, seed: int = 0, dtype: torch.dtype = EXACT) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=EXACT)
    return drawn.to(DEVICE, dtype)


def integers(*shape: int, seed: int = 0, dtype: torch.dtype = EXACT) -> Tensor:
    """Small whole numbers: sums of products are exact, and ties are many."""
    return random(*shape, seed=seed).round().to(dtype)


def ragged(*lengths: int) -> Tensor:
    """Offsets of rows of these lengths."""
    return torch.tensor([0, *lengths], device=DEVICE).cumsum(0)


def entries(lengths: list[int], n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Different latents for each row, and the offsets."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(n, generator=generator)[:length] for length in lengths]
    return torch.cat(rows).to(DEVICE, torch.int32), ragged(*lengths)


def rows_of(offsets: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())


def dense_of(values: Tensor, indices: Tensor, offsets: Tensor, n: int) -> Tensor:
    dense = values.new_zeros(len(offsets) - 1, n)
    return dense.index_put((rows_of(offsets), indices.long()), values)


def check_near(found: Tensor, expected: Tensor) -> None:
    """To 1e-10 in float64, 1e-5 in float32, 1e-2 below, of the largest number."""
    bound = {EXACT: 1e-10, SINGLE: 1e-5}.get(found.dtype, 1e-2)
    assert found.shape == expected.shape
    if expected.numel():
        scale = expected.double().abs().max().item()
        assert (found.double() - expected.double()).abs().max().item() <= bound * scale


# Selections -------------------------------------------------------------------------------------------------------

SEVERAL_RUNS = "groups of several runs, the last one short"
SELECTIONS = {
    "one of one": (1, 1, 1),
    "all": (3, 7, 7),
    "batch of one": (1, 50, 4),
    "the largest": (2, 300, 1),
    "groups shorter than a run": (2, 40, 3),
    "groups of one run": (2, 700, 5),
    SEVERAL_RUNS: (2, 3001, 2),
    "half of them": (2, 100, 50),
    "no rows": (0, 9, 2),
}


def check_largest(pre: Tensor, k: int) -> None:
    """Each row has k different places, the numbers there, and the largest ones."""
    values, places = cuda._largest(pre, k)
    assert places.dtype == torch.int32
    assert (places.sort(-1).values.diff(dim=-1) > 0).all()
    assert torch.equal(pre.gather(1, places.long()), values)
    expected = pre.sort(-1, descending=True).values[:, :k]
    assert torch.equal(values.sort(-1, descending=True).values, expected)


@pytest.mark.parametrize(("rows", "n", "k", "dtype"), of_all_types(SELECTIONS, SINGLE, SEVERAL_RUNS, "all"))
def test_the_largest_of_each_row(rows: int, n: int, k: int, dtype: torch.dtype) -> None:
    pre = random(rows, n, dtype=dtype)
    if rows > 1:
        pre[1] = pre[1].round()  # ties
        pre[0] = pre[0].sort().values - 10  # the largest side by side, all negative
    check_largest(pre, k)


def test_the_largest_of_ties_zeros_and_infinities() -> None:
    n = 35 if DEVICE == "cpu" else 130
    pre = torch.zeros(4, n, device=DEVICE)
    pre[1, ::2] = -0.0
    pre[2] = float("-inf")
    pre[2, n // 2] = float("inf")
    pre[3] = torch.tensor([float("-inf"), -1e-45, 1e-45, 3e38, -3e38], device=DEVICE).repeat(n // 5)
    for k in (1, 9, n - 1, n):
        check_largest(pre, k)


def test_numbers_that_are_not_numbers_lead_nowhere_out_of_the_row() -> None:
    pre = torch.full((2, 33), float("nan"), device=DEVICE)
    pre[1] = torch.full((33,), -1, dtype=torch.int32, device=DEVICE).view(torch.float32)  # the least as an integer
    _, places = cuda._largest(pre, 20)
    assert (places.sort(-1).values.diff(dim=-1) > 0).all()
    assert places.min() >= 0
    assert places.max() < 33


def test_more_than_a_program_can_hold_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "WIDEST_SELECTION", 16)
    monkeypatch.setattr(launch, "run", None)
    check_largest(random(3, 200), 20)


@pytest.mark.parametrize(("dtype", "tile"), [(EXACT, 1), (SINGLE, 2**30)])
def test_top_k_equals_dense_whatever_the_tiles(monkeypatch: pytest.MonkeyPatch, tile: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(cuda, "TILE_BYTES", tile)
    rows, n = (3, 40) if DEVICE == "cpu" else (5, 60)
    x, W, bias = (integers(*s, seed=i, dtype=dtype) for i, s in enumerate(((rows, 6), (n, 6), (n,))))
    values, selection = kernels.top_k(x, W, bias, 4)
    assert selection.offsets.tolist() == [4 * i for i in range(rows + 1)]
    found = dense_of(values, selection.indices, selection.offsets, n)
    expected = reference.keep_top_k(reference.pre_activations(x, W, bias), 4)
    assert torch.equal(found.sort(-1).values, expected.sort(-1).values)


TILES = {"none": (0, 1), "one row": (1, 2**30), "tiles of one row": (4, 1), "one tile": (4, 2**30)}


@pytest.mark.parametrize("screen", ["bfloat16", "int8", "float8"])
def test_screened_values_are_exact(screen: kernels.Precision) -> None:
    rows, n, k = (3, 40, 5) if DEVICE == "cpu" else (6, 200, 16)
    x, W = random(rows, 40, dtype=SINGLE), normalize(random(n, 40, seed=1, dtype=SINGLE), dim=1)
    bias = 0.1 * random(n, seed=2, dtype=SINGLE)
    values, selection = kernels.top_k(x, W, bias, k, screen=screen)
    pre = x @ W.T + bias
    values, chosen = values.reshape(rows, k), selection.indices.reshape(rows, k).long()
    check_near(values, pre.gather(1, chosen))
    check_near(values.sort(descending=True).values, pre.topk(k).values)
    assert all(len(set(row)) == k for row in chosen.tolist())


@pytest.mark.parametrize(("rows", "tile", "dtype"), of_all_types(TILES, EXACT, "tiles of one row"))
@pytest.mark.parametrize("per_latent", [False, True])
def test_above_equals_plain_in_every_bit(
    monkeypatch: pytest.MonkeyPatch, rows: int, per_latent: bool, tile: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(cuda, "TILE_BYTES", tile)
    n = 45 if per_latent else 2060
    x, W, bias = (integers(*s, seed=i, dtype=dtype) for i, s in enumerate(((rows, 6), (n, 6), (n,))))
    threshold = integers(n, seed=3, dtype=dtype) + 1 if per_latent else torch.tensor(2.0, dtype=dtype)
    x[rows // 2 : rows // 2 + 1] = 0
    found = cuda.above(x, W, bias, threshold)
    expected = plain.above(x, W, bias, threshold.to(DEVICE))
    assert all(torch.equal(f, e) and f.dtype == e.dtype for f, e in zip(found, expected, strict=True))
    nothing, none, offsets = cuda.above(x, W, bias, torch.tensor(1e9))
    assert nothing.numel() == none.numel() == offsets.sum() == 0


@pytest.mark.parametrize("screen", ["bfloat16", "int8", "float8"])
@pytest.mark.parametrize("guess", [float("-inf"), 0.0, 1.5])
def test_a_screened_batch_selection_misses_nothing(guess: float, screen: kernels.Precision) -> None:
    rows, n, k = (4, 40, 20) if DEVICE == "cpu" else (9, 70, 60)
    x, W = random(rows, 24, dtype=SINGLE), normalize(random(n, 24, seed=1, dtype=SINGLE), dim=1)
    bias = 0.3 * random(n, seed=2, dtype=SINGLE)
    values, selection, cut = kernels.batch_top_k(x, W, bias, k, guess, screen=screen)
    pre = x @ W.T + bias
    check_near(values.sort(descending=True).values, pre.flatten().topk(k).values)
    check_near(values, pre[rows_of(selection.offsets), selection.indices.long()])
    assert cut == values.min()


# Screens ----------------------------------------------------------------------------------------------------------

ONE_BY_ONE = ["plain", "heavy", "constant", "one hot", "tiny", "zeros", "outlier"]
KINDS = [*(ONE_BY_ONE if DEVICE == "cuda" else []), "mixed", "sizes"]  # an interpreter is slow
NAMED: dict[str, Any] = {}
"""Of rows of a kind, what is selected without a screen."""


def hard_rows(kind: str, n: int, d: int, seed: int) -> Tensor:
    if kind == "mixed":
        return torch.stack([hard_rows(ONE_BY_ONE[i % len(ONE_BY_ONE)], n, d, seed)[i] for i in range(n)])
    x = random(n, d, seed=seed, dtype=SINGLE)
    if kind == "heavy":
        x = x / random(n, d, seed=seed + 7, dtype=SINGLE).abs().clamp_min(1e-3)
    if kind == "constant":
        x = x[:, :1].expand(n, d).contiguous()
    if kind == "one hot":
        x = torch.eye(d, device=DEVICE).repeat(-(-n // d), 1)[:n] * 3
    if kind == "sizes":
        x = x * 10.0 ** (torch.arange(n, device=DEVICE)[:, None] % 9 - 4)
    if kind == "zeros":
        x[2::3] = 0
    if kind == "outlier":
        x[:, 3] = 500
    if kind == "tiny":
        x = x * 10.0 ** -(torch.arange(n, device=DEVICE)[:, None] % 8 * 6.0)
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_bounds_hold_and_what_is_found_is_that_of_float64(
    monkeypatch: pytest.MonkeyPatch, kind: str, precision: kernels.Precision
) -> None:
    """No entry is further from what a screen says than it may be, and so the largest found are the largest."""
    monkeypatch.setattr(triton_screens, "ROUNDED", 32)  # an interpreter has few programs rather than small ones
    monkeypatch.setattr(triton_screens, "COLUMNS", 16 if kind == "mixed" else 64)
    rows_of_x, n, tile = (7 if kind == "mixed" else 4, 32, 3) if DEVICE == "cpu" else (10, 90, 7)
    monkeypatch.setattr(cuda, "TILE_BYTES", 4 * n * tile)
    x, W = hard_rows(kind, rows_of_x, 20, 0), hard_rows("sizes" if kind == "sizes" else "plain", n, 20, 1)
    W[7], W[11] = 0, W[10]
    b = random(n, seed=2, dtype=SINGLE) * (100 if kind in ("zeros", "sizes") else 0.1)
    screen, few = triton_screens.Screen.of(W, b, precision), triton_screens.rounded(x, precision)
    for rows, held in ((W, screen.weight), (x, few)):
        kept = held.values.double() * held.scale.double()[:, None]
        for norms, true in ((held.norm, rows.double()), (held.rounded_norm, kept), (held.error, rows.double() - kept)):
            off = (norms.double() - true.norm(dim=1)).abs()
            assert (off <= 1e-4 * true.norm(dim=1) + 1e-6 * held.norm + 0.1 * TINY).all()
    exact = x.double() @ W.double().T + b.double()
    size = x.norm(dim=1).double()[:, None] * W.norm(dim=1).max() + b.abs().max()
    product, everywhere = screen.product(few), torch.zeros(n, device=DEVICE)
    for rank in (1, 8):  # whatever lies above an edge is found
        edges = exact.topk(rank).values[:, -1].float()
        counts = screen.counts(product, few, edges, everywhere)
        offsets = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        places = screen.places(product, few, edges, everywhere, offsets)
        found = torch.zeros_like(exact, dtype=torch.bool)
        found[rows_of(offsets), places.long()] = True
        assert (found | (exact < edges.double()[:, None])).all()
        assert found.sum() == len(places)
        assert all((row.diff() > 0).all() for row in places.split(counts.tolist()))
    values, indices = cuda.top_k_screened(x, W, b, 4, precision, True)
    limits = torch.linspace(0, float(exact.topk(4).values.median()), n)
    if kind not in NAMED:
        selections = cuda.top_k_screened(x, W, b, 4, "float32", True), cuda.above_screened(x, W, b, limits, "float32")
        NAMED[kind] = selections
    named, above = NAMED[kind]
    assert torch.equal(values.sort().values, named[0].sort().values)
    told_apart = ~(x == x[:, :1]).all(1)  # of equal numbers the least difference in rounding makes the order
    assert torch.equal(indices.sort().values[told_apart], named[1].sort().values[told_apart])
    best = exact.topk(4).values
    assert ((values.double().sort(descending=True).values - best).abs() <= 1e-5 * size).all()
    for one, other in zip(above, cuda.above_screened(x, W, b, limits, precision), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_what_is_counted_is_what_is_written_at_the_very_edge(precision: kernels.Precision) -> None:
    """Each row's edge is one entry and its bound, in every bit: to fuse a product and a sum would move the one over it.

    Two kernels that disagree there write an entry into the next row's place, or leave one unwritten.
    """
    rows, n, d = (6, 40, 20) if DEVICE == "cpu" else (3000, 2000, 64)
    x, W, bias = (random(*s, seed=i, dtype=SINGLE) for i, s in enumerate(((rows, d), (n, d), (n,))))
    screen, few = triton_screens.Screen.of(W, bias, precision), triton_screens.rounded(x, precision)
    product, weight = screen.product(few), screen.weight
    near = product.float() * (few.scale[:, None] * weight.scale)
    row_error = 1.001 * few.error + (2 * d + 16) * 2.0**-23 * few.norm + TINY
    bound = row_error[:, None] * (weight.norm + TINY)
    bound = bound + (1.001 * few.rounded_norm + TINY)[:, None] * (weight.error + TINY) + 2.4e-7 * bias.abs()
    if precision == "bfloat16":
        bound = bound + 0.003945 * near.abs()
    most, limits = near + bias + bound, torch.zeros(n, device=DEVICE)
    edges = most.topk(5).values[:, -1].contiguous()
    reaching = most >= edges[:, None]
    counts = screen.counts(product, few, edges, limits)
    assert torch.equal(counts, reaching.sum(1))
    places = screen.places(product, few, edges, limits, torch.nn.functional.pad(counts.cumsum(0), (1, 0)))
    assert torch.equal(places.long(), reaching.nonzero()[:, 1])


def test_rows_that_a_screen_cannot_tell_apart_are_evaluated_whole() -> None:
    n = 40 if DEVICE == "cpu" else 130
    W = torch.ones(n, 24, device=DEVICE) + 1e-5 * random(n, 24, dtype=SINGLE)
    x, b = random(3, 24, seed=1, dtype=SINGLE), torch.zeros(n, device=DEVICE)
    found = cuda.top_k_screened(x, W, b, 3, "bfloat16", True)[0].sort(descending=True).values
    torch.testing.assert_close(found.double(), (x.double() @ W.double().T).topk(3).values, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("rows", "d", "n"), [(1, 5, 3), (33, 20, 22), (16, 16, 16)])
def test_products_of_eight_bits_whatever_their_shape(rows: int, d: int, n: int) -> None:
    """What tensor cores do is what plain arithmetic does; whole numbers come out exact, however large."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 2, (size, d), generator=generator) * 254 - 127 for size in (rows, n))
    found = matmul.integers(a.to(DEVICE, torch.int8), b.to(DEVICE, torch.int8))
    assert torch.equal(found.cpu().double(), a.double() @ b.double().T)
    x, W, bias = random(rows, d, dtype=SINGLE), random(n, d, seed=1, dtype=SINGLE), random(n, seed=2, dtype=SINGLE)
    few, screen = triton_screens.rounded(x, "float8"), triton_screens.Screen.of(W, bias, "float8")
    kept, weight = ((r.values.float() * r.scale[:, None]).double() for r in (few, screen.weight))
    size = kept.norm(dim=1)[:, None] * weight.norm(dim=1) + bias.abs()
    assert ((screen.product(few).double() - kept @ weight.T - bias).abs() <= 0.01 * size).all()
    assert ((kept - x).abs() <= 2**-4 * x.abs() + 2**-9 * few.scale[:, None]).all()


# Evaluation -------------------------------------------------------------------------------------------------------

ROWS = {
    "one entry": ([1], 1, 1),
    "batch of one": ([9], 30, 7),
    "empty rows": ([0, 3, 0, 5, 0], 12, 33),
    "no entries": ([0, 0], 5, 6),
    "all latents": ([20, 20], 20, 40),
    "several blocks of columns": ([20, 2, 9], 24, 75),
}


@pytest.mark.parametrize(("lengths", "n", "d", "dtype"), of_all_types(ROWS, EXACT, "several blocks of columns"))
def test_evaluation_equals_dense(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], n: int, d: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(cuda, "CACHE_BYTES", 1)
    indices, offsets = entries(lengths, n)
    x, W = random(len(lengths), d, dtype=dtype), random(n, d, seed=1, dtype=dtype)
    values = random(len(indices), seed=2, dtype=dtype)
    values[::3] = 0
    codes = dense_of(values.double(), indices, offsets, n)
    dots = (x.double() @ W.double().T)[rows_of(offsets), indices.long()]
    check_near(cuda.gather_dot(x, W, indices, offsets), dots.to(dtype))
    check_near(cuda.weighted_sum(values, indices, offsets, W), (codes @ W.double()).to(dtype))
    bias = random(d, seed=3, dtype=dtype)
    error, products = cuda.decode_error(values, indices, offsets, W, bias, x)
    check_near(error, (x.double() - bias.double() - codes @ W.double()).to(dtype))
    check_near(products, (error.double() @ W.double().T)[rows_of(offsets), indices.long()].to(dtype))
    outer = cuda.scatter_outer(values, *cuda.by_latent(indices, offsets, n), x)
    check_near(outer, (codes.T @ x.double()).to(dtype))
    assert outer.dtype == dtype


def test_a_weight_in_bfloat16_is_read_as_it_is() -> None:
    indices, offsets = entries([4, 7], 20)
    x, W = random(2, 50, dtype=SINGLE), random(20, 50, seed=1, dtype=torch.bfloat16)
    expected = (x @ W.float().T)[rows_of(offsets), indices.long()]
    check_near(cuda.gather_dot(x, W, indices, offsets), expected)


def test_narrow_blocks_of_columns_for_tall_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What depends on the height of the matrix: how many columns are gathered at a time, and how many entries."""
    indices, offsets = entries([50, 3], 90)
    x, W, values = random(2, 200), random(90, 200, seed=1), random(53, seed=2)
    assert cuda._columns(torch.empty(65536, 2304, device="meta")) == 64
    assert cuda._columns(torch.empty(4096, 2304, device="meta")) == 512
    widths: set[int] = set()
    for cache in (1, 90 * 8 * 64, 2**30):
        monkeypatch.setattr(cuda, "CACHE_BYTES", cache)
        widths.add(cuda._columns(W))
        check_near(cuda.gather_dot(x, W, indices, offsets), (x @ W.T)[rows_of(offsets), indices.long()])
        check_near(cuda.weighted_sum(values, indices, offsets, W), dense_of(values, indices, offsets, 90) @ W)
    assert widths == {32, 64, 256}


@pytest.mark.parametrize("slab", [2, 4, 8])
@pytest.mark.parametrize(
    "lengths",
    [[40], [1, 40, 2], [0, 8, 8, 0, 16, 0], [7, 1, 9, 3, 4], [3, 3, 3], [5, 0, 31], [16, 1, 15]],
    ids=str,
)
def test_long_sums_are_made_of_slabs(monkeypatch: pytest.MonkeyPatch, lengths: list[int], slab: int) -> None:
    """Wherever segments begin and end among the slabs; whole numbers, so that a lost or doubled entry must show."""
    monkeypatch.setattr(cuda, "SLAB", slab)
    monkeypatch.setattr(cuda, "GATHERED", 64)  # two entries at a time
    indices, offsets = entries(lengths, 50)
    values, W = integers(len(indices), seed=1) + 10, integers(50, 5, seed=2)
    found = cuda.weighted_sum(values, indices, offsets, W)
    assert torch.equal(found, dense_of(values, indices, offsets, 50) @ W)


def test_a_latent_that_is_on_in_every_row() -> None:
    rows, n = 590, 5
    indices = torch.stack([torch.full((rows,), 3), torch.arange(rows) % 3], 1).reshape(-1).to(DEVICE, torch.int32)
    offsets = torch.arange(rows + 1, device=DEVICE) * 2
    values, y = random(2 * rows, seed=1), random(rows, 6, seed=2)
    by_latent = order, latent_offsets, rows_in_order = cuda.by_latent(indices, offsets, n)
    assert torch.equal(order, torch.argsort(indices, stable=True))
    assert latent_offsets.tolist() == [0, 197, 394, 590, 1180, 1180]
    assert torch.equal(rows_in_order.long(), rows_of(offsets)[order])
    check_near(cuda.scatter_outer(values, *by_latent, y), dense_of(values, indices, offsets, n).T @ y)


def test_dense_and_back() -> None:
    indices, offsets = entries([3, 0, 6], 9)
    values = random(9)
    dense = cuda.to_dense(values, indices, offsets, 9)
    assert torch.equal(dense, dense_of(values, indices, offsets, 9))
    assert torch.equal(cuda.from_dense(dense, indices, offsets), values)


@pytest.mark.parametrize(("select", "dtype"), [("top_k", SINGLE), ("above", EXACT)])
def test_values_and_all_gradients_equal_dense_autograd(
    monkeypatch: pytest.MonkeyPatch, select: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 2.0)
    rows, n = 7, 20
    shapes = ((rows, 6), (n, 6), (n,), (6,), (n, 5))
    x, W_enc, b_enc, b_dec, W_dec = leaves = [
        random(*shape, seed=i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)
    ]
    centred = x - b_dec.detach()
    if select == "top_k":
        _, selection = kernels.top_k(centred, W_enc, b_enc, 4)
    else:
        _, selection = kernels.above(centred, W_enc, b_enc, torch.tensor(3.5))
    indices, offsets = selection.indices, selection.offsets
    seeds = random(rows, 5, seed=9, dtype=dtype)

    values = kernels.encode(centred, W_enc, b_enc, b_dec, selection)
    out = kernels.decode(values.relu(), W_dec, selection)
    grads = torch.autograd.grad((out * seeds).sum(), leaves)

    expected = reference.pre_activations(x, W_enc, b_enc, b_dec)[rows_of(offsets), indices.long()]
    expected_out = reference.decode(dense_of(expected.relu(), indices, offsets, n), W_dec)
    check_near(values, expected)
    check_near(out, expected_out)
    for found, true in zip(grads, torch.autograd.grad((expected_out * seeds).sum(), leaves), strict=True):
        check_near(found, true)


# The optimiser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit_rows", [False, True])
@pytest.mark.parametrize("dtype", [EXACT, SINGLE])
@pytest.mark.parametrize("shape", [(1, 1), (5, 20), (3, 1500)], ids=str)
def test_adam_equals_the_formulas(shape: tuple[int, int], dtype: torch.dtype, unit_rows: bool) -> None:
    start = normalize(random(*shape, dtype=dtype), dim=1)
    grads = [random(*shape, seed=i, dtype=dtype) for i in range(1, 4)]
    parameter, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for step, grad in enumerate(grads, start=1):
        settings = (1e-2, 0.9, 0.99, 1e-8, 1 - 0.9**step, 1 - 0.99**step)
        kernels.adam_(parameter, grad, mean, square, settings, unit_rows=unit_rows)
    expected = reference.adam(start.double(), [g.double() for g in grads], 1e-2, 0.9, 0.99, 1e-8, unit_rows)
    if shape != (1, 1) or not unit_rows:  # there nothing but rounding is left of the gradient
        check_near(parameter, expected.to(dtype))
    if unit_rows:
        check_near(parameter.norm(dim=1), torch.ones(shape[0], dtype=dtype, device=DEVICE))


def test_adam_of_vectors_of_zeros_and_of_rows_too_wide_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (1e-2, 0.9, 0.99, 1e-8, 0.1, 0.01)
    for shape, unit_rows, widest in (((1030,), False, 16384), ((2, 40), True, 16384), ((2, 40), True, 39)):
        monkeypatch.setattr(cuda, "WIDEST_ROW", widest)
        ours = [normalize(random(*shape), dim=-1), random(*shape, seed=1), random(*shape, seed=2), random(*shape) ** 2]
        if unit_rows:
            for tensor in ours:
                tensor[0] = 0
        theirs = [tensor.clone() for tensor in ours]
        cuda.adam_(*ours, settings, unit_rows)  # pyright: ignore
        plain.adam_(*theirs, settings, unit_rows)  # pyright: ignore
        for found, expected in zip(ours, theirs, strict=True):
            check_near(found, expected)


# The device -------------------------------------------------------------------------------------------------------


def test_with_a_fixed_k_nothing_asks_for_a_number_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device there are no numbers: to ask for one is an error."""
    monkeypatch.setattr(launch, "run", lambda *_, **__: None)
    x, W, bias = (torch.empty(shape, device="meta") for shape in ((8, 40), (500, 40), (500,)))
    for screen in ("float32", "bfloat16", "int8", "float8"):
        values, selection = kernels.top_k(x, W, bias, 5, screen=screen)
        values = values.requires_grad_()
        pre = kernels.encode(x, W.requires_grad_(), bias.requires_grad_(), None, selection, values)
        kernels.decode(pre, W, selection).sum().backward()
        kernels.adam_(W.detach(), W.grad, x, x, (1.0,) * 6, unit_rows=True)  # pyright: ignore
    with pytest.raises(RuntimeError, match="meta"):
        kernels.above(x, W, bias, torch.tensor(0.0))


def test_tensors_on_cuda_come_here_where_triton_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_forced", None)
    with FakeTensorMode():
        x = torch.empty(2, device="cuda")
        assert sparse._backend(x) is cuda
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        assert sparse._backend(x) is plain


@on_a_gpu
def test_with_a_fixed_k_nothing_waits_for_the_device() -> None:
    x, W, bias = random(8, 40, dtype=SINGLE), random(500, 40, seed=1, dtype=SINGLE), random(500, seed=2, dtype=SINGLE)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        values, selection = kernels.top_k(x, W.requires_grad_(), bias, 5, screen="bfloat16")
        pre = kernels.encode(x, W, bias, None, selection, values)
        kernels.decode(pre, W, selection).sum().backward()
        kernels.adam_(W.detach(), W.grad, W.grad, W.grad, (1.0,) * 6, unit_rows=True)  # pyright: ignore
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_a_gpu
def test_a_real_size_and_offsets_beyond_32_bits() -> None:
    rows, n, d, k = 300, 1_000_000, 2304, 64
    x, W = random(rows, d, dtype=SINGLE), torch.randn(n, d, device=DEVICE, dtype=torch.bfloat16)
    pre = linear(x.bfloat16(), W)
    check_largest(pre, k)
    check_largest(pre[:, :65536].contiguous(), 80)
    indices = pre.topk(k).indices.reshape(-1).to(torch.int32)
    assert indices.max() > 2**31 / d
    offsets = torch.arange(rows + 1, device=DEVICE) * k
    rows_of_W = [W[i.long()].float() for i in indices.split(k)]
    dots = torch.cat([taken @ row for taken, row in zip(rows_of_W, x, strict=True)])
    check_near(cuda.gather_dot(x, W, indices, offsets), dots)
    values = dots.bfloat16()
    sums = [v.float() @ taken for v, taken in zip(values.split(k), rows_of_W, strict=True)]
    check_near(cuda.weighted_sum(values, indices, offsets, W), torch.stack(sums).bfloat16())
    latent = indices.max()
    outer = cuda.scatter_outer(dots, *cuda.by_latent(indices, offsets, n), x)[latent]
    here = (indices == latent).nonzero()[:, 0]
    check_near(outer, dots[here] @ x[rows_of(offsets)[here]])


@on_a_gpu
def test_the_same_input_gives_the_same_bits() -> None:
    x, W, bias = (random(*s, seed=i, dtype=SINGLE) for i, s in enumerate(((500, 300), (3000, 300), (3000,))))

    def outcome() -> list[Tensor]:
        values, selection = kernels.top_k(x, W, bias, 20, screen="bfloat16")
        outer = cuda.scatter_outer(values, *selection.by_latent(cuda), x)
        sums = cuda.weighted_sum(values, selection.indices, selection.offsets, W)
        leaves = [x.clone().requires_grad_(), W.clone().requires_grad_(), bias.clone().requires_grad_()]
        b_dec = torch.zeros(300, device=DEVICE, requires_grad=True)
        pre = kernels.encode(leaves[0], leaves[1], leaves[2], b_dec, selection, values)
        grads = torch.autograd.grad(kernels.decode(pre, leaves[1], selection).pow(2).sum(), [*leaves, b_dec])
        return [values, selection.indices, outer, sums, *grads]

    for first, second in zip(outcome(), outcome(), strict=True):
        assert torch.equal(first, second)


@on_a_gpu
@pytest.mark.parametrize("shape", [(), (3,), (300,)], ids=str)
def test_sums_by_number_have_the_same_bits_every_time(shape: tuple[int, ...]) -> None:
    numbers = torch.randint(0, 50, (100_000,), generator=torch.Generator().manual_seed(0), dtype=torch.int32).to(DEVICE)
    values, total = random(100_000, *shape, dtype=SINGLE), random(50, *shape, seed=1, dtype=SINGLE)
    first, *others = (kernels.index_add_(total.clone(), numbers, values) for _ in range(5))
    assert all(torch.equal(first, other) for other in others)
    check_near(first, total.double().index_add_(0, numbers, values.double()).float())


@on_a_gpu
@pytest.mark.parametrize("precision", ["int8", "float8"])
def test_what_a_screen_of_eight_bits_shows_is_what_plain_arithmetic_shows(precision: kernels.Precision) -> None:
    if not kernels.knows(precision, torch.device("cuda")):
        pytest.skip(f"this GPU has no tensor cores for {precision}")
    x, W, bias = (random(*s, seed=i, dtype=SINGLE) for i, s in enumerate(((3000, 576), (8192, 576), (8192,))))
    screen, few = triton_screens.Screen.of(W, bias, precision), triton_screens.rounded(x, precision)
    kept, weight = ((r.values.float() * r.scale[:, None]) for r in (few, screen.weight))
    expected = kept.double() @ weight.double().T + bias
    product = screen.product(few)
    if precision == "int8":
        assert torch.equal(product.double(), few.values.double() @ screen.weight.values.double().T)
        product = product * few.scale[:, None] * screen.weight.scale + bias
    size = kept.norm(dim=1)[:, None] * weight.norm(dim=1) + bias.abs()
    assert ((product.double() - expected).abs() <= 0.004 * size).all()
    values, selection = kernels.top_k(x, W, bias, 32, screen=precision)
    pre = x @ W.T + bias
    chosen = selection.indices.reshape(3000, 32).long()
    check_near(values.reshape(3000, 32), pre.gather(1, chosen))
    same = (chosen.sort().values == pre.topk(32).indices.sort().values).all(1)
    assert same.double().mean() > 0.95


@on_a_gpu
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_exact_selections_at_a_real_size(precision: kernels.Precision) -> None:
    """The values that are found are the same bits as without a screen, row by row."""
    if not kernels.knows(precision, torch.device("cuda")):
        pytest.skip(f"this GPU has no tensor cores for {precision}")
    x, W, bias = (random(*s, seed=i, dtype=SINGLE) for i, s in enumerate(((3000, 2304), (20000, 2304), (20000,))))
    W = normalize(W, dim=1)
    found, named = (cuda.top_k_screened(x, W, bias, 64, name, True) for name in (precision, "float32"))
    assert torch.equal(found[0].sort().values, named[0].sort().values)
    assert torch.equal(found[1].sort().values, named[1].sort().values)
    limit = torch.tensor(float(found[0].median()))
    for one, other in zip(*(cuda.above_screened(x, W, bias, limit, n) for n in (precision, "float32")), strict=True):
        assert torch.equal(one, other)
