"""TopKSAE: loss and all gradients equal twenty dense lines."""

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


def dense_loss(sae: TopKSAE, x: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The formulas, in which every tensor is whole."""
    pre = (x - sae.b_dec if sae.subtract_b_dec else x) @ sae.W_enc.T + sae.b_enc
    reconstruction = keep_top_k(pre, sae.k).relu() @ sae.W_dec + sae.b_dec
    terms = {"mse": (target - reconstruction).pow(2).sum(-1).mean() / sae.d_out}
    loss = terms["mse"]
    if sae.multi_coefficient:
        wider = keep_top_k(pre, min(4 * sae.k, sae.n_latents)).relu() @ sae.W_dec + sae.b_dec
        terms["multi"] = (target - wider).pow(2).sum(-1).mean() / sae.d_out
        loss = loss + sae.multi_coefficient * terms["multi"]
    return loss, terms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d_out", [None, 16, 11])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"multi_coefficient": 0.125}, id="Multi-TopK"),
        pytest.param({"multi_coefficient": 0.125, "k": 40}, id="Multi-TopK of all latents"),
    ],
)
def test_loss_and_all_gradients_equal_the_dense_reference(
    settings: dict[str, float],
    d_out: int | None,
    dtype: torch.dtype,
    make_sae: MakeSAE,
    assert_near: Callable[[Tensor, Tensor], None],
) -> None:
    """As an autoencoder, and as a transcoder to another width."""
    sae = make_sae(TopKSAE, 16, 120, d_out=d_out, dtype=dtype, **{"k": 6, **settings})
    assert isinstance(sae, TopKSAE)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 16, generator=generator, dtype=torch.float64).to(dtype)
    target = x if d_out is None else torch.randn(200, d_out, generator=generator, dtype=torch.float64).to(dtype)

    found = sae.training_loss(x, target, TrainingContext())
    expected, terms = dense_loss(sae, x, target)
    assert_near(found.loss, expected)
    assert found.terms.keys() == terms.keys()
    for name, term in terms.items():
        assert_near(found.terms[name], term)
    grads = [torch.autograd.grad(loss, list(sae.parameters())) for loss in (found.loss, expected)]
    for grad, expected_grad in zip(*grads, strict=True):
        assert_near(grad, expected_grad)


def test_fired_counts_the_rows_on_which_a_latent_is_above_zero(make_sae: MakeSAE) -> None:
    sae, x = make_sae(TopKSAE, k=12, transform="none"), torch.randn(90, 7, dtype=torch.float64)
    out = sae.training_loss(x, x, TrainingContext())
    assert torch.equal(out.fired, (sae.encode(x).to_dense() > 0).sum(0))
    assert out.fired.sum() < 90 * 12  # a k so large that ReLU cuts some
    assert torch.allclose(out.residual, x - sae(x).reconstruction, rtol=0, atol=1e-12)
    assert not out.residual.requires_grad


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
