"""SparseCodes stand for a dense tensor: every operation equals the same one on that tensor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.errors import ConfigError


@st.composite
def dense_tensors(draw: st.DrawFn, min_batch_dims: int = 1) -> Tensor:
    """Float64, with zeros, negative numbers, empty rows and perhaps no rows at all."""
    batch = draw(st.lists(st.integers(0, 5), min_size=min_batch_dims, max_size=2))
    n_latents, seed = draw(st.integers(1, 9)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(*batch, n_latents, generator=generator, dtype=torch.float64)
    on = torch.rand(*batch, 1, generator=generator) > torch.rand(*batch, n_latents, generator=generator)
    return dense * on


def stored_untidily(dense: Tensor) -> SparseCodes:
    """A plain loop: the entries of each row in a random order, and some zeros stored among them."""
    generator = torch.Generator().manual_seed(dense.numel())
    values, indices, offsets = [], [], [0]
    for row in dense.reshape(-1, dense.shape[-1]):
        for latent in torch.randperm(len(row), generator=generator).tolist():
            if row[latent] != 0 or latent % 3 == 0:
                values.append(row[latent].item())
                indices.append(latent)
        offsets.append(len(values))
    return SparseCodes(
        torch.tensor(values, dtype=dense.dtype),
        torch.tensor(indices, dtype=torch.int32),
        torch.tensor(offsets),
        dense.shape[-1],
        tuple(dense.shape[:-1]),
    )


@given(dense_tensors(min_batch_dims=0))
def test_from_dense_and_to_dense_are_inverse(dense: Tensor) -> None:
    codes = SparseCodes.from_dense(dense)
    assert codes.shape == dense.shape
    assert codes.indices.dtype == torch.int32
    assert codes.values.numel() == (dense != 0).sum()
    assert torch.equal(codes.to_dense(), dense)


@given(dense_tensors())
def test_stored_zeros_and_order_do_not_matter(dense: Tensor) -> None:
    codes = stored_untidily(dense)
    assert torch.equal(codes.to_dense(), dense)
    assert torch.equal(codes.l0(), (dense != 0).sum(-1))
    assert torch.equal(codes.firing_counts(), (dense != 0).reshape(-1, dense.shape[-1]).sum(0))


@given(dense_tensors(), st.integers(1, 12))
def test_top_gives_the_strongest_entries_that_are_not_zero(dense: Tensor, k: int) -> None:
    values, indices = stored_untidily(dense).top(k)
    assert values.shape == indices.shape == (*dense.shape[:-1], k)
    rows = dense.reshape(-1, dense.shape[-1])
    for row, row_values, row_indices in zip(rows, values.reshape(-1, k), indices.reshape(-1, k), strict=True):
        expected = sorted((v for v in row.tolist() if v != 0), reverse=True)[:k]
        n = len(expected)
        assert row_values.tolist() == expected + [0.0] * (k - n)
        assert row[row_indices[:n].long()].tolist() == expected
        assert row_indices[n:].tolist() == [-1] * (k - n)


@given(dense_tensors(), st.data())
def test_select_equals_dense_columns(dense: Tensor, data: st.DataObject) -> None:
    latents = data.draw(st.lists(st.integers(0, dense.shape[-1] - 1), unique=True))
    codes = stored_untidily(dense)
    expected = dense[..., torch.tensor(latents, dtype=torch.int64)]
    assert torch.equal(codes.select(latents).to_dense(), expected)
    assert torch.equal(codes.select(torch.tensor(latents, dtype=torch.int64)).to_dense(), expected)


ONE_DIMENSION = {
    "int": 3,
    "negative": -1,
    "slice": slice(1, 5, 2),
    "nothing": slice(0, 0),
    "mask": torch.tensor([True, False, True, True, False, False]),
    "empty mask": torch.zeros(6, dtype=torch.bool),
    "list": [4, 0, 4],
    "tensor": torch.tensor([[1, 2], [3, 3]]),
    "ellipsis": ...,
}
TWO_DIMENSIONS = {
    "int": 1,
    "slice": slice(None, None, 2),
    "pair": (2, 1),
    "column": (slice(None), 0),
    "block": (slice(1, 3), slice(0, 1)),
    "lists": ([0, 2], [1, 0]),
    "mask": torch.tensor([[True, False], [False, False], [True, True]]),
    "rows by mask": torch.tensor([True, False, True]),
    "list": [2, 2, 0],
    "none": (slice(None), None, 0),
}
KEYS = [pytest.param((6,), key, id=f"1-D {name}") for name, key in ONE_DIMENSION.items()]
KEYS += [pytest.param((3, 2), key, id=f"2-D {name}") for name, key in TWO_DIMENSIONS.items()]


@pytest.mark.parametrize(("batch", "key"), KEYS)
def test_indexing_equals_dense_indexing(batch: tuple[int, ...], key: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(*batch, 5, generator=generator, dtype=torch.float64)
    dense[dense < 0.2] = 0
    part = stored_untidily(dense)[key]
    expected = dense[key]
    assert part.shape == expected.shape
    assert torch.equal(part.to_dense(), expected)
    assert torch.equal(part.l0(), (expected != 0).sum(-1))
    assert part.top(2)[0].shape == (*expected.shape[:-1], 2)


@given(st.data(), st.booleans())
def test_cat_equals_dense_cat(data: st.DataObject, two_dimensions: bool) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    lengths = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=4))
    shape = (2, 6) if two_dimensions else (6,)
    parts = [torch.randn(n, *shape, generator=generator).relu() for n in lengths]
    whole = SparseCodes.cat([stored_untidily(part) for part in parts])
    assert whole.shape == (sum(lengths), *shape)
    assert torch.equal(whole.to_dense(), torch.cat(parts))


def test_from_top_k_keeps_every_entry_in_its_row() -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 0.0]]])
    indices = torch.tensor([[[4, 0], [1, 2]]], dtype=torch.int32)
    codes = SparseCodes.from_top_k(values, indices, 5)
    expected = torch.tensor([[[2.0, 0, 0, 0, 1], [0, 3, 0, 0, 0]]])
    assert torch.equal(codes.to_dense(), expected)
    assert SparseCodes.from_top_k(torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.int32), 5).l0().tolist() == [0] * 3


@given(dense_tensors())
def test_gradients_flow_through_every_operation_as_through_dense(dense: Tensor) -> None:
    """A weighted sum of the outcome has the same gradient on both ways, on the entries that are on."""
    latents = list(range(0, dense.shape[-1], 2))
    operations = {
        "to_dense": (lambda c: c.to_dense(), lambda t: t),
        "select": (lambda c: c.select(latents).to_dense(), lambda t: t[..., latents]),
        "index": (lambda c: c[1:].to_dense(), lambda t: t[1:]),
        "cat": (lambda c: SparseCodes.cat([c, c]).to_dense(), lambda t: torch.cat([t, t])),
        "top": (lambda c: c.top(99)[0], lambda t: t.sort(-1, descending=True).values),
    }
    for sparse_operation, dense_operation in operations.values():
        x, y = dense.abs().requires_grad_(), dense.abs().requires_grad_()
        found, expected = sparse_operation(SparseCodes.from_dense(x)), dense_operation(y)
        weights = torch.randn(found.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        (found * weights).sum().backward()
        (expected * weights[..., : expected.shape[-1]]).sum().backward()
        assert x.grad is not None
        assert y.grad is not None
        assert torch.allclose(x.grad, y.grad * (y != 0), rtol=1e-12, atol=1e-12)


def test_to_dense_passes_gradients_to_stored_zeros() -> None:
    values = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
    codes = SparseCodes(values, torch.tensor([2, 0, 1], dtype=torch.int32), torch.tensor([0, 2, 3]), 3)
    (codes.to_dense() * torch.arange(6.0).reshape(2, 3)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [2, 0, 4]
    assert not codes.detach().values.requires_grad


def test_moves_and_prints() -> None:
    codes = SparseCodes.from_dense(torch.eye(3).reshape(3, 1, 3))
    assert torch.equal(codes.to("cpu").to_dense(), codes.to_dense())
    assert "shape=(3, 1, 3), mean L0 1.0" in repr(codes)


def test_latents_that_are_not_there_or_named_twice_are_refused() -> None:
    codes = SparseCodes.from_dense(torch.eye(3))
    for latents in ([3], [-1], [0, 0]):
        with pytest.raises(ConfigError, match="different latents from 0 to 2"):
            codes.select(latents)
    with pytest.raises(ConfigError, match="cannot be -1"):
        codes.top(-1)
    assert codes.select([]).to_dense().shape == (3, 0)
