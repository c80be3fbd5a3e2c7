"""JumpReLUSAE: every penalty's loss and gradients equal a plain formula; thresholds learn by the published estimate."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from monosem.errors import ConfigError
from monosem.sae import SAE, JumpReLUSAE, TrainingContext
from monosem.sae.jumprelu import jump, step
from monosem.sae.sparsity import frequency_sum

MakeSAE = Callable[..., SAE]
PENALTIES = ["l0", "target_l0", "tanh", "frequency"]
BANDWIDTH = 0.4


def with_slope(value: Tensor, slope: Tensor, by: Tensor) -> Tensor:
    """A tensor of that value whose derivative by `by` is `slope`."""
    return value + slope.detach() * (by - by.detach())


def dense_loss(sae: JumpReLUSAE, x: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The formulas of the class's docstring."""
    z = (x - sae.b_dec if sae.subtract_b_dec else x) @ sae.W_enc.T + sae.b_enc
    threshold, bandwidth = sae.threshold, sae.bandwidth
    on, band = z > threshold, ((z - threshold).abs() < bandwidth / 2).to(z.dtype)
    codes = with_slope(z * on, -threshold / bandwidth * band, threshold)
    firing = with_slope(on.to(z.dtype), -band / bandwidth, threshold)
    mse = (target - codes @ sae.W_dec - sae.b_dec).pow(2).sum(-1).mean() / sae.d_out
    w, n = firing.mean(0), len(x)
    assert sae.target_l0 is not None
    penalty = {
        "l0": w.sum(),
        "target_l0": (w.sum() / sae.target_l0 - 1).pow(2),
        "tanh": (4 * codes).tanh().sum(-1).mean(),
        "frequency": (w + (w**2 - w * (1 - w) / (n - 1)) / sae.frequency_scale).sum(),
    }[sae.penalty_kind]
    return mse + sae.coefficient * penalty, {"mse": mse, "penalty": penalty}, codes


@pytest.mark.usefixtures("evaluation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d_out", [None, 11])
@pytest.mark.parametrize("shift", [0.0, 2.0])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_loss_and_all_gradients_equal_the_dense_reference(
    penalty: str,
    shift: float,
    d_out: int | None,
    dtype: torch.dtype,
    make_sae: MakeSAE,
    assert_same_loss: Callable[..., None],
) -> None:
    """With thresholds smaller than the band, some of which reach below 0, and with few latents on."""
    settings: dict[str, Any] = {"penalty": penalty, "bandwidth": BANDWIDTH, "frequency_scale": 0.2, "coefficient": 0.3}
    sae = make_sae(JumpReLUSAE, 16, 120, d_out=d_out, dtype=dtype, target_l0=9.0, **settings)
    assert isinstance(sae, JumpReLUSAE)
    torch.nn.init.normal_(sae.threshold, shift, 0.2, generator=torch.Generator().manual_seed(2))
    sae.threshold.data.abs_()
    assert_same_loss(sae, dense_loss)


def test_the_gradient_of_a_threshold_is_its_formula_by_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    z, threshold = torch.rand(40, 6, generator=generator), torch.rand(6, generator=generator)
    slopes = torch.randn(2, 40, 6, generator=generator)
    expected = torch.zeros(2, 6)
    for row, latent in itertools.product(range(40), range(6)):
        if abs(z[row, latent] - threshold[latent]) < BANDWIDTH / 2:
            expected[0, latent] -= slopes[0, row, latent] * threshold[latent] / BANDWIDTH
            expected[1, latent] -= slopes[1, row, latent] / BANDWIDTH
    for function, slope, wanted in zip((jump, step), slopes, expected, strict=True):
        learned = threshold.clone().requires_grad_()
        (slope * function(z, learned.expand_as(z), BANDWIDTH)).sum().backward()
        assert learned.grad is not None
        assert torch.allclose(learned.grad, wanted, rtol=0, atol=1e-5)
        assert wanted.all()


def test_over_many_rows_the_estimate_is_the_slope_of_the_expected_l0() -> None:
    """For uniform pre-activations P(z > t) = 1 - t, whose slope is -1."""
    z = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(0))
    threshold = torch.tensor([0.4], requires_grad=True)
    step(z, threshold.expand_as(z), 0.2).mean().backward()
    assert threshold.grad is not None
    assert threshold.grad.item() == pytest.approx(-1, abs=0.02)


@pytest.mark.parametrize("w", [0.1, 0.5, 0.9])
def test_the_square_of_a_firing_rate_is_without_bias(w: float) -> None:
    """Over all 2^6 outcomes of six rows, weighted by their probability: exactly w + w^2 / w0."""
    mean = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=6):
        on = sum(outcome)
        rate = torch.tensor([on / 6], dtype=torch.float64)
        mean += w**on * (1 - w) ** (6 - on) * frequency_sum(rate, 6, 0.05).item()
    assert mean == pytest.approx(w * (1 + w / 0.05), abs=1e-12)


def test_the_frequency_penalty_is_l0_where_its_scale_is_large(make_sae: MakeSAE) -> None:
    x = torch.randn(100, 7, dtype=torch.float64)
    settings: list[dict[str, Any]] = [{"penalty": "l0"}, {"penalty": "frequency", "frequency_scale": 1e12}]
    found = [make_sae(JumpReLUSAE, **s).training_loss(x, x, TrainingContext()).terms["penalty"] for s in settings]
    assert torch.allclose(found[0], found[1], rtol=1e-9)


def test_thresholds_stay_at_or_above_0(make_sae: MakeSAE) -> None:
    sae = make_sae(JumpReLUSAE)
    assert isinstance(sae, JumpReLUSAE)
    torch.nn.init.constant_(sae.threshold, -1.0)
    x = torch.randn(50, 7, dtype=torch.float64)
    assert (sae.encode(x).values > 0).all()
    sae.training_loss(x, x, TrainingContext())
    assert not sae.threshold.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": "l2"}, "penalty must be one of 'l0', 'target_l0', 'tanh', 'frequency'"),
        ({"penalty": "target_l0"}, "needs to know it: give target_l0"),
        ({"bandwidth": 0}, "bandwidth must be above 0"),
        ({"frequency_scale": -1}, "frequency_scale must be above 0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        JumpReLUSAE(4, 8, **settings)
