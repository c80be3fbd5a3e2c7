"""Trainer: each step is what the formulas say, and its books are right."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from monosem.activations import IterableActivations, VectorActivations
from monosem.errors import DataError, MismatchError
from monosem.kernels import reference
from monosem.sae import SAE, ReLUSAE, TopKSAE, TrainingContext, TrainingLoss
from monosem.training import Trainer, TrainingConfig, fit, run, train
from monosem.training.revival import RevivalConfig, add_revival
from monosem.training.schedules import lr_factor

MakeSAE = Callable[..., SAE]
CASES = [pytest.param(TopKSAE, {"k": 4}, id="topk"), pytest.param(ReLUSAE, {"coefficient_warmup": 0}, id="relu")]
LEVEL = {"lr": 0.01, "warmup": 0, "decay": 0, "batch_size": 50}
"""Settings under which the learning rate is 0.01 from the first step to the last."""


def raw(*shape: int, seed: int = 1) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def gradients(sae: SAE, x: Tensor) -> dict[str, Tensor]:
    """Of the loss at the present weights, without touching them."""
    inputs = sae.transform(x)
    loss = copy.deepcopy(sae).requires_grad_()
    out = loss.training_loss(inputs, inputs, TrainingContext()).loss
    names, parameters = zip(*loss.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(out, parameters), strict=True))


# One step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize(("cls", "options"), CASES)
def test_steps_equal_the_reference_of_adam_on_the_gradients(
    cls: type[SAE],
    options: dict[str, int],
    clip: float | None,
    make_sae: MakeSAE,
    assert_near: Callable[..., None],
) -> None:
    sae = make_sae(cls, **options)
    start = {name: p.detach().clone() for name, p in sae.named_parameters()}
    trainer = Trainer(sae, TrainingConfig(**LEVEL, clip_gradient=clip), total_tokens=500)
    given: dict[str, list[Tensor]] = {name: [] for name in start}
    for i in range(5):
        x = raw(50, 7, seed=i)
        grads = gradients(sae, x)
        norm = math.sqrt(sum(g.pow(2).sum().item() for g in grads.values()))
        assert norm > 0.05
        for name, grad in grads.items():
            given[name].append(grad if clip is None else grad * clip / (norm + 1e-6))
        trainer.step(x)
    for name, parameter in sae.named_parameters():
        unit_rows = name == "W_dec" and sae.unit_norm_decoder
        expected = reference.adam(start[name], given[name], 0.01, 0.9, 0.999, 1e-8, unit_rows)
        assert_near(parameter.detach(), expected, 1e-9)


def test_the_decoder_learns_from_the_gradient_of_the_loss_of_normalised_rows(
    make_sae: MakeSAE, assert_near: Callable[..., None]
) -> None:
    """d/dV L(V / |V|) at |V| = 1: nothing in it would change the norm of a row."""
    sae, x = make_sae(TopKSAE, k=4), raw(50, 7)
    free = copy.deepcopy(sae)
    V = free.W_dec.detach().clone().requires_grad_()
    del free.W_dec
    free.W_dec = V / V.norm(dim=-1, keepdim=True)  # pyright: ignore[reportAttributeAccessIssue]
    inputs = free.transform(x)
    (expected,) = torch.autograd.grad(free.training_loss(inputs, inputs, TrainingContext()).loss, V)

    before = sae.W_dec.detach().clone()
    trainer = Trainer(sae, TrainingConfig(**LEVEL))
    trainer.step(x)
    used = trainer.state()[0]["mean.W_dec"] / (1 - 0.9)
    assert_near(used, expected)
    assert (used * before).sum(-1).abs().max() < 1e-14
    assert (gradients(make_sae(TopKSAE, k=4), x)["W_dec"] * before).sum(-1).abs().max() > 1e-3


def test_decoder_rows_stay_of_norm_one_where_they_should(make_sae: MakeSAE) -> None:
    top_k, relu = make_sae(TopKSAE, k=4), make_sae(ReLUSAE)
    for sae in (top_k, relu):
        trainer = Trainer(sae, TrainingConfig(**LEVEL))
        for i in range(30):
            trainer.step(raw(50, 7, seed=i))
            if sae is top_k:
                assert (sae.W_dec.norm(dim=-1) - 1).abs().max() < 1e-14
    assert (relu.W_dec.norm(dim=-1) - 1).abs().max() > 0.1


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_a_step_leaves_neither_gradients_nor_a_graph(
    cls: type[SAE], options: dict[str, int], make_sae: MakeSAE
) -> None:
    """Also where activations come from a model that was called with gradients."""
    sae, x = make_sae(cls, **options), raw(50, 7).requires_grad_()
    trainer = Trainer(sae)
    for _ in range(2):
        step = trainer.step(2 * x)
        assert not step.loss.requires_grad
    assert x.grad is None
    assert all(p.grad is None for p in sae.parameters())


def test_the_target_is_the_input_unless_another_is_given(make_sae: MakeSAE) -> None:
    losses: list[float] = []
    for target in (None, raw(50, 7), raw(50, 7, seed=8)):
        sae = make_sae(TopKSAE, k=4)
        step = Trainer(sae).step(raw(50, 7), target)
        losses.append(step.loss.item())
        assert torch.equal(step.target, sae.transform(raw(50, 7) if target is None else target))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("d_out", [None, 7, 5])
def test_targets_are_in_the_units_in_which_they_are_predicted(d_out: int | None) -> None:
    """With layer_norm: of the row that is read in an autoencoder; of a transform of its own in a transcoder."""
    generator = torch.Generator().manual_seed(0)
    x, other = (3 * torch.randn(64, d, generator=generator, dtype=torch.float64) + 1 for d in (7, d_out or 7))
    sae = TopKSAE(7, 20, k=4, d_out=d_out, transform="layer_norm", dtype=torch.float64)
    trainer = Trainer(sae)
    step = trainer.step(x, other)
    assert sae.target_transform.fitted
    assert torch.equal(step.target, sae.target_transform(other, x))
    if d_out == 5:
        with pytest.raises(DataError, match="target"):
            trainer.step(x)
        return
    step = trainer.step(x)
    assert torch.equal(step.target, sae.target_transform(x, x))


def test_the_transform_is_fitted_on_the_first_batch_and_never_again() -> None:
    sae, x = TopKSAE(7, 20, k=4, dtype=torch.float64), raw(50, 7)
    trainer = Trainer(sae)
    trainer.step(x)
    assert torch.allclose(sae.transform.mean, x.mean(0), rtol=0, atol=1e-14)
    kept = copy.deepcopy(sae.transform.state_dict())
    trainer.step(raw(50, 7) + 100)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in sae.transform.state_dict().items())


@pytest.mark.parametrize("shape", [(50, 8), (50, 1), (7,), (5, 10, 7)])
def test_batches_of_another_shape_are_refused(shape: tuple[int, ...], make_sae: MakeSAE) -> None:
    trainer = Trainer(make_sae(TopKSAE, k=4))
    with pytest.raises(DataError, match=r"shape \(rows, 7\)"):
        trainer.step(raw(*shape))
    with pytest.raises(DataError, match=r"target must have the shape \(50, 7\)"):
        trainer.step(raw(50, 7), raw(*shape))
    assert trainer.steps == 0


# What a step reports ----------------------------------------------------------------------------------------------


def test_predicting_the_mean_gives_fvu_one_and_l0_zero(make_sae: MakeSAE) -> None:
    sae, x = make_sae(ReLUSAE), raw(50, 7)
    torch.nn.init.constant_(sae.b_enc, -1e3)
    with torch.no_grad():
        sae.b_dec.copy_(sae.transform(x).mean(0))
    step = Trainer(sae, TrainingConfig(lr=0.5, warmup=0)).step(x)
    variance = sae.transform(x).sub(sae.transform(x).mean(0)).pow(2).mean().item()
    metrics = step.metrics
    assert metrics["fvu"] == pytest.approx(1, rel=1e-12)
    assert metrics["l0"] == metrics["penalty"] == metrics["dead"] == 0
    assert metrics["loss"] == metrics["mse"] == pytest.approx(variance, rel=1e-12)
    assert metrics["lr"] == step.lr == pytest.approx(0.5 / 1000)


def test_a_perfect_dictionary_has_no_loss() -> None:
    """Both signs of every axis: each input needs one of each pair."""
    sae = ReLUSAE(7, 14, coefficient=0, transform="none", dtype=torch.float64)
    axes = torch.eye(7, dtype=torch.float64)
    for W in (sae.W_enc, sae.W_dec):
        W.data.copy_(torch.cat([axes, -axes]))
    metrics = Trainer(sae).step(raw(50, 7)).metrics
    assert metrics["loss"] < 1e-30
    assert metrics["fvu"] < 1e-30
    assert metrics["l0"] == 7


def test_half_of_the_way_to_the_mean_leaves_a_quarter_unexplained(make_sae: MakeSAE) -> None:
    sae = make_sae(TopKSAE, k=4, transform="none")
    x = raw(50, 7)
    mean = x.mean(0)
    out = TrainingLoss(torch.zeros(()), 0.5 * (x - mean), torch.full((20,), 5), {})
    sae.training_loss = lambda *_: TrainingLoss(  # pyright: ignore[reportAttributeAccessIssue]
        (sae.W_enc * 0).sum(), out.residual, out.fired, {}
    )
    metrics = Trainer(sae).step(x).metrics
    assert metrics["fvu"] == pytest.approx(0.25, rel=1e-12)
    assert metrics["l0"] == 20 * 5 / 50


def test_dead_latents_are_those_of_a_plain_loop(make_sae: MakeSAE, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents die, come back, die again; batches have different sizes."""
    sae = make_sae(TopKSAE, k=2, transform="none")
    with torch.no_grad():
        sae.b_enc[3] = -1e3
    seen: list[Tensor] = []

    def spy(sae: SAE, config: RevivalConfig, dead: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        seen.append(dead)
        return add_revival(sae, config, dead, *rest)

    monkeypatch.setattr("monosem.training.trainer.add_revival", spy)
    trainer = Trainer(sae, TrainingConfig(batch_size=4, lr=1e-3, dead_after_tokens=10), total_tokens=10_000)
    limit = trainer.dead_after
    assert limit == 80
    since, tokens, ever_dead, revived = [0] * 20, 0, set[int](), set[int]()
    for i in range(150):
        sizes = torch.zeros(7, dtype=torch.float64)
        sizes[(i // 40) % 7 :: 3] = 1  # what the inputs are made of changes now and then
        x = raw(1 + i % 4, 7, seed=i) * sizes
        fired = (sae.encode(x).to_dense() > 0).any(0).tolist()
        dead = [n >= limit for n in since]
        seen.clear()
        step = trainer.step(x)
        assert [latents.tolist() for latents in seen] == ([] if tokens < limit else [dead])
        assert ("aux" in step.metrics) == bool(seen)
        assert step.metrics["dead"] == pytest.approx(sum(dead) / 20)
        assert (step.output.fired > 0).tolist() == fired
        revived |= {latent for latent in range(20) if dead[latent] and fired[latent]}
        since = [0 if on else n + len(x) for n, on in zip(since, fired, strict=True)]
        tokens += len(x)
        ever_dead |= {latent for latent in range(20) if since[latent] >= limit}
    assert trainer.tokens == tokens
    assert 3 in ever_dead
    assert revived
    assert len(ever_dead) < 20


@pytest.mark.parametrize(
    ("settings", "total", "expected"),
    [
        ({}, None, 10_000_000),
        ({}, 1_000_000_000, 10_000_000),
        ({}, 20_000_000, 2_000_000),
        ({"dead_after_tokens": 50_000}, 20_000_000, 50_000),
        ({"dead_after_share": 0.5}, 2_000_000, 1_000_000),
        ({}, 10_000, 20 * 2048),
        ({"batch_size": 10}, 10_000, 1000),
    ],
)
def test_a_latent_is_dead_after_the_shorter_limit_but_at_least_twenty_steps(
    settings: dict[str, Any], total: int | None, expected: int
) -> None:
    assert Trainer(TopKSAE(7, 20, k=4), TrainingConfig(**settings), total).dead_after == expected


# Learning rate ----------------------------------------------------------------------------------------------------


def test_the_rate_rises_stays_and_falls() -> None:
    """100 steps: up over 5, down over 20; the first step is not at zero, nor is the last."""
    factors = [lr_factor(step, 100, 0.05, 0.2) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert set(factors[5:81]) == {1}
    assert factors[81:] == pytest.approx([(100 - step) / 20 for step in range(81, 100)])
    assert factors[-1] == pytest.approx(0.05)


def test_without_a_length_the_rate_stays_after_a_thousand_steps() -> None:
    assert [lr_factor(step, None, 0.05, 0.2) for step in (0, 499, 999, 10**6)] == [0.001, 0.5, 1, 1]


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_runs_of_a_few_steps_have_a_rate_too(n_steps: int) -> None:
    assert all(0 < lr_factor(step, n_steps, 0.05, 0.2) <= 1 for step in range(n_steps))
    assert lr_factor(n_steps, n_steps, 0.05, 0.2) == 0


def test_the_trainer_uses_that_rate(make_sae: MakeSAE) -> None:
    trainer = Trainer(make_sae(TopKSAE, k=4), TrainingConfig(lr=0.1, batch_size=10), total_tokens=95)
    assert trainer.n_steps == 10
    rates = [trainer.step(raw(10, 7, seed=i)).lr for i in range(10)]
    assert rates == pytest.approx([0.1 * lr_factor(i, 10, 0.05, 0.2) for i in range(10)])


def test_the_default_rate_falls_with_the_root_of_the_width() -> None:
    rates = [TrainingConfig().peak_lr(n) for n in (100, 1024, 4096, 16384, 65536)]
    assert rates == pytest.approx([4e-3, 4e-3, 2e-3, 1e-3, 5e-4])
    assert TrainingConfig(lr=0.7).peak_lr(4096) == 0.7


# Whole runs -------------------------------------------------------------------------------------------------------


def planted(rows: int, features: Tensor, on: int, seed: int = 0) -> Tensor:
    """Sums of a few features each, in random strengths, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(rows, len(features), generator=generator).topk(on).indices
    strengths = torch.rand(rows, on, generator=generator) + 0.5
    return torch.zeros(rows, len(features)).scatter(1, chosen, strengths) @ features + 3


def test_top_k_recovers_a_planted_dictionary() -> None:
    """48 features in 24 dimensions, of which 3 are on."""
    features = torch.randn(48, 24, generator=torch.Generator().manual_seed(0))
    features /= features.norm(dim=-1, keepdim=True)
    sae = TopKSAE(24, 64, k=3)
    config = TrainingConfig(batch_size=128, lr=1e-2)
    result = fit(sae, planted(20_000, features, 3), tokens=100_000, config=config, progress=False)
    found = (features @ sae.W_dec.detach().T).amax(1)
    assert found.mean() > 0.95
    assert (found > 0.9).float().mean() > 0.9
    fresh = planted(2000, features, 3, seed=1)
    unexplained = (fresh - sae(fresh).reconstruction).pow(2).sum() / (fresh - fresh.mean(0)).pow(2).sum()
    assert unexplained < 0.1
    assert result.history[-1]["fvu"] == pytest.approx(unexplained.item(), abs=0.03)


@pytest.mark.parametrize(("cls", "options"), CASES)
def test_the_same_seed_gives_the_same_bits(cls: type[SAE], options: dict[str, int]) -> None:
    x, config = raw(300, 7).float(), TrainingConfig(batch_size=32, log_every=1)
    runs = []
    for seed in (0, 0, 1):
        sae = cls(7, 40, seed=seed, **options)  # pyright: ignore[reportArgumentType]
        runs.append(fit(sae, x, tokens=1000, config=config, progress=False))
    states = [r.sae.state_dict() for r in runs]
    assert runs[0].history == runs[1].history != runs[2].history
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not torch.equal(states[0]["W_dec"], states[2]["W_dec"])


def test_a_run_says_what_it_did(tmp_path: Path) -> None:
    x, sae = raw(300, 7).numpy(), TopKSAE(7, 20, k=4)
    result = fit(sae, x, tokens=1000, config=TrainingConfig(batch_size=64, log_every=4), path=tmp_path, progress=False)
    assert [row["step"] for row in result.history] == [4, 8, 12, 16]
    assert [row["tokens"] for row in result.history] == [256, 512, 768, 1024]
    assert result.path == tmp_path
    assert result.sae is sae
    assert sae.metadata.tokens_trained == 1024
    fingerprint, probe = sae.metadata.fingerprint, sae.probe["activations"]
    assert fingerprint is not None
    out = sae(probe)
    unexplained = (probe - out.reconstruction).pow(2).sum() / (probe - probe.mean(0)).pow(2).sum()
    assert fingerprint.fvu == pytest.approx(unexplained.item(), rel=1e-5)
    assert fingerprint.l0 == pytest.approx(out.codes.l0().float().mean().item())
    assert fingerprint.mean_norm == pytest.approx(probe.norm(dim=-1).mean().item(), rel=1e-5)
    assert SAE.load(tmp_path).metadata == sae.metadata


def test_callbacks_are_called_after_every_step() -> None:
    seen: list[tuple[int, float]] = []
    source, config = VectorActivations(raw(30, 7)), TrainingConfig(batch_size=10, log_every=1)
    result = train(
        TopKSAE(7, 20, k=4),
        source,
        tokens=50,
        config=config,
        callbacks=[lambda trainer, step: seen.append((trainer.steps, step.metrics["loss"]))],
        progress=False,
    )
    assert seen == [(int(row["step"]), row["loss"]) for row in result.history]
    assert len(seen) == 5


def test_a_source_that_ends_ends_the_run() -> None:
    source = IterableActivations(raw(25, 7, seed=i) for i in range(4))
    with pytest.warns(UserWarning, match="ended after 90 of 1,000,000 tokens.* Train with tokens=90"):
        result = train(TopKSAE(7, 20, k=4), source, tokens=10**6, config=TrainingConfig(batch_size=30), progress=False)
    assert result.sae.metadata.tokens_trained == 90


def test_a_source_shorter_than_a_batch_is_refused() -> None:
    """In place of an SAE that was not trained."""
    for x in ([raw(25, 7), raw(4, 7)], (raw(5, 7, seed=i) for i in range(2))):
        with pytest.raises(DataError, match="nothing was trained: there are fewer rows than a batch of 30"):
            fit(TopKSAE(7, 20, k=4), x, config=TrainingConfig(batch_size=30), progress=False)


def test_the_rate_falls_to_the_end_of_a_list_of_batches() -> None:
    config = TrainingConfig(batch_size=30, log_every=1, lr=0.01)
    result = fit(TopKSAE(7, 20, k=4), [raw(25, 7, seed=i) for i in range(20)], config=config, progress=False)
    assert len(result.history) == 500 // 30
    assert result.history[-1]["lr"] < 0.005 < max(row["lr"] for row in result.history)


def test_training_on_from_the_middle_of_a_run_does_not_initialise_anew(tmp_path: Path) -> None:
    x, config = raw(300, 7), TrainingConfig(batch_size=30, checkpoint_minutes=0, lr=1e-9)
    sae = TopKSAE(7, 20, k=4, dtype=torch.float64)

    def stop(trainer: Trainer, _: Any) -> None:
        if trainer.steps == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(sae, VectorActivations(x), tokens=300, config=config, path=tmp_path, callbacks=[stop], progress=False)
    found = SAE.load(max((tmp_path / "checkpoints").glob("step_*")))
    assert found.metadata.tokens_trained == 90
    assert sae.metadata.tokens_trained == 120  # of the one in memory, too
    for half_trained, before in ((found, 90), (sae, 120)):
        encoder = half_trained.W_enc.detach().clone()
        fit(half_trained, 5 * x + 3, tokens=60, config=config, progress=False)
        torch.testing.assert_close(half_trained.W_enc.detach(), encoder, rtol=0, atol=1e-7)
        assert half_trained.metadata.tokens_trained == before + 60


def test_what_cannot_be_had_of_one_row_is_null_in_the_log(tmp_path: Path) -> None:
    sae, config = TopKSAE(7, 20, k=4), TrainingConfig(batch_size=1, log_every=1)
    result = fit(sae, raw(50, 7), tokens=5, config=config, path=tmp_path, progress=False)
    assert len(result.history) == 5
    assert all(math.isnan(row["fvu"]) and math.isfinite(row["loss"]) for row in result.history)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["fvu"] for line in lines] == [None] * 5
    assert "NaN" not in "".join(lines)


def test_fit_reads_everything_at_least_once_and_a_million_rows_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(run, "train", lambda sae, source, *, tokens, **_: asked.append(tokens))
    many = np.broadcast_to(np.zeros((1, 7)), (3_000_000, 7))
    for x in (np.zeros((5, 7)), many, [np.zeros((2500, 7))] * 2, iter([np.zeros((5, 7))])):
        fit(TopKSAE(7, 20, k=4), x)
    assert asked == [1_000_000, 3_000_000, 4096, 1_000_000]


def test_an_sae_of_another_width_than_the_source_is_refused() -> None:
    with pytest.raises(MismatchError, match="d_in=8"):
        fit(TopKSAE(7, 20, k=4), raw(50, 8))


def test_progress_is_told_in_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    fit(TopKSAE(7, 20, k=4), raw(50, 7), tokens=100, config=TrainingConfig(batch_size=10))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training 100%  loss ")
    assert "tokens/s" in line


def test_training_a_trained_sae_further_goes_on_from_its_weights() -> None:
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    config = TrainingConfig(batch_size=100, lr=1e-9)
    sae = TopKSAE(8, 32, k=4)
    fit(sae, x, tokens=500, config=config, progress=False)
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    fit(sae, 5 * x + 3, tokens=500, config=config, progress=False)
    for name, tensor in sae.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=1e-6)
