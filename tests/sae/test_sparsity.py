"""The controller brings L0 to its target, whatever the penalty and the scale, resumes, and says when it has failed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem.errors import ConfigError
from monosem.models import SubjectModel
from monosem.sae import SAE, GatedSAE, JumpReLUSAE, ProLUSAE, ReLUSAE, TrainingContext
from monosem.sae.sparsity import L0Controller, warmup_factor
from monosem.training import TrainingConfig, fit

CASES = [
    pytest.param(ReLUSAE, {}, id="L1"),
    pytest.param(ReLUSAE, {"p": 0.5}, id="sqrt"),
    pytest.param(ReLUSAE, {"p_end": 0.3}, id="annealed"),
    pytest.param(ReLUSAE, {"tied": True, "unit_norm_decoder": True}, id="tied"),
    pytest.param(GatedSAE, {}, id="gated"),
    pytest.param(ProLUSAE, {}, id="prolu"),
    pytest.param(ProLUSAE, {"gradient": "ste"}, id="prolu-ste"),
    pytest.param(JumpReLUSAE, {"penalty": "l0"}, id="jumprelu-l0"),
    pytest.param(JumpReLUSAE, {"penalty": "target_l0"}, id="jumprelu-target_l0"),
    pytest.param(JumpReLUSAE, {"penalty": "tanh"}, id="jumprelu-tanh"),
    pytest.param(JumpReLUSAE, {"penalty": "frequency", "frequency_scale": 0.1}, id="jumprelu-frequency"),
]


def planted(rows: int, d: int = 32, n: int = 64, on: float = 4.0) -> tuple[Tensor, Tensor]:
    """Rows of which each is a sum of some of n unit directions, and those directions."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=-1)
    present = torch.rand(rows, n, generator=generator) < on / n
    return (present * (1 + torch.rand(rows, n, generator=generator))) @ directions, directions


def trained(
    cls: type[SAE], x: Tensor, n_latents: int, tokens: int, batch_size: int, lr: float | None = None, **options: Any
) -> SAE:
    sae = cls(x.shape[1], n_latents, **options)
    return fit(sae, x, tokens=tokens, config=TrainingConfig(batch_size=batch_size, lr=lr), progress=False).sae


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_the_target_is_reached_and_the_planted_dictionary_found(cls: type[SAE], options: dict[str, Any]) -> None:
    """A warning, which a failure to reach it is, would be an error here. The square root, steep at 0, takes longer."""
    x, directions = planted(20_000)
    tokens, lr = (200_000, None) if cls is JumpReLUSAE else (300_000 if options.get("p") else 150_000, 1e-2)
    sae = trained(cls, x, 96, tokens, 256, lr, target_l0=5.0, **options)
    assert sae.encode(x).l0().float().mean().item() == pytest.approx(5, rel=0.05)
    found = torch.nn.functional.normalize(sae.W_dec.detach(), dim=-1)
    best = (directions @ found.T).max(1).values
    assert (best > 0.9).float().mean() > 0.9


@pytest.mark.parametrize("scale", [1e3, 1e-3])
def test_the_scale_of_activations_changes_nothing(scale: float) -> None:
    x, _ = planted(5_000)
    sae = trained(JumpReLUSAE, scale * x, 96, 100_000, 256, target_l0=5.0)
    assert sae.encode(scale * x).l0().float().mean().item() == pytest.approx(5, rel=0.05)


@pytest.fixture(scope="module")
def of_the_bundled(bundled: SubjectModel) -> Tensor:
    return ms.activations(bundled, "resid_post.2", text="bundled", buffer_tokens=8192).pool(0)


@pytest.mark.parametrize("cls", [ReLUSAE, JumpReLUSAE])
def test_the_target_is_reached_on_a_models_activations(cls: type[SAE], of_the_bundled: Tensor) -> None:
    x = of_the_bundled
    sae = trained(cls, x, 256, 60_000, 256, 1e-2, target_l0=24.0)
    assert sae.encode(x).l0().float().mean().item() == pytest.approx(24, rel=0.05)


def test_what_cannot_be_reached_is_said_in_words() -> None:
    x, _ = planted(2_000)
    with pytest.warns(UserWarning, match=r"L0 is \S+ after training, not target_l0 = 90: "):
        trained(ReLUSAE, x, 96, 10_000, 256, target_l0=90.0)


def plant(controller: L0Controller, response: float, steps: int) -> float:
    """An L0 that goes, a tenth of the way at each step, to 100 / (response * factor)."""
    l0 = 200.0
    for i in range(steps):
        l0 *= (100 / (response * controller.factor.item()) / l0) ** 0.1
        controller.observe(torch.tensor(l0), torch.ones(()), i / steps)
    return l0


@pytest.mark.parametrize("response", [1e-2, 1.0, 1e2])
def test_an_unknown_response_is_learned(response: float) -> None:
    controller = L0Controller(32, torch.device("cpu"))
    assert plant(controller, response, 400) == pytest.approx(32, rel=0.02)
    assert controller.remarks() == []


@pytest.mark.parametrize(
    ("response", "why"), [(1e7, "no more latents are on"), (1e-7, "10,000 times the coefficient is not enough")]
)
def test_the_reason_is_given(response: float, why: str) -> None:
    controller = L0Controller(32, torch.device("cpu"))
    plant(controller, response, 400)
    (remark,) = controller.remarks()
    assert why in remark


def test_the_coefficient_rises_over_its_share_of_a_run() -> None:
    assert [warmup_factor(p, 0.1) for p in (0.0, 0.05, 0.1, 0.9, None)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert warmup_factor(0.0, 0) == 1
    sae, x = ReLUSAE(4, 8, coefficient=0.3, transform="none"), torch.randn(20, 4)
    early = sae.training_loss(x, x, TrainingContext(progress=0.025))
    assert early.terms["coefficient"].item() == pytest.approx(0.15)
    assert early.loss.item() == pytest.approx((early.terms["mse"] + 0.15 * early.terms["penalty"]).item())


@pytest.mark.parametrize("cls", [ReLUSAE, GatedSAE, ProLUSAE, JumpReLUSAE])
def test_a_run_starts_at_four_times_the_target(cls: type[SAE]) -> None:
    x = torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)) + 3
    sae = cls(16, 200, target_l0=6.0)
    sae.initialise(x)
    assert sae.encode(x).l0().float().mean().item() == pytest.approx(24, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_l0": 0}, "target_l0 must be between 0 and n_latents = 8, got 0"),
        ({"target_l0": 8}, "target_l0 must be between 0 and n_latents = 8, got 8"),
        ({"coefficient_warmup": 1.5}, "coefficient_warmup must be between 0 and 1"),
        ({"coefficient": -0.1}, "coefficient must not be negative"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GatedSAE(4, 8, **settings)
