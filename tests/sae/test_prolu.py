"""ProLUSAE: its value is JumpReLU's; its synthetic gradients are the published ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from monosem.errors import ConfigError
from monosem.sae import SAE, JumpReLUSAE, ProLUSAE

MakeSAE = Callable[..., SAE]
Gradient = Literal["relu", "ste"]


class ProLU(torch.autograd.Function):
    """By a plain loop over the elements of m (rows, n) and b (n,)."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, b: Tensor, gradient: Gradient) -> Tensor:
        ctx.save_for_backward(m, b)
        ctx.gradient = gradient
        out = torch.zeros_like(m)
        for row, latent in torch.cartesian_prod(torch.arange(m.shape[0]), torch.arange(m.shape[1])).tolist():
            if m[row, latent] > 0 and m[row, latent] + b[latent] > 0:
                out[row, latent] = m[row, latent]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        m, b = ctx.saved_tensors
        grad_m, grad_b = torch.zeros_like(m), torch.zeros_like(b)
        for row, latent in torch.cartesian_prod(torch.arange(m.shape[0]), torch.arange(m.shape[1])).tolist():
            value, g = m[row, latent], grads[0][row, latent]
            if value > 0 and value + b[latent] > 0:
                grad_m[row, latent] = g if ctx.gradient == "relu" else g * (1 + value)
                grad_b[latent] += g if ctx.gradient == "relu" else g * value
        return grad_m, grad_b, None


def dense_loss(sae: ProLUSAE, x: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    centred = x - sae.b_dec if sae.subtract_b_dec else x
    codes: Tensor = ProLU.apply(centred @ sae.W_enc.T, sae.b_enc, sae.gradient)  # pyright: ignore
    mse = (target - codes @ sae.W_dec - sae.b_dec).pow(2).sum(-1).mean() / sae.d_out
    penalty = (codes * sae.W_dec.norm(dim=-1)).sum(-1).mean()
    return mse + sae.coefficient * penalty, {"mse": mse, "penalty": penalty}, codes


@pytest.mark.usefixtures("evaluation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d_out", [None, 11])
@pytest.mark.parametrize("shift", [0.0, -3.0])
@pytest.mark.parametrize("gradient", ["relu", "ste"])
def test_loss_and_all_gradients_equal_the_plain_loop(
    gradient: str,
    shift: float,
    d_out: int | None,
    dtype: torch.dtype,
    make_sae: MakeSAE,
    assert_same_loss: Callable[..., None],
) -> None:
    sae = make_sae(ProLUSAE, 16, 40, d_out=d_out, dtype=dtype, coefficient=0.3, gradient=gradient)
    torch.nn.init.normal_(sae.b_enc, shift, 0.5, generator=torch.Generator().manual_seed(2))
    assert_same_loss(sae, dense_loss, rows=30)


def test_in_use_it_is_jumprelu_with_thresholds_of_minus_the_bias(make_sae: MakeSAE) -> None:
    prolu, jump = make_sae(ProLUSAE), make_sae(JumpReLUSAE)
    assert isinstance(jump, JumpReLUSAE)
    with torch.no_grad():
        prolu.b_enc.neg_().clamp_max_(0)
        for name in ("W_enc", "W_dec", "b_dec"):
            getattr(jump, name).copy_(getattr(prolu, name))
        jump.transform.load_state_dict(prolu.transform.state_dict())
        jump.threshold.copy_(-prolu.b_enc)
        jump.b_enc.zero_()
    x = 3 * torch.randn(80, 7, dtype=torch.float64)
    found, expected = prolu.encode(x), jump.encode(x)
    for name in ("values", "indices", "offsets"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    assert 0 < len(found.values) < 80 * 20


def test_in_use_the_gradient_is_that_of_the_value(make_sae: MakeSAE) -> None:
    """Not the synthetic one: an edit or an attribution must not see it."""
    sae = make_sae(ProLUSAE, gradient="ste", transform="none")
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    codes = sae.encode(x)
    (grad,) = torch.autograd.grad(codes.values.sum(), x)
    on = (codes.to_dense() > 0).double()
    assert torch.allclose(grad, on @ sae.W_enc, rtol=0, atol=1e-12)


def test_within_the_active_region_the_bias_changes_no_value(make_sae: MakeSAE) -> None:
    sae = make_sae(ProLUSAE)
    torch.nn.init.constant_(sae.b_enc, -0.5)
    x = torch.randn(60, 7, dtype=torch.float64)
    before = sae.encode(x).to_dense()
    torch.nn.init.constant_(sae.b_enc, -0.2)
    after = sae.encode(x).to_dense()
    assert torch.equal(after[before > 0], before[before > 0])
    assert (after > 0).sum() > (before > 0).sum() > 0


def test_an_unknown_gradient_is_refused() -> None:
    with pytest.raises(ConfigError, match="gradient must be one of 'relu', 'ste'"):
        ProLUSAE(4, 8, gradient="true")  # pyright: ignore
