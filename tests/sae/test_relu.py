"""ReLUSAE: both ways to its loss are one formula; the penalty shrinks by what theory says; p changes without a jump."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from monosem.errors import ConfigError
from monosem.sae import SAE, ReLUSAE, TrainingContext, load_sae
from monosem.sae.sparsity import SMALL, annealed, powers
from monosem.training import Trainer, TrainingConfig

MakeSAE = Callable[..., SAE]


def dense_loss(sae: ReLUSAE, x: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """The formula: loss, its terms, codes."""
    codes = torch.relu((x - sae.b_dec if sae.subtract_b_dec else x) @ sae.W_enc.T + sae.b_enc)
    mse = (target - codes @ sae.W_dec - sae.b_dec).pow(2).sum(-1).mean() / sae.d_out
    lengths = codes if sae.unit_norm_decoder else codes * sae.W_dec.norm(dim=-1)
    penalty = lengths.sum(-1).mean()
    if sae.p < 1:
        penalty = ((lengths + SMALL).pow(sae.p) - SMALL**sae.p).sum(-1).mean()
    return mse + sae.coefficient * penalty, {"mse": mse, "penalty": penalty}, codes


@pytest.mark.usefixtures("evaluation")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, -4.0])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="L1"),
        pytest.param({"d_out": 11}, id="L1 of a transcoder"),
        pytest.param({"unit_norm_decoder": True}, id="L1 of a unit-norm decoder"),
        pytest.param({"p": 0.5}, id="square root"),
        pytest.param({"p": 0.2, "unit_norm_decoder": True}, id="p of 0.2"),
        pytest.param({"tied": True}, id="tied"),
        pytest.param({"tied": True, "unit_norm_decoder": True, "p": 0.5}, id="tied, unit norm, square root"),
    ],
)
def test_loss_and_all_gradients_equal_the_dense_reference(
    settings: dict[str, Any],
    shift: float,
    dtype: torch.dtype,
    make_sae: MakeSAE,
    assert_same_loss: Callable[..., None],
) -> None:
    """With half of the latents on, and with few."""
    sae = make_sae(ReLUSAE, 16, 120, dtype=dtype, coefficient=0.3, **settings)
    torch.nn.init.normal_(sae.b_enc, shift / 2 if sae.unit_norm_decoder and settings.get("tied") else shift, 0.5)
    assert_same_loss(sae, dense_loss)


@pytest.mark.usefixtures("evaluation")
def test_at_every_change_of_p_the_penalty_goes_on_where_it_was(make_sae: MakeSAE) -> None:
    sae = make_sae(ReLUSAE, p_end=0.2)
    plain = make_sae(ReLUSAE)
    x = torch.randn(80, 7, dtype=torch.float64)

    def penalty(of: SAE, progress: float) -> float:
        return of.training_loss(x, x, TrainingContext(progress=progress)).terms["penalty"].item()

    powers = set[float]()
    for i in range(101):
        assert penalty(sae, i / 100) == pytest.approx(penalty(plain, 0.0), rel=1e-9)
        powers.add(round(sae.p_now.item(), 6))
    assert sorted(powers) == pytest.approx([0.2 + 0.08 * i for i in range(11)])
    assert sae.p_scale.item() != pytest.approx(1)


def test_after_annealing_the_slope_is_that_of_the_last_p(make_sae: MakeSAE, assert_near: Callable[..., None]) -> None:
    sae, x = make_sae(ReLUSAE, p_end=0.5), torch.randn(80, 7, dtype=torch.float64)
    penalty = sae.training_loss(x, x, TrainingContext(progress=0.9)).terms["penalty"]
    (found,) = torch.autograd.grad(penalty, [sae.b_enc])
    other = make_sae(ReLUSAE, p=0.5)
    (slope,) = torch.autograd.grad(other.training_loss(x, x, TrainingContext()).terms["penalty"], [other.b_enc])
    assert_near(found, sae.p_scale * slope)


def test_p_falls_in_ten_steps_between_a_fifth_and_four_fifths_of_a_run() -> None:
    assert [annealed(1, 0, p) for p in (None, 0, 0.2, 0.25)] == [1] * 4
    assert annealed(1, 0, 0.26) == pytest.approx(0.9)
    assert annealed(1, 0, 0.5) == pytest.approx(0.5)
    assert annealed(1, 0.2, 0.8) == annealed(1, 0.2, 1.0) == pytest.approx(0.2)


def test_a_power_below_1_has_a_finite_slope_at_0() -> None:
    lengths = torch.zeros(3, requires_grad=True)
    powers(lengths, 0.2).sum().backward()
    assert lengths.grad is not None
    assert torch.isfinite(lengths.grad).all()
    assert powers(torch.zeros(3), 0.2).sum() == 0


def test_tied_is_one_matrix_in_training_and_in_files(tmp_path: Path) -> None:
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    sae = ReLUSAE(8, 12, tied=True, unit_norm_decoder=True)
    before = sae.W_dec.detach().clone()
    trainer = Trainer(sae, TrainingConfig(batch_size=64, lr=0.01, warmup=0))
    for _ in range(3):
        trainer.step(x)
    assert torch.equal(sae.W_enc, sae.W_dec)
    assert not torch.equal(sae.W_dec, before)
    assert torch.allclose(sae.W_dec.norm(dim=-1), torch.ones(12))
    sae.save(tmp_path)
    loaded = load_sae(tmp_path)
    assert loaded.W_enc is loaded.W_dec
    assert torch.equal(loaded.encode(x).values, sae.encode(x).values)


@pytest.mark.usefixtures("evaluation")
def test_l1_shrinks_an_isolated_feature_by_half_of_c_times_d() -> None:
    """Features at right angles, one per row: the optimum of (a - f)^2 / d + c f is f = a - c d / 2."""
    d, c = 6, 0.05
    sizes = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    x = sizes[:, None] * directions[:3]
    sae = ReLUSAE(d, 3, coefficient=c, transform="none", dtype=torch.float64)
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
    shares = [ReLUSAE(d, 8).coefficient * d / 2 / d**0.5 for d in (4, 64, 1000)]
    assert shares == pytest.approx([0.1] * 3)


def test_a_negative_penalty_is_refused() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        ReLUSAE(4, 8, coefficient=-0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 0}, "p must be above 0 and at most 1, got 0"),
        ({"p_end": 1.5}, "p_end must be above 0 and at most 1"),
        ({"tied": True, "d_out": 5}, "tied needs an autoencoder"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ReLUSAE(4, 8, **settings)
