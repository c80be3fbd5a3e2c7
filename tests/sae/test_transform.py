"""InputTransform: centred, of norm sqrt(d) on average, and exactly reversible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from monosem.errors import ConfigError, DataError
from monosem.sae import InputTransform


def vectors(rows: int = 500, d: int = 9, seed: int = 0) -> Tensor:
    """Far from centred, and of a different size in every direction."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(rows, d, generator=generator, dtype=torch.float64)
    return noise * torch.linspace(0.1, 30, d) + torch.randn(d, generator=generator, dtype=torch.float64) * 50


def fitted(kind: str, x: Tensor) -> InputTransform:
    transform = InputTransform(x.shape[1], kind, dtype=torch.float64)  # pyright: ignore[reportArgumentType]
    transform.fit(x)
    return transform


def test_centre_scale_gives_mean_zero_and_mean_norm_sqrt_d() -> None:
    x = vectors()
    transform = fitted("centre_scale", x)
    y = transform(x)
    assert transform.fitted
    assert torch.allclose(y.mean(0), torch.zeros(9, dtype=torch.float64), atol=1e-13)
    assert y.norm(dim=-1).mean().item() == pytest.approx(3, rel=1e-13)


def test_centre_alone_keeps_the_scale_and_scale_alone_the_mean() -> None:
    x = vectors()
    assert torch.allclose(fitted("centre", x)(x), x - x.mean(0), rtol=0, atol=1e-12)
    y = fitted("scale", x)(x)
    assert y.norm(dim=-1).mean().item() == pytest.approx(3, rel=1e-13)
    assert torch.allclose(y / y.norm(), x / x.norm(), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", ["centre_scale", "centre", "scale", "none"])
def test_inverse_undoes_it(kind: str) -> None:
    x = vectors()
    transform = fitted(kind, x)
    other = vectors(seed=1).reshape(5, 100, 9)
    assert torch.allclose(transform.inverse(transform(other)), other, rtol=1e-13, atol=1e-13)
    assert torch.allclose(transform(transform.inverse(other)), other, rtol=1e-12, atol=1e-12)


def test_none_is_the_identity_and_needs_no_fit() -> None:
    transform, x = InputTransform(9, "none"), vectors()
    assert transform.fitted
    transform.fit(x)
    assert transform(x) is x
    assert transform.inverse(x) is x


@given(st.integers(1, 2000), st.floats(-1e3, 1e3), st.sampled_from([torch.float32, torch.float64]))
def test_rows_that_are_all_the_same_cannot_be_scaled(rows: int, size: float, dtype: torch.dtype) -> None:
    """Although their mean may differ from them by rounding."""
    x = (size * vectors(1)).to(dtype).expand(rows, 9)
    with pytest.raises(DataError, match="are the same"):
        InputTransform(9).fit(x)


def test_small_but_real_differences_are_scaled() -> None:
    x = vectors(1) + 1e-6 * vectors()
    assert fitted("centre_scale", x)(x).norm(dim=-1).mean().item() == pytest.approx(3, rel=1e-6)


def test_float32_rows_are_averaged_in_float64() -> None:
    x = (vectors(20_000) + 1e4).float()
    transform = InputTransform(9)
    transform.fit(x)
    assert torch.equal(transform.mean, x.double().mean(0).float())


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="choose one of centre_scale"):
        InputTransform(9, "whiten-ish")  # pyright: ignore[reportArgumentType]
