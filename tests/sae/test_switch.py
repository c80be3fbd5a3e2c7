"""SwitchSAE: the grouped computation equals a dense one with all other experts masked; one expert is TopK."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem import kernels
from monosem.errors import ConfigError
from monosem.kernels import sparse
from monosem.kernels.reference import keep_top_k
from monosem.sae import SAE, SwitchSAE, TopKSAE, TrainingContext

MakeSAE = Callable[..., SAE]
Near = Callable[[Tensor, Tensor], None]


def inputs(rows: int = 150, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def masked_codes(sae: SwitchSAE, x: Tensor, k: int, routed: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and router's probabilities, from whole tensors: latents of other experts are masked."""
    p = torch.softmax(routed @ sae.W_router.T + sae.b_router, -1)
    expert = p.argmax(-1)
    pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    of_expert = torch.arange(sae.n_latents) // (sae.n_latents // sae.n_experts)
    masked = pre.masked_fill(of_expert != expert[:, None], -1e9)
    return p.gather(1, expert[:, None]) * keep_top_k(masked, k).relu(), p


@pytest.mark.parametrize("always_dense", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"multi_coefficient": 0.25, "n_experts": 4}])
def test_loss_and_all_gradients_equal_the_masked_dense_reference(
    settings: dict[str, float],
    dtype: torch.dtype,
    always_dense: bool,
    make_sae: MakeSAE,
    assert_near: Near,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", -1.0 if always_dense else 2.0)
    sae = make_sae(SwitchSAE, 16, 120, k=5, balance_coefficient=0.5, dtype=dtype, **{"n_experts": 6, **settings})
    assert isinstance(sae, SwitchSAE)
    x = inputs(dtype=dtype)
    routed = (x - sae.b_dec).detach()
    codes, p = masked_codes(sae, x, 5, routed)
    used = torch.stack([(p.argmax(-1) == e).to(dtype).mean() for e in range(sae.n_experts)])
    assert (used > 0).sum() > 2
    expected = (x - codes @ sae.W_dec - sae.b_dec).pow(2).mean()
    if sae.multi_coefficient:
        wider, _ = masked_codes(sae, x, 20, routed)
        expected = expected + sae.multi_coefficient * (x - wider @ sae.W_dec - sae.b_dec).pow(2).mean()
    expected = expected + 0.5 * (sae.n_experts * (used * p.mean(0)).sum() - 1)
    found = sae.training_loss(x, x, TrainingContext())
    assert_near(found.loss.detach(), expected.detach())
    assert torch.equal(found.fired, (codes > 0).sum(0))
    grads = [torch.autograd.grad(loss, list(sae.parameters())) for loss in (found.loss, expected)]
    for grad, dense in zip(*grads, strict=True):
        assert_near(grad, dense)
        assert grad.abs().sum() > 0


def test_codes_equal_the_masked_dense_reference_and_so_do_gradients_of_the_input(
    make_sae: MakeSAE, assert_near: Near
) -> None:
    sae = make_sae(SwitchSAE, 16, 120, k=5, n_experts=6, transform="none")
    assert isinstance(sae, SwitchSAE)
    grads: list[Tensor] = []
    weights = inputs(seed=3)
    for own in (True, False):
        x = inputs().requires_grad_()
        codes = sae.encode(x).to_dense() if own else masked_codes(sae, x, 5, x - sae.b_dec)[0]
        reconstruction = sae(x).reconstruction if own else codes @ sae.W_dec + sae.b_dec
        grads += torch.autograd.grad((reconstruction * weights).sum() + codes.pow(2).sum(), [x, sae.W_router])
        assert_near(codes.detach(), masked_codes(sae, x, 5, x - sae.b_dec)[0].detach())
    assert_near(grads[0], grads[2])
    assert_near(grads[1], grads[3])


@pytest.mark.parametrize("multi_coefficient", [0.0, 0.125])
def test_with_one_expert_it_is_topk(multi_coefficient: float, make_sae: MakeSAE) -> None:
    """Losses, codes and gradients, bit for bit; the router has nothing to learn."""
    settings = {"k": 6, "multi_coefficient": multi_coefficient}
    switch, top = make_sae(SwitchSAE, 16, 120, n_experts=1, **settings), make_sae(TopKSAE, 16, 120, **settings)
    switch.load_state_dict({**switch.state_dict(), **top.state_dict()})
    x = inputs()
    losses = [sae.training_loss(x, x, TrainingContext()).loss for sae in (switch, top)]
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(switch.encode(x).to_dense(), top.encode(x).to_dense())
    losses[0].backward()
    losses[1].backward()
    for name, parameter in top.named_parameters():
        grad = switch.get_parameter(name).grad
        assert grad is not None
        assert parameter.grad is not None
        assert torch.equal(grad, parameter.grad)
    for name in ("W_router", "b_router"):
        grad = switch.get_parameter(name).grad
        assert grad is not None
        assert not grad.any()


def test_an_expert_multiplies_its_own_rows_with_its_own_latents_alone(
    make_sae: MakeSAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All matmuls of a selection together are 1 / n_experts of TopK's."""
    products: list[int] = []
    top_k = sparse.top_k

    def counted(x: Tensor, W: Tensor, *rest: object, **options: object) -> object:
        products.append(x.numel() * len(W))
        return top_k(x, W, *rest, **options)  # pyright: ignore

    monkeypatch.setattr(kernels, "top_k", counted)
    sae, x = make_sae(SwitchSAE, 16, 120, k=5, n_experts=6), inputs()
    sae.select(x)
    assert sum(products) == x.numel() * 120 // 6
    assert 1 < len(products) <= 6


def test_the_balance_is_zero_for_even_use_and_grows_with_uneven_use(make_sae: MakeSAE) -> None:
    sae = make_sae(SwitchSAE, 16, 120, n_experts=4, k=3)
    assert isinstance(sae, SwitchSAE)
    even = torch.full((8, 4), 0.1, dtype=torch.float64) + 0.6 * torch.eye(4, dtype=torch.float64).repeat(2, 1)
    assert sae.balance(even).item() == pytest.approx(0, abs=1e-12)
    one = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64).repeat(8, 1)
    assert sae.balance(one).item() == pytest.approx(3)


def test_the_router_moves_as_finite_differences_say(make_sae: MakeSAE) -> None:
    sae, x = make_sae(SwitchSAE, 16, 120, k=5, n_experts=4), inputs()
    assert isinstance(sae, SwitchSAE)
    step, losses = 1e-6, list[float]()
    grad = torch.autograd.grad(sae.training_loss(x, x, TrainingContext()).loss, sae.b_router)[0]
    for sign in (1, -1):
        with torch.no_grad():
            sae.b_router[1] += sign * step
            losses.append(sae.training_loss(x, x, TrainingContext()).loss.item())
            sae.b_router[1] -= sign * step
    assert grad[1].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-4)


def test_in_training_all_experts_stay_in_use_and_planted_features_are_found(planted: Callable[..., Tensor]) -> None:
    truth, x = planted()
    sae = SwitchSAE(16, 96, k=3, n_experts=4)
    ms.fit(sae, x, tokens=200_000, config=ms.TrainingConfig(batch_size=512, lr=1e-2), progress=False)
    shares = sae.route(sae.centred(sae.transform(x))).argmax(-1).bincount(minlength=4) / len(x)
    assert (shares > 0.03).all()
    found = (truth @ sae.W_dec.T).amax(1) > 0.9
    assert found.double().mean() > 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_experts": 7}, "n_experts must divide n_latents = 120, got 7"),
        ({"n_experts": 0}, "n_experts must divide"),
        ({"n_experts": 6, "k": 21}, "k must be at most n_latents / n_experts = 20, got 21"),
        ({"balance_coefficient": -1.0}, "must not be negative"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SwitchSAE(16, 120, **{"k": 4, **settings})  # pyright: ignore
