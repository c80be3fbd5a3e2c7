"""Transcoders: another target than input; the skip takes what is linear."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import monosem as ms
from monosem.kernels import sparse
from monosem.kernels.reference import keep_top_k
from monosem.sae import SAE, SkipTranscoder, TopKSAE, TrainingContext, Transcoder
from monosem.training.revival import RevivalConfig

MakeSAE = Callable[..., SAE]
Near = Callable[..., None]


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def dense(sae: TopKSAE, x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and reconstruction in transformed units, from the formula."""
    codes = keep_top_k(x @ sae.W_enc.T + sae.b_enc, sae.k).relu()
    skip = x @ sae.W_skip.T if isinstance(sae, SkipTranscoder) else 0
    return codes, codes @ sae.W_dec + skip + sae.b_dec


@pytest.mark.parametrize("always_dense", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d_out", [None, 11])
@pytest.mark.parametrize("cls", [Transcoder, SkipTranscoder])
def test_loss_and_all_gradients_equal_the_dense_reference(
    cls: type[Transcoder],
    d_out: int | None,
    dtype: torch.dtype,
    always_dense: bool,
    make_sae: MakeSAE,
    assert_near: Near,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", -1.0 if always_dense else 2.0)
    sae = make_sae(cls, 16, 120, k=6, d_out=d_out, dtype=dtype)
    assert isinstance(sae, Transcoder)
    x, target = normal(150, 16, dtype=dtype), normal(150, d_out or 16, seed=2, dtype=dtype)
    _, reconstruction = dense(sae, x)
    expected = (target - reconstruction).pow(2).mean()
    found = sae.training_loss(x, target, TrainingContext())
    assert_near(found.loss.detach(), expected.detach())
    assert_near(found.residual, (target - reconstruction).detach())
    grads = [torch.autograd.grad(loss, list(sae.parameters())) for loss in (found.loss, expected)]
    for grad, dense_grad in zip(*grads, strict=True):
        assert_near(grad, dense_grad)
        assert grad.abs().sum() > 0


@pytest.mark.parametrize("cls", [Transcoder, SkipTranscoder])
def test_raw_inputs_become_raw_targets_by_two_transforms(
    cls: type[Transcoder], make_sae: MakeSAE, assert_near: Near
) -> None:
    sae, x = make_sae(cls, 16, 120, k=6, d_out=11), 3 * normal(5, 8, 16) + 1
    assert isinstance(sae, Transcoder)
    inside, outside = sae.transform, sae.target_transform
    assert outside.mean.shape == (11,)
    codes, reconstruction = dense(sae, ((x - inside.mean) * inside.scale).reshape(40, 16))
    assert_near(sae.encode(x).to_dense().reshape(40, -1).detach(), codes.detach())
    expected = (reconstruction / outside.scale + outside.mean).reshape(5, 8, 11)
    assert_near(sae(x).reconstruction.detach(), expected.detach())
    assert_near(sae.decode(sae.encode(x), x).detach(), expected.detach())


def test_decode_without_the_input_is_the_part_without_the_skip(make_sae: MakeSAE, assert_near: Near) -> None:
    sae, x = make_sae(SkipTranscoder, 16, 120, k=6, d_out=11), normal(40, 16)
    assert isinstance(sae, SkipTranscoder)
    skip = sae.transform(x) @ sae.W_skip.T / sae.target_transform.scale
    assert_near((sae(x).reconstruction - sae.decode(sae.encode(x))).detach(), skip.detach(), 1e-12)


def test_a_skip_of_zero_is_no_skip(make_sae: MakeSAE) -> None:
    skip, plain = SkipTranscoder(16, 120, k=6, d_out=11), Transcoder(16, 120, k=6, d_out=11)
    assert not skip.W_skip.any()
    assert skip.W_skip.shape == (11, 16)
    x, target = normal(40, 16, dtype=torch.float32), normal(40, 11, dtype=torch.float32)
    losses = [sae.training_loss(x, target, TrainingContext()).loss for sae in (skip, plain)]
    assert torch.equal(losses[0], losses[1])


def test_a_linear_mlp_is_captured_by_the_skip_with_no_latent_on() -> None:
    """Exactly, with the map itself as skip; and the trainer finds that map."""
    linear, x = normal(16, 11, seed=3), normal(4000, 16) + 2
    sae = SkipTranscoder(16, 40, k=6, d_out=11, dtype=torch.float64)
    torch.nn.init.constant_(sae.b_enc, -1e3)
    target = x @ linear + 1
    trainer = ms.Trainer(
        sae, ms.TrainingConfig(lr=0.02, batch_size=500, revival=RevivalConfig(method="none")), total_tokens=100_000
    )
    batches = [slice(500 * (step % 8), 500 * (step % 8) + 500) for step in range(200)]
    metrics = [trainer.step(x[rows], target[rows]) for rows in batches][-1].metrics
    assert metrics["l0"] == 0
    assert metrics["fvu"] < 1e-6
    with torch.no_grad():
        sae.W_skip.copy_(linear.T * sae.target_transform.scale / sae.transform.scale)
        sae.b_dec.copy_(sae.target_transform(sae.transform.mean @ linear + 1))
    out = sae(x)
    assert not out.codes.l0().any()
    torch.testing.assert_close(out.reconstruction, target, rtol=0, atol=1e-12)


def test_b_dec_is_never_subtracted_even_where_widths_are_the_same() -> None:
    sae = Transcoder(16, 120, k=6)
    assert sae.d_out == 16
    assert not sae.subtract_b_dec
    assert not torch.equal(sae.W_enc, sae.W_dec)
    x = normal(30, 16, dtype=torch.float32)
    before = sae.encode(x).to_dense()
    torch.nn.init.normal_(sae.b_dec)
    assert torch.equal(sae.encode(x).to_dense(), before)


@pytest.mark.parametrize("cls", [Transcoder, SkipTranscoder])
def test_training_recovers_the_neurons_of_a_planted_mlp(cls: type[Transcoder]) -> None:
    """Of ReLU(x W - 1.5) V, and x A beside it for the skip, each neuron gets a latent that reads and writes as it."""
    torch.manual_seed(0)
    W, V = torch.nn.functional.normalize(torch.randn(2, 24, 24), dim=-1)
    x = torch.randn(60_000, 24)
    linear = torch.randn(24, 24) / 24**0.5 if cls is SkipTranscoder else torch.zeros(24, 24)
    target = 6 * (x @ W.T - 1.5).relu() @ V + x @ linear
    sae = cls(24, 48, k=3)
    trainer = ms.Trainer(sae, ms.TrainingConfig(lr=5e-3, batch_size=500), total_tokens=300_000)
    for step in range(600):
        rows = slice(500 * (step % 120), 500 * (step % 120) + 500)
        trainer.step(x[rows], target[rows])
    best = (V @ sae.W_dec.T).max(1)
    assert (best.values > 0.9).double().mean() > 0.8
    matched = torch.nn.functional.normalize(sae.W_enc[best.indices], dim=-1)
    assert (matched * W).sum(1).median() > 0.9
