"""BatchTopK and Matryoshka: losses and gradients equal dense lines; each contains the other and TopK."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem.errors import ConfigError
from monosem.kernels import reference, sparse
from monosem.sae import SAE, BatchTopKSAE, MatryoshkaSAE, TopKSAE, TrainingContext

MakeSAE = Callable[..., SAE]
Near = Callable[[Tensor, Tensor], None]


def inputs(rows: int = 200, d: int = 16, seed: int = 1) -> Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_equals_dense(sae: BatchTopKSAE, x: Tensor, near: Near) -> None:
    found = sae.training_loss(x, x, TrainingContext())
    pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    codes = reference.keep_batch_top_k(pre, sae.k * len(x)).relu()
    widths = sae.widths if isinstance(sae, MatryoshkaSAE) else [sae.n_latents]
    prefixes = [codes[:, :m] @ sae.W_dec[:m] + sae.b_dec for m in widths]
    expected = torch.stack([(x - p).pow(2).mean() for p in prefixes]).mean()
    parameters = dict(sae.named_parameters())
    grads = torch.autograd.grad(found.loss, list(parameters.values()))
    dense_grads = torch.autograd.grad(expected, list(parameters.values()))
    near(found.loss.detach(), expected.detach())
    near(found.residual, (x - prefixes[-1]).detach())
    assert torch.equal(found.fired, (codes > 0).sum(0))
    for grad, dense in zip(grads, dense_grads, strict=True):
        near(grad, dense)


@pytest.mark.parametrize("always_dense", [False, True])
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [(BatchTopKSAE, {}), (MatryoshkaSAE, {}), (MatryoshkaSAE, {"widths": [3, 100, 120]})],
)
def test_loss_and_all_gradients_equal_the_dense_reference(
    architecture: type[BatchTopKSAE],
    settings: dict[str, list[int]],
    always_dense: bool,
    make_sae: MakeSAE,
    assert_near: Near,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", -1.0 if always_dense else 2.0)
    sae = make_sae(architecture, 16, 120, k=6, **settings)
    assert isinstance(sae, BatchTopKSAE)
    assert_equals_dense(sae, inputs(), assert_near)


def test_at_a_batch_of_one_it_is_topk(make_sae: MakeSAE) -> None:
    batch, top = (make_sae(kind, 16, 120, k=6) for kind in (BatchTopKSAE, TopKSAE))
    assert isinstance(batch, BatchTopKSAE)
    assert isinstance(top, TopKSAE)
    for row in inputs(20).split(1):
        losses = [s.training_loss(row, row, TrainingContext()).loss for s in (batch, top)]
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-14)


def test_with_one_width_matryoshka_is_batchtopk(make_sae: MakeSAE) -> None:
    nested, plain = make_sae(MatryoshkaSAE, 16, 120, k=6, widths=[120]), make_sae(BatchTopKSAE, 16, 120, k=6)
    x = inputs()
    losses = [s.training_loss(x, x, TrainingContext()).loss.item() for s in (nested, plain)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-14)


def test_exactly_k_a_row_on_average_are_selected_whatever_the_guess() -> None:
    x, W, b = inputs(50), inputs(120, seed=2), inputs(1, 120, seed=3)[0]
    for guess in (-1e9, 0.0, 3.0, 1e9):
        values, selection, cut = sparse.batch_top_k(x, W, b, 300, guess)
        assert values.numel() == selection.indices.numel() == selection.offsets[-1] == 300
        expected = (x @ W.T + b).flatten().topk(300).values.sort().values
        torch.testing.assert_close(values.sort().values, expected, rtol=1e-12, atol=1e-12)
        assert cut == values.min()


def test_ties_at_the_cut_are_broken_to_the_exact_number() -> None:
    x, W = torch.ones(10, 4, dtype=torch.float64), torch.ones(30, 4, dtype=torch.float64)
    values, selection, _ = sparse.batch_top_k(x, W, torch.zeros(30, dtype=torch.float64), 37, 0.0)
    assert values.numel() == 37
    assert selection.offsets[-1] == 37


def test_codes_in_use_do_not_depend_on_the_batch_and_equal_jumprelu(make_sae: MakeSAE) -> None:
    sae = make_sae(BatchTopKSAE, 16, 120, k=6)
    assert isinstance(sae, BatchTopKSAE)
    for seed in range(5):
        sae.training_loss(inputs(seed=seed), inputs(seed=seed), TrainingContext())
    x = inputs(seed=9)
    whole = sae.encode(x).to_dense()
    alone = torch.cat([sae.encode(row).to_dense() for row in x.split(1)])
    torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-12)
    pre = (sae.transform(x) - sae.b_dec) @ sae.W_enc.T + sae.b_enc
    torch.testing.assert_close(whole, torch.where(pre > sae.threshold, pre, 0.0), rtol=1e-12, atol=1e-12)


def test_the_threshold_is_the_bias_corrected_running_mean_of_the_smallest_kept(make_sae: MakeSAE) -> None:
    sae = make_sae(BatchTopKSAE, 16, 120, k=6)
    assert isinstance(sae, BatchTopKSAE)
    smallest: list[float] = []
    for seed in range(4):
        x = inputs(seed=seed)
        pre = (x - sae.b_dec) @ sae.W_enc.T + sae.b_enc
        smallest.append(pre.flatten().topk(6 * len(x)).values.min().item())
        sae.training_loss(x, x, TrainingContext())
    weights = [sae.threshold_decay**age for age in range(3, -1, -1)]
    mean = sum(w * s for w, s in zip(weights, smallest, strict=True)) / sum(weights)
    assert sae.threshold.item() == pytest.approx(mean, rel=1e-12)


def test_after_training_held_out_l0_is_near_k_and_the_threshold_is_saved(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(60, 16, generator=generator), dim=1)
    x = (
        torch.rand(30_000, 60, generator=generator) * (torch.rand(30_000, 60, generator=generator) < 0.05)
    ) @ directions
    for kind in (BatchTopKSAE, MatryoshkaSAE):
        sae = kind(16, 64, k=4)
        ms.fit(sae, x[:25_000], tokens=60_000, config=ms.TrainingConfig(batch_size=256), progress=False)
        codes = sae.encode(x[25_000:])
        assert codes.l0().double().mean().item() == pytest.approx(4, rel=0.1)
        sae.save(tmp_path / kind.architecture)
        loaded = ms.load_sae(tmp_path / kind.architecture)
        assert torch.equal(loaded.encode(x[25_000:]).to_dense(), codes.to_dense())


@pytest.mark.parametrize("kind", [BatchTopKSAE, MatryoshkaSAE])
def test_the_threshold_keeps_up_with_a_short_run(kind: type[BatchTopKSAE]) -> None:
    """In a short run pre-activations drift all the time: a long memory of the threshold left L0 at half of k."""
    planted = ms.PlantedDictionary(64, 32, l0=5)
    sae = kind(32, 128, k=8)
    ms.fit(sae, planted.sample(40_000).x, tokens=40_000, config=ms.TrainingConfig(batch_size=1024), progress=False)
    held_out = planted.sample(10_000, seed=1).x
    assert sae.encode(held_out).l0().double().mean().item() == pytest.approx(8, rel=0.06)


@pytest.mark.parametrize("widths", [[], [10], [20, 10, 64], [0, 64], [32, 32, 64], [32, 65]])
def test_widths_that_do_not_increase_to_n_latents_are_refused(widths: list[int]) -> None:
    with pytest.raises(ConfigError, match="widths must increase"):
        MatryoshkaSAE(8, 64, k=4, widths=widths)
