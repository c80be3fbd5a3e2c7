"""Revival: gradients equal the dense formula, for any architecture, whatever share of the latents is dead."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from monosem.errors import ConfigError
from monosem.kernels import sparse
from monosem.kernels.reference import keep_top_k
from monosem.sae import SAE, BatchTopKSAE, MatryoshkaSAE, ReLUSAE, TopKSAE, TrainingContext
from monosem.synthetic import PlantedDictionary
from monosem.training import Trainer, TrainingConfig
from monosem.training.optimizer import Adam
from monosem.training.resample import due, resample
from monosem.training.revival import RevivalConfig, RevivalMethod, add_revival, raise_silent

MakeSAE = Callable[..., SAE]
Near = Callable[[Tensor, Tensor], None]


@pytest.fixture(params=["sparse", "dense"], autouse=True)
def evaluation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sparse, "DENSE_ABOVE", 2.0 if request.param == "sparse" else -1.0)
    return request.param


def dead_latents(n: int, share: float) -> Tensor:
    dead = torch.zeros(n, dtype=torch.bool)
    dead[torch.randperm(n, generator=torch.Generator().manual_seed(5))[: round(share * n)]] = True
    return dead


def dense_aux_k(sae: SAE, x: Tensor, residual: Tensor, dead: Tensor, k_aux: int | None) -> Tensor:
    """The formula, in which every tensor is whole."""
    pre = (x - sae.b_dec if sae.subtract_b_dec else x) @ sae.W_enc.T + sae.b_enc
    speaking = keep_top_k(pre[:, dead], min(k_aux or sae.d_out // 2, int(dead.sum()))).relu()
    return (residual - speaking @ sae.W_dec[dead]).pow(2).sum() / residual.pow(2).sum()


@pytest.mark.parametrize(("share_dead", "k_aux"), [(0.2, 50), (0.2, 24), (0.2, 5), (0.2, None), (1.0, 30), (0.01, 8)])
@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (TopKSAE, {"k": 6}),
        (TopKSAE, {"k": 6, "d_out": 11}),
        (BatchTopKSAE, {"k": 6}),
        (MatryoshkaSAE, {}),
        (ReLUSAE, {}),
    ],
)
def test_aux_k_adds_the_gradient_of_the_dense_formula(
    cls: type[SAE],
    options: dict[str, int],
    share_dead: float,
    k_aux: int | None,
    make_sae: MakeSAE,
    assert_near: Near,
) -> None:
    sae, dead = make_sae(cls, 16, 120, **options), dead_latents(120, share_dead)
    x = torch.randn(60, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = torch.randn(60, sae.d_out, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    out = sae.training_loss(x, target, TrainingContext())
    aux = dense_aux_k(sae, x, out.residual, dead, k_aux)
    expected = torch.autograd.grad(out.loss + 0.5 * aux, list(sae.parameters()), retain_graph=True)

    out.loss.backward()
    config = RevivalConfig(coefficient=0.5, k_aux=k_aux)
    terms = add_revival(sae, config, dead, sae.centred(x).detach(), out.residual)
    assert_near(terms["aux"], aux.detach())
    for parameter, grad in zip(sae.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert_near(parameter.grad, grad)


@pytest.mark.parametrize("k_aux", [23, 24, 25])
def test_of_dead_latents_that_are_all_above_zero_only_k_aux_speak(
    k_aux: int, make_sae: MakeSAE, assert_near: Near
) -> None:
    sae, dead = make_sae(TopKSAE, 16, 120, k=6), dead_latents(120, 0.2)
    with torch.no_grad():
        sae.b_enc[dead] += 20
    x, residual = torch.randn(2, 50, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = add_revival(sae, RevivalConfig(k_aux=k_aux), dead, sae.centred(x).detach(), residual)["aux"]
    expected, fewer = (dense_aux_k(sae, x, residual, dead, n).detach() for n in (k_aux, k_aux - 1))
    assert_near(found, expected)
    assert not torch.allclose(found, fewer) or k_aux > 24


def dense_ghost(sae: SAE, x: Tensor, residual: Tensor, dead: Tensor) -> Tensor:
    pre = (x - sae.b_dec.detach() if sae.subtract_b_dec else x) @ sae.W_enc.T + sae.b_enc
    ghost = pre[:, dead].exp() @ sae.W_dec[dead]
    ghost = ghost * (residual.norm(dim=1, keepdim=True) / 2 / ghost.norm(dim=1, keepdim=True)).detach()
    error = (residual - ghost).pow(2).mean()
    return error * (residual.pow(2).mean() / error).detach()


def dense_pre_activation(sae: SAE, x: Tensor, dead: Tensor) -> Tensor:
    pre = (x - sae.b_dec.detach() if sae.subtract_b_dec else x) @ sae.W_enc.T + sae.b_enc
    threshold = torch.zeros(len(x), sae.n_latents, dtype=x.dtype)
    if isinstance(sae, BatchTopKSAE):
        threshold += sae.threshold
    elif isinstance(sae, TopKSAE):
        threshold += pre.detach().topk(sae.k).values[:, -1:].clamp_min(0)
    lifted = (threshold - pre).relu() * sae.W_dec.detach().norm(dim=1)
    return lifted[:, dead].sum(1).mean() / sae.d_out


@pytest.mark.parametrize("method", ["ghost", "ghost_scaled", "pre_activation"])
@pytest.mark.parametrize("share_dead", [0.01, 0.2, 1.0])
@pytest.mark.parametrize(
    ("cls", "options"),
    [(TopKSAE, {"k": 6}), (TopKSAE, {"k": 6, "d_out": 11}), (BatchTopKSAE, {"k": 6}), (ReLUSAE, {})],
)
def test_the_other_losses_add_the_gradient_of_their_dense_formula(
    cls: type[SAE],
    options: dict[str, int],
    share_dead: float,
    method: RevivalMethod,
    make_sae: MakeSAE,
    assert_near: Near,
) -> None:
    sae, dead = make_sae(cls, 16, 120, **options), dead_latents(120, share_dead)
    if isinstance(sae, BatchTopKSAE):
        sae.running_threshold.fill_(0.3)
        sae.threshold_weight.fill_(1.0)
    if share_dead < 1:  # else some are at a row's threshold themselves, up to rounding
        sae.b_enc.data[dead] -= 5
    elif type(sae) is TopKSAE and method == "pre_activation":
        return
    x = torch.randn(60, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    residual = torch.randn(60, sae.d_out, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    weight = 0.5 * (dead.double().mean() if method == "ghost_scaled" else 1)
    formula = dense_pre_activation(sae, x, dead) if method == "pre_activation" else dense_ghost(sae, x, residual, dead)
    parameters = list(sae.parameters())
    expected = torch.autograd.grad(weight * formula, parameters, allow_unused=True, materialize_grads=True)

    terms = add_revival(sae, RevivalConfig(method=method, coefficient=0.5), dead, sae.centred(x).detach(), residual)
    assert_near(terms["aux"], formula.detach())
    for parameter, grad in zip(parameters, expected, strict=True):
        assert_near(torch.zeros_like(grad) if parameter.grad is None else parameter.grad, grad)


def test_ghost_gradients_do_not_overflow(make_sae: MakeSAE) -> None:
    sae, x = make_sae(ReLUSAE, 7, 9, dtype=torch.float32), torch.randn(5, 7)
    with torch.no_grad():
        sae.b_enc += 200
    terms = add_revival(sae, RevivalConfig(method="ghost"), torch.ones(9, dtype=torch.bool), x, x)
    assert torch.isfinite(terms["aux"])
    assert sae.W_enc.grad is not None
    assert torch.isfinite(sae.W_enc.grad).all()


# Resampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "options"), [(TopKSAE, {"k": 6}), (TopKSAE, {"k": 6, "d_out": 11}), (ReLUSAE, {}), (MatryoshkaSAE, {})]
)
def test_resampled_latents_point_at_badly_reconstructed_inputs(
    cls: type[SAE], options: dict[str, int], make_sae: MakeSAE, assert_near: Near
) -> None:
    sae, dead = make_sae(cls, 16, 40, **options), dead_latents(40, 0.2)
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    optimizer = Adam(dict(sae.named_parameters()), 0.9, 0.999)
    for tensor in (*optimizer.mean.values(), *optimizer.square.values()):
        tensor.fill_(1.0)
    x = torch.randn(60, 16, dtype=torch.float64)
    target = torch.randn(60, sae.d_out, dtype=torch.float64) if "d_out" in options else x
    residual = torch.zeros(60, sae.d_out, dtype=torch.float64)
    bad = torch.arange(3, 33, 3)
    residual[bad] = torch.randn(len(bad), sae.d_out, dtype=torch.float64)

    latents = resample(sae, optimizer, dead, (x, target), residual, norm=0.2, seed=4)
    assert torch.equal(latents, dead.nonzero()[:, 0])
    encoder, decoder = before["W_enc"][~dead].norm(dim=1).mean(), before["W_dec"][~dead].norm(dim=1).mean()
    assert_near(sae.W_enc[dead].norm(dim=1).detach(), torch.full((8,), 0.2 * encoder.item(), dtype=torch.float64))
    assert_near(sae.W_dec[dead].norm(dim=1).detach(), torch.full((8,), decoder.item(), dtype=torch.float64))
    rows = torch.nn.functional.cosine_similarity(sae.W_enc[dead][:, None], x[None], dim=-1).argmax(1)
    assert len(set(rows.tolist())) == 8
    assert set(rows.tolist()) <= set(bad.tolist())
    for weights, source in ((sae.W_enc, x), (sae.W_dec, target)):
        same = torch.nn.functional.cosine_similarity(weights[dead], source[rows], dim=-1)
        assert_near(same.detach(), torch.ones(8, dtype=torch.float64))
    assert not sae.b_enc[dead].any()
    for name, parameter in sae.named_parameters():
        if name == "b_dec":
            assert torch.equal(parameter, before[name])
            continue
        assert torch.equal(parameter[~dead], before[name][~dead])
        for moments in (optimizer.mean[name], optimizer.square[name]):
            assert not moments[dead].any()
            assert (moments[~dead] == 1).all()


def test_inputs_are_drawn_by_the_square_of_their_squared_error(make_sae: MakeSAE) -> None:
    sae = make_sae(ReLUSAE, 2, 3)
    dead, x = torch.tensor([False, True, False]), torch.eye(2, dtype=torch.float64)
    residual = torch.tensor([[1.0, 0.0], [0.0, 3**0.5]], dtype=torch.float64)
    optimizer, second = Adam(dict(sae.named_parameters()), 0.9, 0.999), 0
    for seed in range(400):
        resample(sae, optimizer, dead, (x, x), residual, norm=0.2, seed=seed)
        second += bool(sae.W_dec[1, 1] > 0)
    assert 0.85 < second / 400 < 0.95  # 9 / 10


def test_of_more_dead_latents_than_bad_inputs_some_stay(make_sae: MakeSAE) -> None:
    sae, x = make_sae(ReLUSAE, 4, 9), torch.randn(3, 4, dtype=torch.float64)
    optimizer = Adam(dict(sae.named_parameters()), 0.9, 0.999)
    everything = torch.ones(9, dtype=torch.bool)
    assert resample(sae, optimizer, everything, (x, x), x, norm=0.2, seed=0).tolist() == [0, 1, 2]
    assert not len(resample(sae, optimizer, everything, (x, x), 0 * x, norm=0.2, seed=0))


def test_resampling_is_due_once_at_each_share_of_the_run() -> None:
    config = RevivalConfig(method="resample", resample_at=(0.25, 0.5))
    assert [t for t in range(0, 100, 10) if due(config, t, t + 10, 100)] == [20, 40]
    assert not due(RevivalConfig(), 20, 30, 100)


def test_resampling_needs_the_length_of_the_run(make_sae: MakeSAE) -> None:
    with pytest.raises(ConfigError, match="total_tokens"):
        Trainer(make_sae(TopKSAE, k=4), TrainingConfig(revival=RevivalConfig(method="resample")))


# What it is for ---------------------------------------------------------------------------------------------------


@lru_cache
def dead_at_the_end(cls: type[SAE], k: int | None, method: RevivalMethod) -> int:
    """Of 64 latents on planted data, 32 of which are born dead."""
    planted = PlantedDictionary(64, 16, l0=2)
    sae = cls(16, 64, **({"k": k} if k else {}))
    x = planted.sample(256 * 160).x
    sae.initialise(x[:4096])
    with torch.no_grad():
        sae.b_enc[::2] = -4.0
    trainer = Trainer(sae, TrainingConfig(batch_size=256, lr=0.02, revival=RevivalConfig(method=method)), len(x))
    for batch in x.split(256):
        trainer.step(batch)
    return int((sae.encode(planted.sample(4096, seed=1).x).firing_counts() == 0).sum())


@pytest.mark.parametrize(
    ("cls", "k", "method"),
    [
        (TopKSAE, 4, "aux_k"),
        (TopKSAE, 4, "ghost"),
        (TopKSAE, 4, "pre_activation"),
        (BatchTopKSAE, 4, "ghost_scaled"),
        (ReLUSAE, None, "resample"),
        (ReLUSAE, None, "ghost"),
        (ReLUSAE, None, "ghost_scaled"),
        (ReLUSAE, None, "pre_activation"),
    ],
)
def test_every_method_brings_dead_latents_back(
    cls: type[SAE], k: int | None, method: RevivalMethod, evaluation: str
) -> None:
    if evaluation == "dense":
        pytest.skip("once is enough")
    without = dead_at_the_end(cls, k, "none")
    assert without >= 30
    assert dead_at_the_end(cls, k, method) <= 0.9 * without


BORN_SILENT = -40.0
"""A bias with which a latent is below zero on every row."""


@pytest.mark.parametrize(
    ("cls", "options", "method"),
    [
        (TopKSAE, {"k": 4}, "aux_k"),
        (ReLUSAE, {}, "aux_k"),
        (TopKSAE, {"k": 4}, "resample"),
        (BatchTopKSAE, {"k": 4}, "resample"),
    ],
)
def test_latents_that_are_below_zero_on_every_row_come_back_and_stay(
    cls: type[SAE], options: dict[str, int], method: RevivalMethod, evaluation: str
) -> None:
    """Half of 128. They have the second half of the run to die again, as resampled rows of small norm do in TopK."""
    if evaluation == "dense":
        pytest.skip("once is enough")
    planted = PlantedDictionary(96, 24, l0=3)
    x, sae = planted.sample(128 * 200).x, cls(24, 128, **options)  # pyright: ignore[reportArgumentType]
    sae.initialise(x[:4096])
    with torch.no_grad():
        sae.b_enc[::2] = BORN_SILENT
    trainer = Trainer(sae, TrainingConfig(batch_size=128, revival=RevivalConfig(method=method)), len(x))
    for batch in x.split(128):
        trainer.step(batch)
    firing = sae.encode(planted.sample(4096, seed=1).x).firing_counts()
    assert (firing[::2] == 0).double().mean() < 0.3


def test_only_silent_latents_are_raised_and_no_further_than_to_speak(make_sae: MakeSAE) -> None:
    sae, x = make_sae(TopKSAE, k=4), torch.randn(300, 7, dtype=torch.float64)
    dead = torch.zeros(20, dtype=torch.bool)
    dead[:6] = True
    with torch.no_grad():
        sae.b_enc[:3] -= 1000
        sae.b_enc[10] -= 1000  # silent, but not dead for long enough
    before = sae.b_enc.detach().clone()
    assert raise_silent(sae, dead, x).tolist() == [0, 1, 2]
    assert torch.equal(sae.b_enc[3:], before[3:])
    on = (x @ sae.W_enc.T + sae.b_enc > 0)[:, :3].sum(0)
    assert ((on >= 1) & (on <= 4)).all()
    assert not len(raise_silent(sae, dead, x))
    assert not len(raise_silent(sae, ~dead & dead, x))


def test_a_resampled_row_is_as_long_as_the_architecture_needs(make_sae: MakeSAE) -> None:
    config = RevivalConfig(method="resample")
    assert config.new_norm(make_sae(TopKSAE, k=4)) == config.new_norm(make_sae(BatchTopKSAE, k=4)) == 1
    assert config.new_norm(make_sae(ReLUSAE)) == 0.2
    assert RevivalConfig(resample_norm=0.7).new_norm(make_sae(TopKSAE, k=4)) == 0.7


@pytest.mark.parametrize("config", [RevivalConfig(), RevivalConfig(method="none"), RevivalConfig(coefficient=0)])
def test_nothing_happens_while_no_latent_is_dead_or_where_it_is_left_out(
    config: RevivalConfig, make_sae: MakeSAE
) -> None:
    sae, x = make_sae(TopKSAE, k=4), torch.randn(30, 7, dtype=torch.float64)
    dead = torch.zeros(20, dtype=torch.bool) if config == RevivalConfig() else torch.ones(20, dtype=torch.bool)
    terms = add_revival(sae, config, dead, x, x)
    assert not any(terms.values())
    assert all(p.grad is None for p in sae.parameters())


def test_a_perfect_reconstruction_leaves_aux_finite(make_sae: MakeSAE) -> None:
    """The residual's energy, by which AuxK is divided, is then zero."""
    sae = make_sae(TopKSAE, 7, 9, k=1)
    x = torch.randn(5, 7, dtype=torch.float64)
    dead = torch.ones(9, dtype=torch.bool)
    terms = add_revival(sae, RevivalConfig(), dead, sae.centred(x).detach(), torch.zeros_like(x))
    assert torch.isfinite(terms["aux"])
    grads = [p.grad for p in sae.parameters()]
    assert all(grad is None or torch.isfinite(grad).all() for grad in grads)
