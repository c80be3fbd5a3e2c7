"""Revival: gradients equal the dense formula, for any architecture, whatever share of the latents is dead."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from monosem.kernels import sparse
from monosem.kernels.reference import keep_top_k
from monosem.sae import SAE, BatchTopKSAE, MatryoshkaSAE, ReLUSAE, TopKSAE, TrainingContext
from monosem.training.revival import RevivalConfig, add_revival

MakeSAE = Callable[..., SAE]
Near = Callable[[Tensor, Tensor], None]


@pytest.fixture(params=["sparse", "dense"], autouse=True)
def evaluation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 2.0 if request.param == "sparse" else -1.0)


def dead_latents(n: int, share: float) -> Tensor:
    dead = torch.zeros(n, dtype=torch.bool)
    dead[torch.randperm(n, generator=torch.Generator().manual_seed(5))[: round(share * n)]] = True
    return dead


def dense_aux_k(sae: SAE, x: Tensor, residual: Tensor, dead: Tensor, k_aux: int | None) -> Tensor:
    """The formula, in which every tensor is whole."""
    pre = (x - sae.b_dec if sae.subtract_b_dec else x) @ sae.W_enc.T + sae.b_enc
    speaking = keep_top_k(pre[:, dead], min(k_aux or sae.d_out // 2, int(dead.sum()))).relu()
    return (residual - speaking @ sae.W_dec[dead]).pow(2).sum() / residual.pow(2).sum()


@pytest.mark.parametrize(("share_dead", "k_aux"), [(0.2, 50), (0.2, 24), (0.2, 5), (0.2, None), (1.0, 30), (0.01, 8)])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (TopKSAE, {"k": 6}),
        (TopKSAE, {"k": 6, "d_out": 11}),
        (BatchTopKSAE, {"k": 6}),
        (MatryoshkaSAE, {}),
        (ReLUSAE, {}),
    ],
)
def test_aux_k_adds_the_gradient_of_the_dense_formula(
    cls: type[SAE],
    options: dict[str, int],
    share_dead: float,
    k_aux: int | None,
    make_sae: MakeSAE,
    assert_near: Near,
) -> None:
    sae, dead = make_sae(cls, 16, 120, **options), dead_latents(120, share_dead)
    x = torch.randn(60, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.randn(60, sae.d_out, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    out = sae.training_loss(x, target, TrainingContext())
    aux = dense_aux_k(sae, x, out.residual, dead, k_aux)
    expected = torch.autograd.grad(out.loss + 0.5 * aux, list(sae.parameters()), retain_graph=True)

    out.loss.backward()
    config = RevivalConfig(coefficient=0.5, k_aux=k_aux)
    terms = add_revival(sae, config, dead, sae.centred(x).detach(), out.residual)
    assert_near(terms["aux"], aux.detach())
    for parameter, grad in zip(sae.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert_near(parameter.grad, grad)


@pytest.mark.parametrize("k_aux", [23, 24, 25])
def test_of_dead_latents_that_are_all_above_zero_only_k_aux_speak(
    k_aux: int, make_sae: MakeSAE, assert_near: Near
) -> None:
    sae, dead = make_sae(TopKSAE, 16, 120, k=6), dead_latents(120, 0.2)
    with torch.no_grad():
        sae.b_enc[dead] += 20
    x, residual = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = add_revival(sae, RevivalConfig(k_aux=k_aux), dead, sae.centred(x).detach(), residual)["aux"]
    expected, fewer = (dense_aux_k(sae, x, residual, dead, n).detach() for n in (k_aux, k_aux - 1))
    assert_near(found, expected)
    assert not torch.allclose(found, fewer) or k_aux > 24


@pytest.mark.parametrize("config", [RevivalConfig(), RevivalConfig(method="none"), RevivalConfig(coefficient=0)])
def test_nothing_happens_while_no_latent_is_dead_or_where_it_is_left_out(
    config: RevivalConfig, make_sae: MakeSAE
) -> None:
    sae, x = make_sae(TopKSAE, k=4), torch.randn(30, 7, dtype=torch.float64)
    dead = torch.zeros(20, dtype=torch.bool) if config == RevivalConfig() else torch.ones(20, dtype=torch.bool)
    terms = add_revival(sae, config, dead, x, x)
    assert not any(terms.values())
    assert all(p.grad is None for p in sae.parameters())


def test_a_perfect_reconstruction_leaves_aux_finite(make_sae: MakeSAE) -> None:
    """The residual's energy, by which AuxK is divided, is then zero."""
    sae = make_sae(TopKSAE, 7, 9, k=1)
    x = torch.randn(5, 7, dtype=torch.float64)
    dead = torch.ones(9, dtype=torch.bool)
    terms = add_revival(sae, RevivalConfig(), dead, sae.centred(x).detach(), torch.zeros_like(x))
    assert torch.isfinite(terms["aux"])
    grads = [p.grad for p in sae.parameters()]
    assert all(grad is None or torch.isfinite(grad).all() for grad in grads)
