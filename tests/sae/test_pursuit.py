"""Pursuit equals its textbook definitions, row by row; matching pursuit as an SAE equals its unrolled steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

import monosem as ms
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, DataError
from monosem.kernels import gram_pursuit, sparse
from monosem.kernels.reference import keep_top_k
from monosem.sae import (
    SAE,
    Crosscoder,
    CrossLayerTranscoder,
    MatchingPursuitSAE,
    ReLUSAE,
    TopKSAE,
    TrainingContext,
    Transcoder,
    pursuit,
)
from monosem.sae.weights import row_norms

MakeSAE = Callable[..., SAE]
Near = Callable[..., None]
METHODS = ["omp", "gradient", "matching"]


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error(sae: SAE, x: Tensor, codes: SparseCodes) -> Tensor:
    return (x - sae.decode(codes)).pow(2).sum(-1)


def by_hand(atoms: np.ndarray, x: np.ndarray, k: int, method: str, nonnegative: bool) -> np.ndarray:
    """One row's coefficients, as the textbooks have it, with other people's least squares."""
    w, chosen, residual = np.zeros(len(atoms)), list[int](), x
    for _ in range(k):
        scores = atoms @ residual
        pick = int((scores if nonnegative else np.abs(scores)).argmax())
        if method == "matching":
            w[pick] += scores[pick]
        elif method == "omp":
            chosen.append(pick)
            basis = atoms[chosen].T
            solution = nnls(basis, x)[0] if nonnegative else np.linalg.lstsq(basis, x, rcond=None)[0]
            w[:] = 0
            w[chosen] = solution
        else:
            on = w != 0
            on[pick] = True
            slope = scores * on
            change = slope @ atoms
            w = w + (change @ residual) / (change @ change) * slope
            w = np.maximum(w, 0) if nonnegative else w
        residual = x - w @ atoms
    return w


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_codes_equal_the_textbook_row_by_row(
    method: str, nonnegative: bool, make_sae: MakeSAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pursuit, "TILE_NUMBERS", 16 * 7 * 3)  # three rows at once
    sae, x = make_sae(TopKSAE, 16, 50, k=3), normal(20, 16)
    wanted = (sae.transform(x) - sae.b_dec).detach().numpy()
    found = ms.pursue(sae, x, k=7, method=method, nonnegative=nonnegative).to_dense()  # pyright: ignore
    atoms = sae.W_dec.detach().numpy()
    expected = np.stack([by_hand(atoms, row, 7, method, nonnegative) for row in wanted])
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("refit", [True, False])
@pytest.mark.parametrize("nonnegative", [True, False])
def test_gradient_pursuit_is_the_same_with_and_without_the_table_of_products(
    nonnegative: bool, refit: bool, make_sae: MakeSAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, x = make_sae(TopKSAE, 16, 50, k=3), normal(30, 16)
    x[7] = sae.decode(SparseCodes.from_dense(torch.zeros(1, 50, dtype=torch.float64)))[0]  # nothing to find
    found = []
    for limit in (gram_pursuit.TABLE_BYTES, 0):
        monkeypatch.setattr(gram_pursuit, "TABLE_BYTES", limit)
        found.append(ms.pursue(sae, x, k=12, method="gradient", nonnegative=nonnegative, refit=refit).to_dense())
    torch.testing.assert_close(*found, rtol=0, atol=1e-10)
    assert found[0][7].abs().max() < 1e-12


def test_what_omp_leaves_is_orthogonal_to_what_it_chose(make_sae: MakeSAE) -> None:
    sae, x = make_sae(TopKSAE, 16, 50, k=3), normal(20, 16)
    codes = ms.pursue(sae, x, k=6, nonnegative=False)
    assert (codes.l0() == 6).all()
    left = sae.target_transform(x) - sae.target_transform(sae.decode(codes))
    products = (left @ sae.W_dec.T)[codes.rows(), codes.indices.long()]
    assert products.abs().max() < 1e-12


def test_what_nonnegative_omp_leaves_points_away_from_what_it_chose(make_sae: MakeSAE) -> None:
    """The conditions of Karush, Kuhn and Tucker; no code is negative."""
    sae, x = make_sae(TopKSAE, 16, 50, k=3), normal(20, 16)
    codes = ms.pursue(sae, x, k=9)
    assert (codes.values > 0).all()
    assert (codes.l0() <= 9).all()
    left = sae.target_transform(x) - sae.target_transform(sae.decode(codes))
    assert (left @ sae.W_dec.T)[codes.rows(), codes.indices.long()].abs().max() < 1e-12


@pytest.mark.parametrize("correlated", [0.0, 3.0])
def test_least_squares_equal_those_of_scipy(correlated: float) -> None:
    chosen = normal(60, 8, 12) + correlated * normal(60, 1, 12, seed=4)
    x, allowed = normal(60, 12, seed=5), normal(60, 8, seed=6) > -1
    found = pursuit.solve(chosen, x, allowed, nonnegative=True)
    free = pursuit.solve(chosen, x, allowed, nonnegative=False)
    for row in range(60):
        basis, on = chosen[row][allowed[row]].T.numpy(), allowed[row]
        np.testing.assert_allclose(found[row][on], nnls(basis, x[row].numpy())[0], rtol=0, atol=1e-10)
        lstsq = np.linalg.lstsq(basis, x[row].numpy(), rcond=None)[0]
        np.testing.assert_allclose(free[row][on].numpy(), lstsq, rtol=0, atol=1e-9)
        assert not found[row][~on].any()
    assert (found == 0).sum() > (~allowed).sum()  # the bounds were met


@pytest.mark.parametrize(
    ("method", "nonnegative"), [("omp", True), ("omp", False), ("matching", True), ("matching", False), ("gradient", 0)]
)
def test_the_error_never_grows_with_k(method: str, nonnegative: bool, make_sae: MakeSAE) -> None:
    """Nonnegative gradient pursuit has no such promise: setting a coefficient to zero can undo a step."""
    sae, x = make_sae(TopKSAE, 16, 50, k=3), normal(40, 16)
    errors = [
        error(sae, x, ms.pursue(sae, x, k=k, method=method, nonnegative=bool(nonnegative)))  # pyright: ignore
        for k in (1, 2, 4, 8, 16)
    ]
    for more, fewer in zip(errors[1:], errors, strict=False):
        assert (more <= fewer + 1e-12).all()
        assert more.sum() < fewer.sum()


@pytest.mark.parametrize("method", ["gradient", "matching"])
def test_a_refit_of_the_same_latents_never_does_worse(method: str, make_sae: MakeSAE) -> None:
    sae, x = make_sae(TopKSAE, 16, 50, k=3), normal(40, 16)
    errors: list[Tensor] = []
    for refit in (False, True):
        codes = ms.pursue(sae, x, k=6, method=method, refit=refit)  # pyright: ignore
        errors.append(error(sae, x, codes))
    assert (errors[1] <= errors[0] + 1e-12).all()
    assert errors[1].sum() < errors[0].sum()


@pytest.mark.parametrize("method", METHODS)
def test_with_an_orthonormal_dictionary_all_are_topk(method: str) -> None:
    sae, x = TopKSAE(16, 16, k=4, transform="none", dtype=torch.float64), normal(30, 16)
    with torch.no_grad():
        sae.W_dec.copy_(torch.linalg.qr(normal(16, 16, seed=2))[0])
        sae.W_enc.copy_(sae.W_dec)
        sae.b_dec.normal_()
    found = ms.pursue(sae, x, k=4, method=method).to_dense()  # pyright: ignore
    torch.testing.assert_close(found, sae.encode(x).to_dense(), rtol=0, atol=1e-12)


def test_planted_codes_are_recovered_where_the_encoder_is_useless(
    planted: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    directions, x = planted(d=32, features=48, rows=500, on=0.05)
    sae = ReLUSAE(32, 48, transform="none")
    with torch.no_grad():
        sae.W_dec.copy_(directions)
    codes = ms.pursue(sae, x, k=12)
    assert (error(sae, x, codes) < 1e-8).double().mean() > 0.95


@pytest.mark.parametrize(
    ("cls", "options"),
    [(ReLUSAE, {}), (Transcoder, {"d_out": 11, "k": 3}), (Crosscoder, {"k": 3}), (MatchingPursuitSAE, {"k": 3})],
)
def test_any_dictionary_can_be_searched_and_its_decoder_norms_do_not_matter(
    cls: type[SAE], options: dict[str, int], make_sae: MakeSAE
) -> None:
    sae = make_sae(cls, 16, 50, **options)
    x = normal(3, 4, *sae.out_shape)
    codes = ms.pursue(sae, x, k=5)
    assert codes.shape == (3, 4, 50)
    before = sae.decode(codes)
    with torch.no_grad():
        sae.W_dec.mul_(torch.linspace(0.2, 5, 50)[:, None])
    torch.testing.assert_close(sae.decode(ms.pursue(sae, x, k=5)), before, rtol=0, atol=1e-10)
    assert ms.pursue(sae, x[:0], k=5).shape == (0, 4, 50)


def test_what_is_made_up_already_takes_no_more_latents(make_sae: MakeSAE) -> None:
    sae = make_sae(TopKSAE, 16, 50, k=3, transform="none")
    codes = SparseCodes.from_dense(torch.zeros(2, 50, dtype=torch.float64).index_fill(1, torch.tensor([7]), 2.0))
    for method in METHODS:
        found = ms.pursue(sae, sae.decode(codes), k=20, method=method)  # pyright: ignore
        torch.testing.assert_close(found.to_dense(), codes.to_dense(), rtol=0, atol=1e-12)
        assert found.indices.tolist() == [7, 7]


def test_what_cannot_be_searched_is_refused() -> None:
    sae, x = TopKSAE(16, 50, k=3), torch.randn(4, 16)
    with pytest.raises(ConfigError, match="method must be one of 'omp', 'gradient', 'matching'"):
        ms.pursue(sae, x, k=3, method="greedy")  # pyright: ignore
    with pytest.raises(ConfigError, match="k must be between 1 and n_latents = 50, got 0"):
        ms.pursue(sae, x, k=0)
    with pytest.raises(DataError, match=r"shape \(16,\), got \(4, 15\)"):
        ms.pursue(sae, x[:, 1:], k=3)
    with pytest.raises(ConfigError, match="no single W_dec"):
        ms.pursue(CrossLayerTranscoder(16, 50, n_layers=2), torch.randn(4, 2, 16), k=3)


# Matching pursuit as an architecture ------------------------------------------------------------------------------


def unrolled(sae: MatchingPursuitSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Dense codes and what is left, by autograd through every step."""
    residual, codes = x - sae.b_dec, torch.zeros(len(x), sae.n_latents, dtype=x.dtype)
    for _ in range(sae.k):
        step = keep_top_k(residual @ sae.W_dec.T, 1).relu()
        codes, residual = codes + step, residual - step @ sae.W_dec
    return codes, residual


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matching_pursuit_loss_and_gradients_equal_the_dense_steps(
    dtype: torch.dtype, make_sae: MakeSAE, assert_near: Near
) -> None:
    """With more steps than a small dictionary has use for: latents come again."""
    sae, x = make_sae(MatchingPursuitSAE, 8, 14, k=9, dtype=dtype), normal(120, 8).to(dtype)
    assert isinstance(sae, MatchingPursuitSAE)
    codes, residual = unrolled(sae, x)
    assert (codes > 0).sum(1).min() < 9
    found = sae.training_loss(x, x, TrainingContext())
    expected = residual.pow(2).mean()
    assert_near(found.loss.detach(), expected.detach())
    assert_near(found.residual, residual.detach())
    assert torch.equal(found.fired, (codes > 0).sum(0))
    grads = [torch.autograd.grad(loss, [sae.W_dec, sae.b_dec]) for loss in (found.loss, expected)]
    for grad, dense in zip(*grads, strict=True):
        assert_near(grad, dense)


