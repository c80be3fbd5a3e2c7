"""InputTransform: centred, of norm sqrt(d) on average, and exactly reversible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from monosem.errors import ConfigError, DataError
from monosem.sae import SAE, InputTransform, TopKSAE, load_sae
from monosem.sae.transform import Moments


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
    with pytest.raises(ConfigError, match="kind must be one of 'centre_scale'"):
        InputTransform(9, "whiten-ish")  # pyright: ignore[reportArgumentType]


# Whitening --------------------------------------------------------------------------------------------------------


def correlated(rows: int = 2000, d: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(rows, d, generator=generator, dtype=torch.float64) @ mixing + 20


@pytest.mark.parametrize("kind", ["whiten", "whiten_pca"])
def test_whitened_rows_are_centred_uncorrelated_and_of_variance_1(kind: str) -> None:
    x = correlated()
    y = fitted(kind, x)(x)
    assert torch.allclose(y.mean(0), torch.zeros(6, dtype=torch.float64), atol=1e-11)
    assert torch.allclose(y.T @ y / len(y), torch.eye(6, dtype=torch.float64), atol=1e-9)


def test_zca_moves_rows_least_and_pca_orders_them_by_variance() -> None:
    """ZCA is the whitening whose matrix is symmetric and positive; PCA's rows are eigenvectors of the covariance."""
    x = correlated()
    A, _ = affine(fitted("whiten", x))
    assert torch.allclose(A, A.T, atol=1e-12)
    assert (torch.linalg.eigvalsh(A) > 0).all()
    A, _ = affine(fitted("whiten_pca", x))
    covariance = torch.cov(x.T, correction=0)
    assert torch.allclose(A @ covariance @ A.T, torch.eye(6, dtype=torch.float64), atol=1e-9)
    directions = A / A.norm(dim=1, keepdim=True)
    assert torch.allclose(directions @ directions.T, torch.eye(6, dtype=torch.float64), atol=1e-9)


def test_directions_without_variance_do_not_blow_up() -> None:
    x = correlated()
    x = torch.cat([x, x[:, :2] - 1], dim=1)  # rank 6 of 8
    transform = fitted("whiten", x)
    y = transform(x)
    assert torch.isfinite(y).all()
    assert y.abs().max() < 20
    assert torch.allclose(transform.inverse(y), x, rtol=0, atol=1e-9)


def test_too_few_rows_to_whiten_say_so() -> None:
    with pytest.raises(DataError, match="cannot whiten 6 dimensions from 6 rows"):
        fitted("whiten", correlated(6))
    with pytest.raises(DataError, match="are the same"):
        fitted("whiten", torch.ones(50, 6))


# LayerNorm --------------------------------------------------------------------------------------------------------


def test_layer_norm_is_torch_s_and_needs_no_fit() -> None:
    x, transform = vectors(), InputTransform(9, "layer_norm", dtype=torch.float64)
    assert transform.fitted
    assert torch.allclose(transform(x), torch.nn.functional.layer_norm(x, (9,), eps=1e-12), atol=1e-12)
    assert torch.allclose(transform(x).norm(dim=-1), torch.full((500,), 3.0, dtype=torch.float64), atol=1e-9)


def test_layer_norm_is_undone_with_the_rows_and_not_without() -> None:
    transform, x, y = InputTransform(9, "layer_norm", dtype=torch.float64), vectors(), vectors(seed=1)
    assert torch.allclose(transform.inverse(transform(x), x), x, rtol=1e-12, atol=1e-12)
    assert torch.allclose(transform(transform.inverse(y, x), like=x), y, rtol=1e-10, atol=1e-10)
    constant = torch.full((3, 9), 7.0, dtype=torch.float64)
    assert torch.equal(transform(constant), torch.zeros_like(constant))
    assert torch.equal(transform.inverse(transform(constant), constant), constant)
    with pytest.raises(ConfigError, match=r"sae\.decode\(codes, x\)"):
        transform.inverse(y)


# What all have in common ------------------------------------------------------------------------------------------

KINDS = ["centre_scale", "centre", "scale", "none", "whiten", "whiten_pca"]


def affine(transform: InputTransform) -> tuple[Tensor, Tensor]:
    found = transform.affine()
    assert found is not None
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_an_affine_transform_is_its_matrix_and_its_shift_exactly(kind: str) -> None:
    transform, x = fitted(kind, correlated()), correlated(50, seed=1)
    A, b = affine(transform)
    back = transform.inverse_affine()
    assert back is not None
    assert torch.allclose(x @ A.T + b, transform(x), rtol=1e-12, atol=1e-11)
    assert torch.allclose(transform(x) @ back[0].T + back[1], x, rtol=1e-12, atol=1e-10)
    assert torch.allclose(transform.inverse(transform(x)), x, rtol=1e-12, atol=1e-10)


def test_layer_norm_is_no_affine_map() -> None:
    transform = InputTransform(6, "layer_norm")
    assert transform.affine() is None
    assert transform.inverse_affine() is None
    assert transform.per_row


