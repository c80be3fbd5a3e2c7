"""Runs whose numbers go wrong end with a clear error, before anything is poisoned or saved."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem.activations import VectorActivations
from monosem.errors import ConfigError, DataError, DivergenceError
from monosem.sae import SAE, BatchTopKSAE, GatedSAE, JumpReLUSAE, MatryoshkaSAE, ReLUSAE, TopKSAE, load_sae
from monosem.training import Trainer, TrainingConfig, TrainingResult, train

MakeSAE = Callable[..., SAE]
ALL = [
    (TopKSAE, {"k": 4}),
    (BatchTopKSAE, {"k": 4}),
    (MatryoshkaSAE, {"k": 4}),
    (ReLUSAE, {}),
    (JumpReLUSAE, {}),
    (GatedSAE, {}),
]


def rows(n: int = 600, d: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("lr", [30.0, 1e3, 1e8, 1e30])
@pytest.mark.parametrize(("cls", "options"), ALL)
def test_a_run_at_a_huge_rate_ends_in_an_error_and_saves_nothing(
    cls: type[SAE], options: dict[str, Any], lr: float, tmp_path: Path
) -> None:
    config = TrainingConfig(lr=lr, batch_size=60, warmup=0)
    with pytest.raises(DivergenceError, match=rf"diverged after .*lr is {lr:g}".replace("+", r"\+")):
        train(
            cls(12, 40, **options), VectorActivations(rows()), tokens=3000, config=config, path=tmp_path, progress=False
        )
    assert not (tmp_path / "sae").exists()
    assert not list((tmp_path / "checkpoints").glob("step_*"))


def test_the_last_good_checkpoint_of_a_run_that_diverges_is_kept(tmp_path: Path) -> None:
    sae, config = TopKSAE(12, 40, k=4), TrainingConfig(batch_size=60, checkpoint_minutes=0, log_every=1)

    def spoil(trainer: Trainer, _: Any) -> None:
        if trainer.steps == 20:
            with torch.no_grad():
                sae.W_dec[3] = torch.inf

    with pytest.raises(DivergenceError, match="after 20 steps"):
        train(
            sae,
            VectorActivations(rows()),
            tokens=3000,
            config=config,
            path=tmp_path,
            progress=False,
            callbacks=[spoil],
        )
    kept = sorted((tmp_path / "checkpoints").glob("step_*"))[-1]
    assert kept.name == "step_00000019"
    good = load_sae(kept)
    assert good.W_dec.isfinite().all()
    assert good.metadata.tokens_trained == 19 * 60


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e39])
@pytest.mark.parametrize("transform", ["none", "centre_scale", "layer_norm"])
@pytest.mark.parametrize(("cls", "options"), ALL)
def test_rows_that_are_not_finite_are_refused_and_harm_nothing(
    cls: type[SAE], options: dict[str, Any], transform: Any, bad: float
) -> None:
    sae, x = cls(12, 40, transform=transform, **options), rows(30).double()
    trainer = Trainer(sae)
    trainer.step(x)
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    x[7, 3] = bad
    with pytest.raises(DataError, match=r"1 of 30 rows .*row 7"):
        trainer.step(x)
    assert all(torch.equal(p, before[name]) for name, p in sae.named_parameters())
    assert (trainer.steps, trainer.tokens) == (1, 30)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused_before_anything_is_trained(dtype: torch.dtype) -> None:
    with pytest.raises(ConfigError, match=r"cannot be trained.*float32"):
        Trainer(TopKSAE(12, 40, k=4, dtype=dtype))
    sae = TopKSAE(12, 40, k=4, dtype=dtype).float()
    Trainer(sae).step(rows())
    assert sae(rows()).reconstruction.isfinite().all()
    assert sae.to(dtype)(rows()).reconstruction.isfinite().all()


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_weights_that_are_not_finite_are_not_trained(name: str, make_sae: MakeSAE) -> None:
    sae = make_sae(TopKSAE, k=4)
    with torch.no_grad():
        sae.get_parameter(name).view(-1)[2] = torch.nan
    with pytest.raises(DataError, match=rf"1 of the [0-9]+ numbers of {name} are not finite"):
        Trainer(sae)


def test_a_step_counts_what_the_sae_was_trained_on(make_sae: MakeSAE) -> None:
    sae = make_sae(TopKSAE, k=4, n_latents=20)
    trainer = Trainer(sae)
    for n in (30, 1, 7):
        trainer.step(rows(n, 7))
    assert sae.metadata.tokens_trained == trainer.tokens == 38


def test_an_empty_batch_is_refused(make_sae: MakeSAE) -> None:
    with pytest.raises(DataError, match="at least one row"):
        Trainer(make_sae(TopKSAE, k=4)).step(rows(0, 7))


def planted(n: int = 8192, d: int = 16) -> torch.Tensor:
    """Sparse sums of 48 directions."""
    generator = torch.Generator().manual_seed(0)
    on = torch.rand(n, 48, generator=generator) < 0.05
    return (on * torch.rand(n, 48, generator=generator)) @ torch.nn.functional.normalize(
        torch.randn(48, d, generator=generator), dim=1
    )


@pytest.mark.filterwarnings("ignore:.*the rate was too high")
@pytest.mark.parametrize(
    ("cls", "options", "lr", "what"),
    [
        (TopKSAE, {"k": 4}, 1.0, "predicting the mean has 1"),
        (TopKSAE, {"k": 4}, 0.3, "of the latents are dead"),
        (BatchTopKSAE, {"k": 4}, 2.0, "and was .* before"),
        (ReLUSAE, {}, 0.3, "predicting the mean has 1"),
        (GatedSAE, {}, 0.3, "of the latents are dead"),
    ],
)
def test_a_rate_that_is_too_high_but_does_not_explode_is_said(
    cls: type[SAE], options: dict[str, Any], lr: float, what: str, tmp_path: Path
) -> None:
    """And the usual one is not; a finished run says it again."""

    def trained(lr: float | None, folder: Path) -> TrainingResult:
        config = TrainingConfig(batch_size=128, lr=lr, log_every=2)
        sae = cls(16, 96, **options)
        return train(sae, VectorActivations(planted()), tokens=8192, config=config, path=folder, progress=False)

    assert trained(None, tmp_path / "usual").remarks == ()
    result = trained(lr, tmp_path / "fast")
    (remark,) = result.remarks
    assert re.search(rf"{what}.*: the rate was too high. Lower the rate \(lr is {lr:g}; 0.004 is usual", remark)
    assert trained(lr, tmp_path / "fast").remarks == result.remarks
