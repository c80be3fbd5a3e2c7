"""Crosscoder: dense references of both kinds of sparsity; identical sources stay identical; L1's false exclusives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import fisher_exact
from torch import Tensor
from torch.nn import functional as F

import monosem as ms
from monosem.errors import ConfigError, DataError
from monosem.kernels import sparse
from monosem.kernels.reference import keep_batch_top_k
from monosem.sae import SAE, BatchTopKSAE, Crosscoder, InputTransform, SourceTransform, TrainingContext

MakeSAE = Callable[..., SAE]
Near = Callable[..., None]


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def crosscoder(make_sae: MakeSAE, **options: object) -> Crosscoder:
    sae = make_sae(Crosscoder, 6, 40, **{"n_sources": 3, "k": 4, **options})
    assert isinstance(sae, Crosscoder)
    return sae


def pre_and_sizes(sae: Crosscoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Pre-activations and sums of decoder norms, source by source, from transformed (rows, source, d)."""
    pre, sizes = sae.b_enc, torch.zeros(())
    for source in range(sae.n_sources):
        b_dec = sae.b_dec.reshape(sae.n_sources, sae.d_in)[source]
        pre = pre + (x[:, source] - b_dec) @ sae.encoder_of(source).T
        sizes = sizes + sae.decoder_of(source).pow(2).sum(-1).sqrt()
    return pre, sizes


def reconstruct(sae: Crosscoder, codes: Tensor) -> Tensor:
    parts = [codes @ sae.decoder_of(source) for source in range(sae.n_sources)]
    return torch.stack(parts, 1) + sae.b_dec.reshape(sae.n_sources, sae.d_in)


