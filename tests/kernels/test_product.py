"""Products of matrices: exact where sums are, and of the same bits whatever the number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from monosem.kernels.matmul import SUMMED, product

SHAPES = [(1, 1, 1), (1, 300, 90), (23, 3 * SUMMED + 5, 1), (70, 24, 90), (70, SUMMED + 1, 24), (24, 70, 90), (0, 3, 4)]


@pytest.fixture(autouse=True)
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.parametrize("turned", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_product_and_does_not_change_with_the_threads(
    shape: tuple[int, int, int], turned: tuple[bool, bool]
) -> None:
    (rows, inner, columns), generator = shape, torch.Generator().manual_seed(0)
    a, b = torch.randn(rows, inner, generator=generator), torch.randn(inner, columns, generator=generator)
    a, b = (x.T.contiguous().T if turn else x for x, turn in zip((a, b), turned, strict=True))
    found: list[torch.Tensor] = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(product(a, b))
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert torch.equal(product(a.round(), b.round()), a.round() @ b.round())
    for dtype in (torch.float64, torch.bfloat16):
        torch.testing.assert_close(product(a.to(dtype), b.to(dtype)), a.to(dtype) @ b.to(dtype))
