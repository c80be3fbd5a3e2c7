"""Cross-layer transcoder: loops over layers, dense, give the same; decoder rows are read from a file one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import monosem as ms
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, FileError
from monosem.kernels import sparse
from monosem.kernels.reference import keep_batch_top_k, keep_top_k
from monosem.sae import SAE, BatchTopKSAE, CrossLayerTranscoder, TrainingContext, read_decoder_rows
from monosem.training.revival import RevivalConfig, add_revival

MakeSAE = Callable[..., SAE]
Near = Callable[..., None]
L, D, OUT, M = 3, 6, 5, 14


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def transcoder(make_sae: MakeSAE, **options: object) -> CrossLayerTranscoder:
    sae = make_sae(CrossLayerTranscoder, D, L * M, **{"n_layers": L, "d_out": OUT, "k": 5, **options})
    assert isinstance(sae, CrossLayerTranscoder)
    return sae


def pre_activations(sae: CrossLayerTranscoder, x: Tensor) -> Tensor:
    """From transformed (rows, layer, d_in)."""
    return torch.cat([x[:, layer] @ sae.encoder_of(layer).T for layer in range(L)], 1) + sae.b_enc


def reconstruct(sae: CrossLayerTranscoder, codes: Tensor) -> Tensor:
    """Transformed (rows, layer, d_out), one pair of layers after another."""
    out = list(sae.b_dec.reshape(L, OUT).expand(len(codes), L, OUT).unbind(1))
    for source, own in enumerate(codes.split(M, 1)):
        for target in range(source, L):
            out[target] = out[target] + own @ sae.decoder_of(source)[:, target - source]
    return torch.stack(out, 1)


@pytest.mark.parametrize("always_dense", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("multi_coefficient", [0.0, 0.125])
def test_loss_and_all_gradients_equal_the_dense_reference(
    multi_coefficient: float,
    dtype: torch.dtype,
    always_dense: bool,
    make_sae: MakeSAE,
    assert_near: Near,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", -1.0 if always_dense else 2.0)
    sae = transcoder(make_sae, dtype=dtype, multi_coefficient=multi_coefficient)
    x, target = normal(90, L, D, dtype=dtype), normal(90, L, OUT, seed=2, dtype=dtype)
    pre = pre_activations(sae, x)
    codes = keep_batch_top_k(pre, 5 * len(x)).relu()
    residual = target - reconstruct(sae, codes)
    expected = residual.pow(2).mean()
    if multi_coefficient:
        wider = target - reconstruct(sae, keep_batch_top_k(pre, 20 * len(x)).relu())
        expected = expected + multi_coefficient * wider.pow(2).mean()
    found = sae.training_loss(x.flatten(1), target.flatten(1), TrainingContext())
    assert_near(found.loss.detach(), expected.detach())
    assert_near(found.residual, residual.flatten(1).detach())
    assert torch.equal(found.fired, (codes > 0).sum(0))
    grads = [torch.autograd.grad(loss, list(sae.parameters())) for loss in (found.loss, expected)]
    for grad, dense in zip(*grads, strict=True):
        assert_near(grad, dense)
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("always_dense", [False, True])
def test_raw_inputs_become_codes_and_raw_outputs_as_in_the_formula_and_so_do_gradients(
    always_dense: bool, make_sae: MakeSAE, assert_near: Near, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", -1.0 if always_dense else 2.0)
    sae, weights = transcoder(make_sae), normal(24, L * M, seed=4)
    for seed in range(3):
        sae.training_loss(normal(90, L * D, seed=seed), normal(90, L * OUT, seed=9), TrainingContext())
    assert sae.threshold > 0
    grads: list[tuple[Tensor, ...]] = []
    results: list[tuple[Tensor, Tensor]] = []
    for own in (True, False):
        x = (3 * normal(4, 6, L, D) + 1).requires_grad_()
        if own:
            codes, out = sae(x).codes.to_dense().reshape(24, -1), sae(x).reconstruction
            assert sae(x).codes.shape == (4, 6, L * M)
        else:
            pre = pre_activations(sae, ((x - sae.transform.mean) * sae.transform.scale).reshape(24, L, D))
            codes = torch.where(pre > sae.threshold, pre, 0.0)
            outside = sae.target_transform
            out = (reconstruct(sae, codes) / outside.scale + outside.mean).reshape(4, 6, L, OUT)
        results.append((codes.detach(), out.detach()))
        loss = (codes * weights).sum() + out.pow(2).sum()
        grads.append(torch.autograd.grad(loss, [x, *sae.parameters()]))
    for found, expected in zip(*results, strict=True):
        assert_near(found, expected, 1e-12)
    for found, expected in zip(*grads, strict=True):
        assert_near(found, expected)


def test_codes_of_any_order_and_number_are_decoded(make_sae: MakeSAE, assert_near: Near) -> None:
    sae = transcoder(make_sae, transform="none")
    dense = normal(7, L * M).relu() * (normal(7, L * M, seed=2) > 0.5)
    dense[3] = 0
    codes = SparseCodes.from_dense(dense)
    backwards = [codes.indices[a:b].flip(0) for a, b in zip(codes.offsets, codes.offsets[1:], strict=False)]
    values = [codes.values[a:b].flip(0) for a, b in zip(codes.offsets, codes.offsets[1:], strict=False)]
    shuffled = SparseCodes(torch.cat(values), torch.cat(backwards), codes.offsets, L * M)
    for given in (codes, shuffled):
        assert_near(sae.decode(given).detach(), reconstruct(sae, dense).detach())
    assert sae.decode(codes[:0]).shape == (0, L, OUT)
    assert sae(normal(0, L, D)).reconstruction.shape == (0, L, OUT)
    assert sae(normal(L, D)).reconstruction.shape == (L, OUT)


def test_k_counts_the_latents_of_all_layers_together(make_sae: MakeSAE) -> None:
    """Layers share them as they need them."""
    sae = transcoder(make_sae)
    with torch.no_grad():
        sae.b_enc[:M] += 3
    values, selection = sae.select_in_training(normal(90, L * D), 5, TrainingContext())
    counts = torch.bincount(selection.indices // M, minlength=L)
    assert counts.sum() == values.numel() == 5 * 90
    assert counts[0] > 2 * counts[1:].max()


def test_with_one_layer_it_is_a_batchtopk_transcoder(make_sae: MakeSAE, assert_near: Near) -> None:
    single = make_sae(CrossLayerTranscoder, D, M, n_layers=1, d_out=OUT, k=4)
    plain = make_sae(BatchTopKSAE, D, M, d_out=OUT, k=4)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            own = single.get_parameter("W_dec_0" if name == "W_dec" else name)
            own.copy_(parameter.reshape(own.shape))
    x, target = normal(80, D), normal(80, OUT, seed=2)
    losses = [sae.training_loss(x, target, TrainingContext()).loss.detach() for sae in (single, plain)]
    assert_near(losses[0], losses[1])


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_revival_adds_the_gradient_of_the_dense_formula(share: float, make_sae: MakeSAE, assert_near: Near) -> None:
    sae, x, residual = transcoder(make_sae), normal(60, L, D), normal(60, L * OUT, seed=3)
    dead = torch.rand(L * M, generator=torch.Generator().manual_seed(0)) <= share
    add_revival(sae, RevivalConfig(coefficient=0.5, k_aux=6), dead, x.flatten(1), residual)
    pre = pre_activations(sae, x).masked_fill(~dead, -1e9)
    speaking = keep_top_k(pre, 6).relu() * dead
    written = (reconstruct(sae, speaking) - sae.b_dec.reshape(L, OUT)).flatten(1)
    expected = 0.5 * (residual - written).pow(2).sum() / residual.pow(2).sum()
    names = [name for name, _ in sae.named_parameters() if name != "b_dec"]
    grads = torch.autograd.grad(expected, [sae.get_parameter(name) for name in names])
    for name, dense in zip(names, grads, strict=True):
        found = sae.get_parameter(name).grad
        assert found is not None
        assert_near(found, dense)


def test_training_keeps_the_norm_of_all_that_a_latent_writes_and_goes_on_from_its_state(tmp_path: Path) -> None:
    x, y = normal(6, 64, 2, 5, dtype=torch.float32), normal(6, 64, 2, 4, seed=2, dtype=torch.float32)
    config = ms.TrainingConfig(batch_size=64, dead_after_share=0.01)

    def trainer(sae: SAE) -> ms.Trainer:
        return ms.Trainer(sae, config, total_tokens=64 * 6)

    def new() -> SAE:
        return CrossLayerTranscoder(5, 30, n_layers=2, d_out=4, k=3)

    whole, half = trainer(new()), trainer(new())
    for rows, targets in zip(x, y, strict=True):
        whole.step(rows, targets)
    for rows, targets in zip(x[:3], y[:3], strict=True):
        half.step(rows, targets)
    half.sae.save(tmp_path)
    rest = trainer(ms.load_sae(tmp_path))
    rest.load_state(*half.state())
    for rows, targets in zip(x[3:], y[3:], strict=True):
        rest.step(rows, targets)
    for name, tensor in whole.sae.state_dict().items():
        assert torch.equal(rest.sae.state_dict()[name], tensor), name
    for name in ("W_dec_0", "W_dec_1"):
        norms = whole.sae.get_parameter(name).detach().flatten(1).norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(15), rtol=0, atol=1e-5)
        assert not torch.equal(whole.sae.get_parameter(name), new().get_parameter(name))


def test_decoder_rows_are_read_alone(make_sae: MakeSAE, tmp_path: Path) -> None:
    sae = transcoder(make_sae)
    sae.save(tmp_path / "sae")
    for layer in range(L):
        rows = read_decoder_rows(tmp_path, layer, [9, 0, 9])
        assert rows.shape == (3, L - layer, OUT)
        assert torch.equal(rows, sae.decoder_of(layer)[[9, 0, 9]])
    assert read_decoder_rows(tmp_path, 1, []).shape == (0, 2, OUT)
    with pytest.raises(ConfigError, match="has no W_dec_3"):
        read_decoder_rows(tmp_path, L, [0])
    with pytest.raises(ConfigError, match="has latents 0 to 13, not 14"):
        read_decoder_rows(tmp_path, 0, [14])
    whole = (tmp_path / "sae" / "sae.safetensors").read_bytes()
    (tmp_path / "sae" / "sae.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="cannot be read"):
        read_decoder_rows(tmp_path, 0, [1])


def test_what_is_saved_comes_back_bit_for_bit(make_sae: MakeSAE, tmp_path: Path) -> None:
    sae, x = transcoder(make_sae), normal(20, L, D)
    sae.save(tmp_path)
    loaded = CrossLayerTranscoder.load(tmp_path)
    assert loaded.settings == sae.settings
    assert (loaded.d_in, loaded.d_out) == (D, OUT)
    assert torch.equal(loaded(x).reconstruction, sae(x).reconstruction)


def test_planted_features_that_write_to_several_layers_take_one_latent_each() -> None:
    """Sixteen features are read in the first layer and written to both, sixteen others in the second only."""
    generator = torch.Generator().manual_seed(0)
    read, first, second = F.normalize(torch.randn(3, 32, 16, generator=generator), dim=-1)
    strengths = (0.5 + torch.rand(20_000, 32, generator=generator)) * (
        torch.rand(20_000, 32, generator=generator) < 0.06
    )
    early, late = strengths.clone(), strengths.clone()
    early[:, 16:], late[:, :16] = 0, 0
    x = torch.stack([early @ read, late @ read], 1)
    y = torch.stack([early @ first, strengths @ second], 1)
    sae = CrossLayerTranscoder(16, 80, n_layers=2, k=2)
    trainer = ms.Trainer(sae, ms.TrainingConfig(lr=1e-2, batch_size=512), total_tokens=512 * 400)
    batches = [(torch.arange(512) + 512 * step) % len(x) for step in range(400)]
    steps = [trainer.step(x[rows], y[rows]) for rows in batches]
    assert steps[-1].metrics["fvu"] < 0.2
    both = (
        F.normalize(torch.cat([first[:16], second[:16]], 1), dim=1) @ F.normalize(sae.decoder_of(0).flatten(1), dim=1).T
    )
    alone = second[16:] @ F.normalize(sae.decoder_of(1).flatten(1), dim=1).T
    found = torch.cat([both.amax(1), alone.amax(1)]) > 0.9
    assert found.double().mean() > 0.8


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_layers must divide n_latents = 40, got 3"):
        CrossLayerTranscoder(6, 40, n_layers=3)
    with pytest.raises(ConfigError, match="must divide"):
        CrossLayerTranscoder(6, 40, n_layers=0)


def test_thresholds_of_their_own_and_a_skip_are_what_loops_make_of_them(make_sae: MakeSAE, assert_near: Near) -> None:
    sae = transcoder(make_sae, own_thresholds=True, skip=True)
    with torch.no_grad():
        sae.own_threshold.abs_()
    x = normal(40, L, D)
    inputs, outputs = sae.transform(x), normal(40, L, OUT)
    pre = pre_activations(sae, inputs)
    codes = torch.where(pre > sae.own_threshold, pre, 0)
    assert 0 < (codes > 0).sum() < (pre > 0).sum()
    out = sae(x)
    assert_near(out.codes.to_dense().detach(), codes.detach())
    for layer in range(L):
        outputs[:, layer] = reconstruct(sae, codes)[:, layer].detach() + inputs[:, layer] @ sae.W_skip[layer].T.detach()
    assert_near(sae.target_transform(out.reconstruction).detach(), outputs)
    without = sae.target_transform(sae.decode(out.codes)).detach()
    assert_near(without, reconstruct(sae, codes).detach())


@torch.no_grad()
def test_with_them_it_folds_and_is_saved_to_the_same(make_sae: MakeSAE, assert_near: Near, tmp_path: Path) -> None:
    sae, x = transcoder(make_sae, own_thresholds=True, skip=True), normal(40, L, D)
    before = sae(x)
    for norms in (False, True):
        after = ms.fold(sae, norms=norms)(x)
        assert_near(after.reconstruction, before.reconstruction)
        assert torch.equal(after.codes.to_dense() > 0, before.codes.to_dense() > 0)
    sae.save(tmp_path)
    assert torch.equal(ms.load_sae(tmp_path)(x).reconstruction, before.reconstruction)


def test_thresholds_of_their_own_are_not_trained_and_a_skip_is(make_sae: MakeSAE) -> None:
    x, target = normal(30, L, D).flatten(1), normal(30, L, OUT, seed=2).flatten(1)
    with pytest.raises(ConfigError, match="own_thresholds=False"):
        transcoder(make_sae, own_thresholds=True).training_loss(x, target, TrainingContext())
    sae = transcoder(make_sae, skip=True)
    skip = torch.cat([x[:, layer * D : (layer + 1) * D] @ sae.W_skip[layer].T for layer in range(L)], 1)
    found = sae.training_loss(x, target, TrainingContext()).loss
    sae.skip = False
    expected = sae.training_loss(x, target - skip, TrainingContext()).loss
    assert torch.equal(found, expected)
    assert all(one.abs().sum() > 0 for one in torch.autograd.grad(found, [sae.W_skip]))