@pytest.mark.parametrize("kind", KINDS)
def test_folded_into_the_weights_it_changes_no_pre_activation_and_no_reconstruction(
    kind: str, make_sae: Callable[..., SAE]
) -> None:
    sae, x = make_sae(TopKSAE, d_in=6, n_latents=20, k=5, transform=kind), correlated(40, seed=1)
    sae.transform.fit(correlated())
    A, b = affine(sae.transform)
    back = sae.transform.inverse_affine()
    assert back is not None
    folded = make_sae(TopKSAE, d_in=6, n_latents=20, k=5, transform="none")
    with torch.no_grad():
        folded.W_enc.copy_(sae.W_enc @ A)
        folded.W_dec.copy_(sae.W_dec @ back[0].T)
        folded.b_dec.copy_(back[0] @ sae.b_dec + back[1])
        folded.b_enc.copy_(sae.b_enc + sae.W_enc @ (b - sae.b_dec) + folded.W_enc @ folded.b_dec)
    one, other = sae(x), folded(x)
    assert torch.allclose(one.codes.to_dense(), other.codes.to_dense(), rtol=1e-9, atol=1e-9)
    assert torch.allclose(one.reconstruction, other.reconstruction, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [*KINDS, "layer_norm"])
def test_a_loaded_sae_takes_and_returns_raw_activations(
    kind: str, make_sae: Callable[..., SAE], tmp_path: Path
) -> None:
    sae, x = make_sae(TopKSAE, d_in=6, n_latents=20, k=5, transform=kind), correlated(40, seed=1)
    sae.transform.fit(correlated())
    sae.save(tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.transform.fitted
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)
    inner = sae.encode(x).to_dense() @ sae.W_dec + sae.b_dec
    assert torch.allclose(sae(x).reconstruction, sae.transform.inverse(inner, x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [*KINDS, "layer_norm"])
def test_first_reconstructions_have_the_input_s_energy_in_transformed_units(kind: str) -> None:
    x = correlated()
    sae = TopKSAE(6, 30, k=4, transform=kind, dtype=torch.float64)  # pyright: ignore[reportArgumentType]
    sae.initialise(x)
    codes = sae.encode(x[:1024])
    energy = (codes.to_dense() @ sae.W_dec + sae.b_dec).pow(2).sum()
    assert energy.item() == pytest.approx(sae.transform(x[:1024]).pow(2).sum().item(), rel=1e-6)


def test_an_sae_saved_before_there_was_whitening_still_loads(tmp_path: Path, make_sae: Callable[..., SAE]) -> None:
    sae = make_sae(TopKSAE, k=3)
    sae.save(tmp_path)
    assert {n for n in load_file(tmp_path / "sae.safetensors") if "transform" in n} == {
        "transform.mean",
        "transform.scale",
    }
    assert load_sae(tmp_path).transform.kind == "centre_scale"


# One streaming pass -----------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 300), min_size=1, max_size=8).filter(lambda s: sum(s) > 20), seed=st.integers(0, 9)
)
def test_moments_of_batches_are_those_of_all_rows(sizes: list[int], seed: int) -> None:
    x = correlated(sum(sizes), seed=seed)
    streamed, merged = Moments(covariance=True), Moments(covariance=True)
    for part in x.split(sizes):
        streamed.add(part)
        if len(part):
            merged.merge(Moments.of(part, covariance=True))
    for found in (streamed, merged):
        assert found.n == len(x)
        assert torch.allclose(found.mean, x.mean(0), rtol=1e-12, atol=1e-12)
        assert torch.allclose(found.covariance, torch.cov(x.T, correction=0), rtol=1e-10, atol=1e-10)
        assert found.norm == pytest.approx(x.norm(dim=1).mean().item(), rel=1e-12)


def test_no_digits_are_lost_where_the_mean_is_large() -> None:
    """E[x^2] - E[x]^2 would be wrong from the first digit on."""
    x = correlated(3000)
    moments = Moments(covariance=True)
    for part in (x + 1e9).split(500):
        moments.add(part)
    assert torch.allclose(moments.covariance, torch.cov(x.T, correction=0), rtol=1e-6, atol=1e-6)
    naive = ((x + 1e9).T @ (x + 1e9)) / len(x) - torch.outer((x + 1e9).mean(0), (x + 1e9).mean(0))
    assert (naive - torch.cov(x.T, correction=0)).abs().max() > 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_transform_fitted_on_batches_is_the_one_fitted_on_all_rows(kind: str) -> None:
    x = correlated(20_000)
    whole, streamed = fitted(kind, x), InputTransform(6, kind, dtype=torch.float64)  # pyright: ignore
    streamed.fit(x.split(4096))
    assert streamed.fitted
    assert torch.allclose(streamed(x), whole(x), rtol=1e-3, atol=1e-3)
    if kind not in ("centre_scale",):
        assert torch.allclose(streamed(x), whole(x), rtol=1e-9, atol=1e-9)


def test_a_transform_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        InputTransform(6).fit(torch.zeros(0, 6))
    with pytest.raises(DataError, match="no rows"):
        InputTransform(6).fit(iter([]))