@pytest.mark.parametrize("always_dense", [False, True])
def test_matching_pursuit_codes_equal_the_dense_steps_and_so_do_gradients_through_them(
    always_dense: bool, make_sae: MakeSAE, assert_near: Near, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", -1.0 if always_dense else 2.0)
    sae, weights = make_sae(MatchingPursuitSAE, 8, 14, k=9, transform="none"), normal(120, 14, seed=3)
    assert isinstance(sae, MatchingPursuitSAE)
    grads: list[tuple[Tensor, ...]] = []
    for own in (True, False):
        x = normal(120, 8).requires_grad_()
        codes = sae.encode(x).to_dense() if own else unrolled(sae, x)[0]
        reconstruction = sae(x).reconstruction if own else codes @ sae.W_dec + sae.b_dec
        assert_near(codes.detach(), unrolled(sae, x)[0].detach())
        loss = (codes * weights).sum() + reconstruction.pow(3).sum()
        grads.append(torch.autograd.grad(loss, [x, sae.W_dec, sae.b_dec]))
    for grad, dense in zip(*grads, strict=True):
        assert_near(grad, dense)


def test_matching_pursuit_encodes_as_pursue_does(make_sae: MakeSAE) -> None:
    sae, x = make_sae(MatchingPursuitSAE, 16, 50, k=6), normal(40, 16)
    found = ms.pursue(sae, x, k=6, method="matching").to_dense()
    torch.testing.assert_close(sae.encode(x).to_dense().detach(), found, rtol=0, atol=1e-12)


def test_matching_pursuit_keeps_one_matrix_through_training_and_files(
    planted: Callable[..., tuple[Tensor, Tensor]], tmp_path: object
) -> None:
    directions, x = planted()
    sae = MatchingPursuitSAE(16, 48, k=3)
    ms.fit(sae, x, tokens=150_000, config=ms.TrainingConfig(batch_size=512, lr=1e-2), progress=False)
    assert sae.W_enc is sae.W_dec
    torch.testing.assert_close(row_norms(sae.W_dec)[:, 0], torch.ones(48), rtol=0, atol=1e-5)
    assert ((directions @ sae.W_dec.T).amax(1) > 0.9).double().mean() > 0.8
    sae.save(f"{tmp_path}/sae")
    loaded = MatchingPursuitSAE.load(f"{tmp_path}/sae")
    assert loaded.W_enc is loaded.W_dec
    assert torch.equal(loaded(x[:50]).reconstruction, sae(x[:50]).reconstruction)


def test_matching_pursuit_cannot_be_a_transcoder() -> None:
    with pytest.raises(ConfigError, match="leave d_out"):
        MatchingPursuitSAE(16, 50, d_out=11)
    with pytest.raises(ConfigError, match="k must be between"):
        MatchingPursuitSAE(16, 50, k=51)
