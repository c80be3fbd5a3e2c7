"""GatedSAE: loss and gradients equal the dense formulas; with tied halves it is ReLU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem.sae import SAE, GatedSAE, ReLUSAE, TrainingContext

MakeSAE = Callable[..., SAE]
pytestmark = pytest.mark.usefixtures("evaluation")


def gate_and_codes(sae: GatedSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """The formulas of both halves, each with a matmul of its own."""
    centred = x - sae.b_dec if sae.subtract_b_dec else x
    gate = centred @ sae.W_enc.T + sae.b_enc
    magnitude = centred @ (sae.W_enc * sae.r_mag.exp()[:, None]).T + sae.b_mag
    return gate, (gate > 0) * magnitude.relu()


def dense_loss(sae: GatedSAE, x: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    gate, codes = gate_and_codes(sae, x)
    mse = (target - codes @ sae.W_dec - sae.b_dec).pow(2).sum(-1).mean() / sae.d_out
    penalty = gate.relu().sum(-1).mean()
    seen = gate.relu() @ sae.W_dec.detach() + sae.b_dec.detach()
    gate_mse = (target - seen).pow(2).sum(-1).mean() / sae.d_out
    terms = {"mse": mse, "penalty": penalty, "gate_mse": gate_mse}
    return mse + sae.coefficient * penalty + gate_mse, terms, codes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d_out", [None, 11])
@pytest.mark.parametrize("shift", [0.0, -4.0])
def test_loss_and_all_gradients_equal_the_dense_reference(
    shift: float,
    d_out: int | None,
    dtype: torch.dtype,
    make_sae: MakeSAE,
    assert_same_loss: Callable[..., None],
) -> None:
    sae = make_sae(GatedSAE, 16, 120, d_out=d_out, dtype=dtype, coefficient=0.3)
    torch.nn.init.normal_(sae.b_enc, shift, 0.5, generator=torch.Generator().manual_seed(2))
    assert_same_loss(sae, dense_loss)


def test_codes_in_use_are_those_of_the_formula_with_its_gradients(
    make_sae: MakeSAE, assert_near: Callable[[Tensor, Tensor], None]
) -> None:
    sae = make_sae(GatedSAE, transform="none")
    assert isinstance(sae, GatedSAE)
    x = torch.randn(60, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(60, 20, dtype=torch.float64)
    found, expected = sae.encode(x).to_dense(), gate_and_codes(sae, x)[1]
    assert_near(found, expected)
    learned = [x, sae.W_enc, sae.r_mag, sae.b_mag, sae.b_dec]
    grads = [torch.autograd.grad((weights * codes).sum(), learned) for codes in (found, expected)]
    for grad, expected_grad in zip(*grads, strict=True):
        assert_near(grad, expected_grad)


def test_with_r_mag_of_0_and_equal_biases_it_is_relu(make_sae: MakeSAE, assert_near: Callable[..., None]) -> None:
    gated, relu = make_sae(GatedSAE, coefficient=0.2), make_sae(ReLUSAE, coefficient=0.2, unit_norm_decoder=True)
    assert isinstance(gated, GatedSAE)
    relu.load_state_dict({name: t for name, t in gated.state_dict().items() if name not in ("r_mag", "b_mag")}, False)
    with torch.no_grad():
        gated.r_mag.zero_()
        gated.b_mag.copy_(gated.b_enc)
    x = torch.randn(60, 7, dtype=torch.float64)
    assert_near(gated.encode(x).to_dense(), relu.encode(x).to_dense())
    losses = [sae.training_loss(x, x, TrainingContext()) for sae in (gated, relu)]
    for name in ("mse", "penalty"):
        assert_near(losses[0].terms[name], losses[1].terms[name])
    assert_near(losses[0].terms["gate_mse"], losses[1].terms["mse"])


def test_the_decoder_does_not_learn_from_the_gates_reconstruction(make_sae: MakeSAE) -> None:
    sae = make_sae(GatedSAE)
    x = torch.randn(60, 7, dtype=torch.float64)
    term = sae.training_loss(x, x, TrainingContext()).terms["gate_mse"]
    grads = torch.autograd.grad(term, [sae.W_dec, sae.W_enc, sae.b_enc], allow_unused=True)
    assert grads[0] is None or not grads[0].any()
    assert grads[1].any()
    assert grads[2].any()


def test_it_reconstructs_better_than_relu_at_the_same_l0() -> None:
    """With free decoder rows it did not: they shrank under the penalty, which does not see magnitudes."""
    planted = ms.PlantedDictionary(128, 32, l0=6)
    x, held_out = planted.sample(40_000).x, planted.sample(5_000, seed=1).x
    config = ms.TrainingConfig(batch_size=512)
    fvu: dict[str, float] = {}
    for kind in (GatedSAE, ReLUSAE):
        sae = kind(32, 192, target_l0=6)
        ms.fit(sae, x, tokens=120_000, config=config, progress=False)
        out = sae(held_out)
        assert out.codes.l0().double().mean().item() == pytest.approx(6, rel=0.1)
        error, spread = held_out - out.reconstruction, held_out - held_out.mean(0)
        fvu[kind.architecture] = (error.pow(2).sum() / spread.pow(2).sum()).item()
    assert fvu["gated"] < 0.8 * fvu["relu"]
