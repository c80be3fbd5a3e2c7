"""Screening in bfloat16, and Adam in one pass."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from monosem import kernels
from monosem.kernels import reference


@pytest.mark.parametrize("backend", ["cpu", "plain"])
def test_screened_values_are_exact_and_almost_every_row_is_the_float32_selection(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 64, generator=generator)
    W = normalize(torch.randn(3000, 64, generator=generator), dim=1)
    b = 0.1 * torch.randn(3000, generator=generator)
    with kernels.use_backend(backend):
        values, selection = kernels.top_k(x, W, b, 32, screen=True)
    pre = x @ W.T + b
    chosen = selection.indices.reshape(600, 32).long()
    torch.testing.assert_close(values.reshape(600, 32), pre.gather(1, chosen), rtol=1e-5, atol=1e-5)
    exact = pre.topk(32).values
    differing = ((values.reshape(600, 32).sort(descending=True).values - exact).abs() > 1e-5).any(1)
    assert differing.double().mean() < 0.01
    assert all(len(set(row)) == 32 for row in chosen.tolist())


def test_screening_keeps_the_order_of_all_bfloat16_numbers() -> None:
    from monosem.kernels import cpu

    numbers = torch.randn(4, 1000).bfloat16()
    numbers[0, :4] = torch.tensor([0.0, float("-inf"), float("inf"), -1e-30]).bfloat16()
    ordered = numbers.clone().view(torch.int16)
    cpu._order_as_integers(ordered.numpy())
    for row, integers in zip(numbers, ordered, strict=True):
        assert torch.equal(row[integers.long().argsort()], row.sort().values)


def test_screening_is_left_out_where_all_latents_would_be_candidates() -> None:
    x, W = torch.randn(5, 8), torch.randn(12, 8)
    values, _ = kernels.top_k(x, W, torch.zeros(12), 8, screen=True)
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
        values, selection, cut = kernels.batch_top_k(x, W, b, 7000, guess, screen=True)
    expected = (x @ W.T + b).flatten().topk(7000).values
    torch.testing.assert_close(values.sort(descending=True).values, expected, rtol=1e-5, atol=1e-5)
    assert cut == values.min()
    rows = torch.repeat_interleave(torch.arange(700), selection.offsets.diff())
    exact = (x @ W.T + b)[rows, selection.indices.long()]
    torch.testing.assert_close(values, exact, rtol=1e-5, atol=1e-5)