@pytest.mark.parametrize("always_dense", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sparsity", ["batchtopk", "l1"])
def test_loss_and_all_gradients_equal_the_dense_reference(
    sparsity: str,
    dtype: torch.dtype,
    always_dense: bool,
    make_sae: MakeSAE,
    assert_near: Near,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", -1.0 if always_dense else 2.0)
    sae, x = crosscoder(make_sae, sparsity=sparsity, dtype=dtype), normal(100, 3, 6, dtype=dtype)
    pre, sizes = pre_and_sizes(sae, x)
    if sparsity == "l1":
        codes, penalty = pre.relu(), sae.l1_coefficient * (pre.relu() * sizes).sum(1).mean()
    else:
        kept = keep_batch_top_k((pre * sizes).detach(), 4 * len(x)) != 0
        codes, penalty = (pre * kept).relu(), 0
    residual = x - reconstruct(sae, codes)
    expected = residual.pow(2).sum(-1).mean() / 6 + penalty
    flat = x.reshape(100, 18)
    found = sae.training_loss(flat, flat, TrainingContext())
    assert_near(found.loss.detach(), expected.detach())
    assert_near(found.residual, residual.reshape(100, 18).detach())
    assert torch.equal(found.fired, (codes > 0).sum(0))
    grads = [torch.autograd.grad(loss, list(sae.parameters())) for loss in (found.loss, expected)]
    for grad, dense in zip(*grads, strict=True):
        assert_near(grad, dense)


@pytest.mark.parametrize("sparsity", ["batchtopk", "l1"])
def test_codes_in_use_do_not_depend_on_the_batch_and_equal_the_formula_on_raw_activations(
    sparsity: str, make_sae: MakeSAE, assert_near: Near
) -> None:
    sae, x = crosscoder(make_sae, sparsity=sparsity), 3 * normal(5, 4, 3, 6) + 1
    for seed in range(3):
        flat = normal(100, 18, seed=seed)
        sae.training_loss(flat, flat, TrainingContext())
    assert (sae.threshold > 0) == (sparsity == "batchtopk")
    rows = x.reshape(20, 3, 6)
    pre, sizes = pre_and_sizes(sae, (rows - sae.transform.mean) * sae.transform.scale)
    limit = sae.threshold if sparsity == "batchtopk" else 0
    codes = torch.where(pre * sizes > limit, pre, 0.0)
    assert 0 < (codes > 0).sum() < codes.numel()
    out = sae(x)
    assert out.codes.shape == (5, 4, 40)
    assert_near(out.codes.to_dense().reshape(20, 40).detach(), codes.detach(), 1e-12)
    expected = reconstruct(sae, codes) / sae.transform.scale + sae.transform.mean
    assert_near(out.reconstruction.detach(), expected.reshape(x.shape).detach(), 1e-12)
    alone = torch.stack([sae.encode(row).to_dense() for row in rows])
    assert_near(alone.detach(), codes.detach(), 1e-12)


def test_which_latents_are_on_does_not_depend_on_how_norms_are_shared_with_the_encoder(
    make_sae: MakeSAE, assert_near: Near
) -> None:
    """Half the decoder row and twice the encoder row are the same latent: values count by their decoder norms."""
    sae, x = crosscoder(make_sae), normal(100, 18)
    before = sae.training_loss(x, x, TrainingContext())
    with torch.no_grad():
        factors = torch.linspace(0.2, 5, 40, dtype=torch.float64)[:, None]
        sae.W_dec.div_(factors)
        sae.W_enc.mul_(factors)
        sae.b_enc.mul_(factors[:, 0])
    after = sae.training_loss(x, x, TrainingContext())
    assert torch.equal(before.fired, after.fired)
    assert_near(after.loss.detach(), before.loss.detach())


def test_with_one_source_and_unit_norms_it_is_batchtopk(make_sae: MakeSAE, assert_near: Near) -> None:
    batch = make_sae(BatchTopKSAE, 12, 40, k=4)
    single = make_sae(Crosscoder, 12, 40, n_sources=1, k=4)
    with torch.no_grad():
        for name, parameter in batch.named_parameters():
            single.get_parameter(name).copy_(parameter)
    x = normal(100, 12)
    losses = [sae.training_loss(x, x, TrainingContext()).loss.detach() for sae in (single, batch)]
    assert_near(losses[0], losses[1])


def test_each_source_is_centred_and_scaled_by_itself() -> None:
    x = torch.stack([100 * normal(200, 6) + 7, 0.1 * normal(200, 6, seed=2) - 3], 1)
    together = SourceTransform(2, 6, dtype=torch.float64)
    together.fit(x)
    for source in (0, 1):
        alone = InputTransform(6, dtype=torch.float64)
        alone.fit(x[:, source])
        torch.testing.assert_close(together(x)[:, source], alone(x[:, source]), rtol=1e-12, atol=0)
    torch.testing.assert_close(together.inverse(together(x)), x, rtol=1e-12, atol=0)
    assert torch.equal(together(x.reshape(200, 12)), together(x).reshape(200, 12))
    assert torch.equal(together(x[0].reshape(12)), together(x[0]).reshape(12))


def test_the_parts_of_sources_are_views_of_one_row_per_latent(make_sae: MakeSAE) -> None:
    sae = crosscoder(make_sae)
    for whole, part in ((sae.W_enc, sae.encoder_of(1)), (sae.W_dec, sae.decoder_of(1))):
        assert part.shape == (40, 6)
        assert torch.equal(part, whole[:, 6:12])
        assert part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()


def trained(x: Tensor, steps: int, n_latents: int = 60, **options: Any) -> Crosscoder:
    sae = Crosscoder(x.shape[2], n_latents, n_sources=x.shape[1], **options)
    trainer = ms.Trainer(sae, ms.TrainingConfig(lr=5e-3, batch_size=512), total_tokens=512 * steps)
    for step in range(steps):
        trainer.step(x[(torch.arange(512) + 512 * step) % len(x)])
    return sae


@pytest.mark.parametrize("options", [{"k": 3}, {"sparsity": "l1"}])
def test_identical_sources_have_relative_norms_of_one_half(
    options: dict[str, object], planted: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    """Exactly, from the start and after training; and the directions are the same, bit for bit."""
    _, one = planted(rows=4000)
    x = torch.stack([one, one], 1)
    for steps in (0, 40):
        sae = trained(x, steps, n_latents=48, **options)
        assert (sae.relative_norms() == 0.5).all()
        assert torch.equal(sae.decoder_of(0), sae.decoder_of(1))
        assert torch.equal(sae.encoder_of(0), sae.encoder_of(1))


def test_l1_takes_weakly_shared_features_for_exclusive_ones_and_batchtopk_does_not() -> None:
    """Falsely exclusive is a latent in which the weaker model's share of norms is below a third of the true one.

    Of 30 planted features, model B has ten as strongly as A, ten a fifth as strongly, five not at all; five are its
    own. Shares of features that are in fact exclusive, and of those evenly shared, come out right in both.
    """
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(2, 30, 24, generator=generator), dim=-1)
    gains = torch.ones(2, 30)
    gains[1, 10:20], gains[1, 20:25], gains[0, 25:] = 0.2, 0, 0
    strengths = (0.5 + torch.rand(30_000, 30, generator=generator)) * (
        torch.rand(30_000, 30, generator=generator) < 0.05
    )
    x = torch.einsum("rn,snd->rsd", strengths, gains[:, :, None] * directions)
    counts: dict[str, list[int]] = {}
    for name, options in {"l1": {"sparsity": "l1", "l1_coefficient": 0.06}, "batchtopk": {"k": 2}}.items():
        sae = trained(x, 350, **options)
        cosines = torch.stack([F.normalize(sae.decoder_of(s), dim=-1) @ directions[s].T for s in (0, 1)])
        stronger = (gains[1] > gains[0]).long()
        best = cosines.max(1)
        matched = best.values[stronger, torch.arange(30)] > 0.9
        share = sae.relative_norms()[best.indices[stronger, torch.arange(30)], 1].detach()
        norms = gains * sae.transform.scale
        truth = norms[1] / norms.sum(0)
        assert matched.sum() >= 26
        assert matched[10:20].sum() >= 8
        assert (share - truth)[:10][matched[:10]].abs().median() < 0.05
        assert share[20:25][matched[20:25]].median() < 0.1
        assert share[25:][matched[25:]].median() > 0.9
        wrong = (share < truth / 3)[10:20][matched[10:20]]
        counts[name] = [int(wrong.sum()), int((~wrong).sum())]
    assert counts["l1"][0] >= 7
    assert counts["batchtopk"][0] <= 1
    assert fisher_exact([counts["l1"], counts["batchtopk"]], alternative="greater").pvalue < 0.005  # pyright: ignore


def test_training_goes_on_from_its_state_to_the_same_bits(tmp_path: Path) -> None:
    x = normal(6, 64, 2, 5, dtype=torch.float32)
    config = ms.TrainingConfig(batch_size=64, dead_after_share=0.01)

    def trainer(sae: SAE) -> ms.Trainer:
        return ms.Trainer(sae, config, total_tokens=64 * 6)

    whole, half = trainer(Crosscoder(5, 30, k=3)), trainer(Crosscoder(5, 30, k=3))
    for batch in x:
        whole.step(batch)
    for batch in x[:3]:
        half.step(batch)
    half.sae.save(tmp_path)
    rest = trainer(ms.load_sae(tmp_path))
    rest.load_state(*half.state())
    for batch in x[3:]:
        rest.step(batch)
    assert rest.sae.settings == whole.sae.settings
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(rest.sae.state_dict()[name], tensor), name


@pytest.mark.parametrize("sparsity", ["batchtopk", "l1"])
def test_what_is_saved_comes_back_bit_for_bit(sparsity: str, make_sae: MakeSAE, tmp_path: Path) -> None:
    sae, x = crosscoder(make_sae, sparsity=sparsity, l1_coefficient=0.125), normal(20, 3, 6)
    sae.save(tmp_path)
    loaded = Crosscoder.load(tmp_path)
    assert loaded.settings == sae.settings
    assert loaded.d_in == 6
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)


def test_what_cannot_be_is_refused(make_sae: MakeSAE) -> None:
    for options, message in (
        ({"d_out": 5}, "predicts what it reads"),
        ({"n_sources": 0}, "n_sources must be a whole number of at least 1"),
        ({"sparsity": "l2"}, "sparsity must be one of 'batchtopk', 'l1'"),
        ({"l1_coefficient": -1.0}, "must not be negative"),
    ):
        with pytest.raises(ConfigError, match=message):
            Crosscoder(6, 40, **{"k": 3, **options})  # pyright: ignore
    sae = crosscoder(make_sae)
    with pytest.raises(DataError, match="width 3 x 6"):
        sae.encode(normal(4, 18))
    with pytest.raises(DataError, match=r"shape \(rows, 3, 6\), got \(4, 2, 6\)"):
        ms.Trainer(sae).step(normal(4, 2, 6))
