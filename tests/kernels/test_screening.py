"""Screens of few bits, and Adam in one pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from monosem import kernels
from monosem.kernels import cpu, matmul, reaching, reference, rounding, screening
from monosem.kernels.rounding import Precision


@pytest.mark.parametrize("backend", ["cpu", "plain"])
def test_screened_values_are_exact_and_almost_every_row_is_the_float32_selection(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 64, generator=generator)
    W = normalize(torch.randn(3000, 64, generator=generator), dim=1)
    b = 0.1 * torch.randn(3000, generator=generator)
    with kernels.use_backend(backend):
        values, selection = kernels.top_k(x, W, b, 32, screen="bfloat16")
    pre = x @ W.T + b
    chosen = selection.indices.reshape(600, 32).long()
    torch.testing.assert_close(values.reshape(600, 32), pre.gather(1, chosen), rtol=1e-5, atol=1e-5)
    exact = pre.topk(32).values
    differing = ((values.reshape(600, 32).sort(descending=True).values - exact).abs() > 1e-5).any(1)
    assert differing.double().mean() < 0.01
    assert all(len(set(row)) == 32 for row in chosen.tolist())


def hard_rows(kind: str, n: int, d: int, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(n, d, generator=generator)
    if kind == "heavy":
        x = x / torch.rand(n, d, generator=generator).clamp_min(1e-3)
    if kind == "constant":
        x = x[:, :1].expand(n, d).contiguous()
    if kind == "one hot":
        x = torch.eye(d).repeat(-(-n // d), 1)[:n] * 3
    if kind == "sizes":
        x = x * 10.0 ** torch.randint(-4, 5, (n, 1), generator=generator)
    if kind == "zeros":
        x[::3] = 0
    if kind == "outlier":
        x[:, 3] = 500
    if kind == "tiny":
        x = x * 10.0 ** -(torch.arange(n)[:, None] % 8 * 6.0)
    return x


KINDS = ["plain", "heavy", "constant", "one hot", "sizes", "zeros", "outlier", "tiny"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold_and_what_is_found_is_that_of_float64(kind: str, precision: Precision) -> None:
    """|x . w + b - s| <= e for every entry, in float64; and with it, the k largest are the k largest."""
    if precision == "int8" and not matmul.integer_levels():
        pytest.skip("this processor's int8 products are not to be had")
    generator = torch.Generator().manual_seed(3)
    x, W = hard_rows(kind, 70, 96, generator), hard_rows("sizes" if kind == "sizes" else "plain", 2100, 96, generator)
    W[7], W[11] = 0, W[10]
    b = torch.randn(2100, generator=generator) * (100 if kind in ("zeros", "sizes") else 0.1)
    screen = screening.Screen.of(W, b, precision, x)
    rounded = screen.rounded(x)
    product = screen.product(rounded)
    scale, of_norm, of_error = (torch.from_numpy(a).double() for a in screen.rows(rounded, 96))
    s = product.double() * scale[:, None] * screen.weight.scale.double()
    own = screening.OUTPUT if product.dtype == torch.bfloat16 else 0
    norm, error = (torch.from_numpy(a).double() for a in screen.latents()[2:])
    e = of_norm[:, None] * norm + of_error[:, None] * error + own * s.abs()
    exact = x.double() @ W.double().T
    assert ((exact - s).abs() <= e + 2.4e-7 * b.abs().double()).all()
    values, indices = cpu.top_k_screened(x, W, b, 8, "float32", True)
    named = cpu.top_k_screened(x, W, b, 8, precision, True)
    assert torch.equal(values, named[0])
    assert torch.equal(indices, named[1])
    torch.testing.assert_close(kernels.top_k(x, W, b, 8)[0].reshape(70, 8).sort(descending=True).values, values)
    best = (exact + b.double()).topk(8).values
    size = x.norm(dim=1).double()[:, None] * W.norm(dim=1).max() + b.abs().max()
    assert ((values.double() - best).abs() <= 1e-5 * size).all()
    limits = torch.linspace(0, float(best.median()), 2100)
    above, held = (cpu.above_screened(x, W, b, limits, name) for name in ("float32", precision))
    assert all(torch.equal(one, other) for one, other in zip(above, held, strict=True))
    inside = (exact + b.double() > limits + 1e-5 * size).sum()
    assert inside <= len(held[0]) <= (exact + b.double() > limits - 1e-5 * size).sum()


def test_rows_that_a_screen_cannot_tell_apart_are_evaluated_whole() -> None:
    W = torch.ones(4096, 64) + 1e-5 * torch.randn(4096, 64)
    x = torch.randn(100, 64)
    b = torch.zeros(4096)

    def evaluated(rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        return (rows @ W.T).gather(1, places.long())

    for precision in ("bfloat16", "int8") if matmul.integer_levels() else ("bfloat16",):
        screen = screening.Screen.of(W, b, precision, x)
        assert screening.largest(x, screen, 16, evaluated).unsure.any()
        found = cpu.top_k_screened(x, W, b, 16, precision, True)[0]
        expected = (x.double() @ W.double().T).topk(16).values
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


def test_coordinates_many_times_as_large_as_others_cost_few_levels() -> None:
    """Columns are made even by powers of two: without, almost every latent would be a candidate."""
    if not matmul.integer_levels():
        pytest.skip("this processor's int8 products are not to be had")
    generator = torch.Generator().manual_seed(0)
    x, W = torch.randn(64, 96, generator=generator), torch.randn(4096, 96, generator=generator)
    x[:, 3] *= 300
    W[:, 3] /= 300
    b, factors = torch.zeros(4096), rounding.column_factors(x, W)
    assert factors[3] >= 128
    assert (factors.log2() == factors.log2().round()).all()
    evaluated = lambda rows, places: (rows @ W.T).gather(1, places.long())  # noqa: E731
    found = screening.largest(x, screening.Screen.of(W, b, "int8", x), 8, evaluated)
    assert not found.unsure.any()
    assert len(found.others) < 64 * 200
    even = torch.where(torch.arange(96) == 3, 300.0, 1.0)
    same = screening.largest(x / even, screening.Screen.of(W * even, b, "int8", x / even), 8, evaluated)
    assert len(same.others) < 64 * 200


@pytest.mark.parametrize("count", [1, 2, 31, 96])
def test_the_nth_largest_whatever_the_numbers(count: int) -> None:
    rows = torch.randn(40, 96)
    rows[::3] = rows[::3].round()
    rows[1], rows[2], rows[4, :50], rows[5] = float("-inf"), 0.0, float("-inf"), -1 - rows[5].abs()
    for row in rows:
        assert reaching.nth_largest(row.numpy(), count) == row.sort(descending=True).values[count - 1]


def test_values_have_the_same_bits_in_any_company() -> None:
    """However many rows come together, and whatever else is a candidate."""
    x, W, b = torch.randn(130, 100), torch.randn(2500, 100), torch.randn(2500)
    together = cpu.top_k_screened(x, W, b, 20, "bfloat16", True)[0]
    alone = [cpu.top_k_screened(row, W, b, 20, "float32", True)[0] for row in x.split(1)]
    assert torch.equal(together, torch.cat(alone))


def test_products_of_integers_do_not_overflow() -> None:
    """With the levels that this processor is trusted with, products as large as there are come out right."""
    levels = matmul.integer_levels()
    if not levels:
        pytest.skip("this processor's int8 products are not to be had")
    x = torch.tensor([0, 2 * levels + 1], dtype=torch.uint8)[torch.randint(0, 2, (64, 768))]
    weight = torch.tensor([-127, 127], dtype=torch.int8)[torch.randint(0, 2, (512, 768))]
    found = matmul.integer_product(x, levels + 1, matmul.packed(weight), 512).double()
    expected = (x.double() - levels - 1) @ weight.double().T
    assert ((found - expected).abs() <= 2**-8 * expected.abs()).all()


def test_screening_is_left_out_where_all_latents_would_be_candidates() -> None:
    x, W = torch.randn(5, 8), torch.randn(12, 8)
    values, _ = kernels.top_k(x, W, torch.zeros(12), 8, screen="bfloat16")
    assert torch.equal(
        values.reshape(5, 8).sort().values, kernels.top_k(x, W, torch.zeros(12), 8)[0].reshape(5, 8).sort().values
    )


@pytest.mark.parametrize("backend", ["cpu", "plain"])
@pytest.mark.parametrize("unit_rows", [False, True])
def test_adam_equals_the_formulas(backend: str, unit_rows: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    start = normalize(torch.randn(50, 20, generator=generator, dtype=torch.float64), dim=1)
    grads = [torch.randn(50, 20, generator=generator, dtype=torch.float64) for _ in range(6)]
    parameter, mean, square = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    with kernels.use_backend(backend):
        for step, grad in enumerate(grads, start=1):
            settings = (1e-2, 0.9, 0.99, 1e-8, 1 - 0.9**step, 1 - 0.99**step)
            kernels.adam_(parameter, grad, mean, square, settings, unit_rows=unit_rows)
    expected = reference.adam(start, grads, 1e-2, 0.9, 0.99, 1e-8, unit_rows)
    torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-12)
    if unit_rows:
        torch.testing.assert_close(parameter.norm(dim=1), torch.ones(50, dtype=torch.float64))


def test_adam_equals_torch() -> None:
    ours, theirs = torch.nn.Parameter(torch.randn(30)), torch.nn.Parameter(torch.zeros(30))
    theirs.data.copy_(ours.data)
    mean, square = torch.zeros(30), torch.zeros(30)
    optimizer = torch.optim.Adam([theirs], lr=3e-3)
    for step in range(1, 8):
        grad = torch.randn(30)
        theirs.grad = grad.clone()
        optimizer.step()
        with torch.no_grad():
            settings = (3e-3, 0.9, 0.999, 1e-8, 1 - 0.9**step, 1 - 0.999**step)
            kernels.adam_(ours, grad, mean, square, settings, unit_rows=False)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "plain"])
@pytest.mark.parametrize("guess", [-0.5, 0.0, 1.0, 2.5])
def test_a_screened_batch_selection_misses_nothing(backend: str, guess: float) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(700, 48, generator=generator) * torch.rand(700, 1, generator=generator) * 4
    W = normalize(torch.randn(900, 48, generator=generator), dim=1)
    b = 0.3 * torch.randn(900, generator=generator)
    with kernels.use_backend(backend):
        values, selection, cut = kernels.batch_top_k(x, W, b, 7000, guess, screen="bfloat16")
    expected = (x @ W.T + b).flatten().topk(7000).values
    torch.testing.assert_close(values.sort(descending=True).values, expected, rtol=1e-5, atol=1e-5)
    assert cut == values.min()
    rows = torch.repeat_interleave(torch.arange(700), selection.offsets.diff())
    exact = (x @ W.T + b)[rows, selection.indices.long()]
    torch.testing.assert_close(values, exact, rtol=1e-5, atol=1e-5)
