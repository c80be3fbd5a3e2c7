"""TopKSAE: loss and all gradients equal twenty dense lines; the sizes that AuxK can meet."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from monosem.errors import ConfigError
from monosem.kernels import sparse
from monosem.kernels.reference import keep_top_k
from monosem.sae import SAE, TopKSAE, TrainingContext

MakeSAE = Callable[..., SAE]


@pytest.fixture(params=["sparse", "dense"], autouse=True)
def evaluation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 2.0 if request.param == "sparse" else -1.0)


def dense_loss(sae: TopKSAE, x: Tensor, target: Tensor, dead: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
    """The formulas, in which every tensor is whole."""
    pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    reconstruction = keep_top_k(pre, sae.k).relu() @ sae.W_dec + sae.b_dec
    terms = {"mse": (target - reconstruction).pow(2).sum(-1).mean() / sae.d_out}
    loss = terms["mse"]
    if sae.multi_coefficient:
        wider = keep_top_k(pre, min(4 * sae.k, sae.n_latents)).relu() @ sae.W_dec + sae.b_dec
        terms["multi"] = (target - wider).pow(2).sum(-1).mean() / sae.d_out
        loss = loss + sae.multi_coefficient * terms["multi"]
    if sae.aux_coefficient and dead is not None:
        residual, n_dead = (target - reconstruction).detach(), int(dead.sum())
        speaking = keep_top_k(pre[:, dead], min(sae.k_aux, n_dead)).relu()
        terms["aux"] = (residual - speaking @ sae.W_dec[dead]).pow(2).sum() / residual.pow(2).sum()
        loss = loss + sae.aux_coefficient * terms["aux"] if n_dead else loss
    return loss, terms


def dead_latents(n: int, share: float) -> Tensor:
    dead = torch.zeros(n, dtype=torch.bool)
    dead[torch.randperm(n, generator=torch.Generator().manual_seed(5))[: round(share * n)]] = True
    return dead


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own_target", [False, True])
@pytest.mark.parametrize(
    ("share_dead", "settings"),
    [
        pytest.param(None, {}, id="none dead yet"),
        pytest.param(0.2, {"aux_coefficient": 0}, id="without AuxK"),
        pytest.param(0.2, {"k_aux": 50}, id="fewer dead than k_aux"),
        pytest.param(0.2, {"k_aux": 24}, id="as many dead as k_aux"),
        pytest.param(0.2, {"k_aux": 5}, id="more dead than k_aux"),
        pytest.param(0.2, {}, id="k_aux of half d"),
        pytest.param(1.0, {"k_aux": 30}, id="all dead"),
        pytest.param(None, {"multi_coefficient": 0.125}, id="Multi-TopK"),
        pytest.param(0.2, {"multi_coefficient": 0.125, "k": 40}, id="Multi-TopK of all latents, and AuxK"),
    ],
)
def test_loss_and_all_gradients_equal_the_dense_reference(
    share_dead: float | None,
    settings: dict[str, float],
    own_target: bool,
    dtype: torch.dtype,
    make_sae: MakeSAE,
    assert_near: Callable[[Tensor, Tensor], None],
) -> None:
    sae = make_sae(TopKSAE, 16, 120, dtype=dtype, **{"k": 6, "aux_coefficient": 0.5, **settings})
    assert isinstance(sae, TopKSAE)
    generator = torch.Generator().manual_seed(1)
    x, other = torch.randn(2, 200, 16, generator=generator, dtype=torch.float64).to(dtype)
    target = other if own_target else x
    dead = dead_latents(120, share_dead) if share_dead is not None else None

    found = sae.training_loss(x, target, TrainingContext(dead))
    expected, terms = dense_loss(sae, x, target, dead)
    assert_near(found.loss, expected)
    assert found.terms.keys() == terms.keys()
    for name, term in terms.items():
        assert_near(found.terms[name], term)
    grads = [torch.autograd.grad(loss, list(sae.parameters())) for loss in (found.loss, expected)]
    for grad, expected_grad in zip(*grads, strict=True):
        assert_near(grad, expected_grad)


@pytest.mark.parametrize("k_aux", [23, 24, 25])
def test_of_dead_latents_that_are_all_above_zero_only_k_aux_speak(
    k_aux: int, make_sae: MakeSAE, assert_near: Callable[[Tensor, Tensor], None]
) -> None:
    sae, dead = make_sae(TopKSAE, 16, 120, k=6, k_aux=k_aux), dead_latents(120, 0.2)
    assert isinstance(sae, TopKSAE)
    with torch.no_grad():
        sae.b_enc[dead] += 20
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = sae.training_loss(x, x, TrainingContext(dead)).terms["aux"]
    expected, fewer = (aux_of(sae, x, dead, n) for n in (k_aux, k_aux - 1))
    assert_near(found, expected)
    assert not torch.allclose(found, fewer) or k_aux > 24


def aux_of(sae: TopKSAE, x: Tensor, dead: Tensor, k_aux: int) -> Tensor:
    sae.k_aux, kept = k_aux, sae.k_aux
    aux = dense_loss(sae, x, x, dead)[1]["aux"]
    sae.k_aux = kept
    return aux


def test_aux_is_zero_and_harmless_while_no_latent_is_dead(make_sae: MakeSAE) -> None:
    sae, x = make_sae(TopKSAE, k=4), torch.randn(30, 7, dtype=torch.float64)
    out = sae.training_loss(x, x, TrainingContext(torch.zeros(20, dtype=torch.bool)))
    assert out.terms["aux"] == 0
    assert out.loss == out.terms["mse"]


def test_a_perfect_reconstruction_leaves_aux_finite(make_sae: MakeSAE) -> None:
    """The residual's energy, by which AuxK is divided, is then zero."""
    sae = make_sae(TopKSAE, 7, 9, k=1)
    x = torch.randn(5, 7, dtype=torch.float64)
    target = sae.training_loss(x, x, TrainingContext()).reconstruction
    out = sae.training_loss(x, target, TrainingContext(torch.ones(9, dtype=torch.bool)))
    out.loss.backward()
    assert out.terms["mse"] == 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in sae.parameters())


def test_fired_counts_the_rows_on_which_a_latent_is_above_zero(make_sae: MakeSAE) -> None:
    sae, x = make_sae(TopKSAE, k=12, transform="none"), torch.randn(90, 7, dtype=torch.float64)
    out = sae.training_loss(x, x, TrainingContext())
    assert torch.equal(out.fired, (sae.encode(x).to_dense() > 0).sum(0))
    assert out.fired.sum() < 90 * 12  # a k so large that ReLU cuts some
    assert torch.allclose(out.reconstruction, sae(x).reconstruction, rtol=0, atol=1e-12)
    assert not out.reconstruction.requires_grad


def test_reported_loss_is_the_fraction_of_variance_unexplained() -> None:
    """On inputs of the transform's scale the mean predictor has loss 1 (E||x||^2 is near d where E||x|| is sqrt(d))."""
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    sae = TopKSAE(64, 128, k=4)
    sae.initialise(x)
    torch.nn.init.constant_(sae.b_enc, -1e3)  # nothing is on: the reconstruction is the mean
    inputs = sae.transform(x)
    assert sae.training_loss(inputs, inputs, TrainingContext()).loss.item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("k", [0, -1, 21])
def test_a_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match="between 1 and n_latents = 20"):
        TopKSAE(7, 20, k=k)
    assert TopKSAE(7, 20, k=20).k == 20
