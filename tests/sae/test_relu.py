"""ReLUSAE: both ways to its loss are one formula; the penalty shrinks by what theory says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from monosem.errors import ConfigError
from monosem.kernels import sparse
from monosem.sae import SAE, ReLUSAE, TrainingContext

MakeSAE = Callable[..., SAE]


@pytest.fixture(params=["sparse", "dense"])
def evaluation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 2.0 if request.param == "sparse" else -1.0)
    return request.param


def dense_loss(sae: ReLUSAE, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The formula: loss, its penalty, codes."""
    codes = torch.relu((x - sae.b_dec) @ sae.W_enc.T + sae.b_enc)
    error = (target - codes @ sae.W_dec - sae.b_dec).pow(2).sum(-1).mean() / sae.d_out
    penalty = (codes * sae.W_dec.norm(dim=-1)).sum(-1).mean()
    return error + sae.l1_coefficient * penalty, penalty, codes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("own_target", [False, True])
@pytest.mark.parametrize("shift", [0.0, -4.0])
def test_loss_and_all_gradients_equal_the_dense_reference(
    evaluation: str,
    shift: float,
    own_target: bool,
    dtype: torch.dtype,
    make_sae: MakeSAE,
    assert_near: Callable[[Tensor, Tensor], None],
) -> None:
    """With half of the latents on, and with few."""
    sae = make_sae(ReLUSAE, 16, 120, dtype=dtype, l1_coefficient=0.3)
    assert isinstance(sae, ReLUSAE)
    torch.nn.init.normal_(sae.b_enc, shift, 0.5, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(1)
    x, other = torch.randn(2, 200, 16, generator=generator, dtype=torch.float64).to(dtype)
    target = other if own_target else x

    found = sae.training_loss(x, target, TrainingContext())
    expected, penalty, codes = dense_loss(sae, x, target)
    assert_near(found.loss, expected)
    assert_near(found.terms["l1"], penalty)
    assert torch.equal(found.fired, (codes > 0).sum(0))
    grads = [torch.autograd.grad(loss, list(sae.parameters())) for loss in (found.loss, expected)]
    for grad, expected_grad in zip(*grads, strict=True):
        assert_near(grad, expected_grad)


def test_l1_shrinks_an_isolated_feature_by_half_of_c_times_d(evaluation: str) -> None:
    """Features at right angles, one per row: the optimum of (a - f)^2 / d + c f is f = a - c d / 2."""
    d, c = 6, 0.05
    sizes = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    x = sizes[:, None] * directions[:3]
    sae = ReLUSAE(d, 3, l1_coefficient=c, transform="none", dtype=torch.float64)
    with torch.no_grad():
        sae.W_enc.copy_(directions[:3])
        sae.W_dec.copy_(directions[:3] * 1.3)  # a decoder that is not of norm 1
    sae.b_dec.requires_grad_(False)
    learned = [sae.W_enc, sae.b_enc, sae.W_dec]
    stop = {"max_iter": 300, "tolerance_grad": 1e-12, "tolerance_change": 0}
    optimizer = torch.optim.LBFGS(learned, **stop, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sae.training_loss(x, x, TrainingContext()).loss
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    lengths = sae.encode(x).to_dense() * sae.W_dec.norm(dim=-1)
    assert torch.allclose(lengths, torch.diag(sizes - c * d / 2), rtol=0, atol=1e-6)
    assert torch.allclose(sae(x).reconstruction, (sizes - c * d / 2)[:, None] * directions[:3], rtol=0, atol=1e-6)


def test_the_default_penalty_shrinks_by_the_same_share_of_the_norm_at_every_width() -> None:
    shares = [ReLUSAE(d, 8).l1_coefficient * d / 2 / d**0.5 for d in (4, 64, 1000)]
    assert shares == pytest.approx([0.1] * 3)


def test_a_negative_penalty_is_refused() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        ReLUSAE(4, 8, l1_coefficient=-0.1)
