"""Several SAEs on one stream: each ends as if trained alone, bit for bit, also when the run is killed on the way."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from monosem.activations import ActivationSource, VectorActivations, vectors
from monosem.errors import ConfigError, MismatchError
from monosem.sae import SAE, BatchTopKSAE, MatryoshkaSAE, ReLUSAE, TopKSAE
from monosem.training import Step, Trainer, TrainingConfig, TrainingResult, train, train_together

TOKENS = 16 * 40


def source() -> VectorActivations:
    return VectorActivations(torch.randn(300, 6, generator=torch.Generator().manual_seed(0)) + 1)


def make() -> dict[str, SAE]:
    return {
        "few": TopKSAE(6, 24, k=2),
        "many": TopKSAE(6, 24, k=5, seed=3),
        "batch": BatchTopKSAE(6, 32, k=3),
        "nested": MatryoshkaSAE(6, 32, k=3),
        "relu": ReLUSAE(6, 24),
    }


def configs(minutes: float = 60) -> dict[str, TrainingConfig]:
    rates = {"few": 1e-3, "many": 3e-3, "batch": 2e-3, "nested": 1e-3, "relu": 1e-2}
    return {
        name: TrainingConfig(batch_size=16, lr=lr, log_every=3, checkpoint_minutes=minutes)
        for name, lr in rates.items()
    }


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "POOL_ROWS", 70)


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[dict[str, Tensor], list[dict[str, float]]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vectors, "POOL_ROWS", 70)
        results = {
            name: train(sae, source(), tokens=TOKENS, config=configs()[name], progress=False)
            for name, sae in make().items()
        }
    return {name: (result.sae.state_dict(), result.history) for name, result in results.items()}


def assert_same(saes: Mapping[str, SAE], alone: dict[str, tuple[dict[str, Tensor], list[dict[str, float]]]]) -> None:
    for name, sae in saes.items():
        assert sae.metadata.tokens_trained == TOKENS
        for key, tensor in alone[name][0].items():
            assert torch.equal(sae.state_dict()[key], tensor), (name, key)


def test_each_equals_itself_trained_alone(alone: dict[str, tuple[dict[str, Tensor], list[dict[str, float]]]]) -> None:
    results = train_together(make(), source(), tokens=TOKENS, config=configs(), progress=False)
    assert_same({name: result.sae for name, result in results.items()}, alone)
    for name, result in results.items():
        assert result.history == alone[name][1]


def test_sources_may_differ_by_sae(alone: dict[str, tuple[dict[str, Tensor], list[dict[str, float]]]]) -> None:
    own: dict[str, ActivationSource] = {name: source() for name in make()}
    results = train_together(make(), own, tokens=TOKENS, config=configs(), progress=False)
    assert_same({name: result.sae for name, result in results.items()}, alone)


LENGTHS = {"few": 16 * 7, "many": TOKENS, "batch": 16 * 21, "nested": 16 * 7, "relu": 16 * 38}


def test_each_of_its_own_length_equals_itself_trained_alone_also_when_killed(tmp_path: Path) -> None:
    """A short one has its whole schedule while others go on, and is not trained on when the run is taken up again."""
    alone = {
        name: train(sae, source(), tokens=LENGTHS[name], config=configs()[name], progress=False)
        for name, sae in make().items()
    }
    count = 0

    def kill(trainer: Trainer, step: Step) -> None:
        nonlocal count
        count += 1
        if count % 37 == 0:
            raise Killed

    def together(minutes: float, path: Path | None = None, **options: Any) -> dict[str, TrainingResult]:
        return train_together(
            make(), source(), tokens=LENGTHS, config=configs(minutes), path=path, progress=False, **options
        )

    for _ in range(3):
        with pytest.raises(Killed):
            together(0, tmp_path, callbacks=[kill])
    for results in (together(60), together(0, tmp_path), together(0, tmp_path)):
        for name, result in results.items():
            assert result.sae.metadata.tokens_trained == LENGTHS[name]
            for key, tensor in alone[name].sae.state_dict().items():
                assert torch.equal(result.sae.state_dict()[key], tensor), (name, key)
            assert result.history == alone[name].history


class Killed(BaseException):
    """Ends a run where a kill would."""


@pytest.mark.parametrize("minutes", [0, 60])
def test_killed_at_any_place_and_called_again_it_ends_in_the_same_bits(
    minutes: float, tmp_path: Path, alone: dict[str, tuple[dict[str, Tensor], list[dict[str, float]]]]
) -> None:
    """Every SAE's every step can be the last one; so can the writing of any checkpoint."""
    count = 0

    def kill(trainer: Trainer, step: Step) -> None:
        nonlocal count
        count += 1
        if count % 43 == 0:
            raise Killed

    for _ in range(3):
        with pytest.raises(Killed):
            train_together(
                make(),
                source(),
                tokens=TOKENS,
                config=configs(minutes),
                path=tmp_path,
                callbacks=[kill],
                progress=False,
            )
    results = train_together(make(), source(), tokens=TOKENS, config=configs(minutes), path=tmp_path, progress=False)
    assert_same({name: result.sae for name, result in results.items()}, alone)
    for name in results:
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        assert rows == alone[name][1]
        assert len(list((tmp_path / name / "checkpoints").iterdir())) == 1


def test_where_the_newest_checkpoint_of_one_is_damaged_it_alone_goes_on_from_the_one_before(
    tmp_path: Path, alone: dict[str, tuple[dict[str, Tensor], list[dict[str, float]]]]
) -> None:
    def kill(trainer: Trainer, step: Step) -> None:
        if trainer.steps == 6:
            raise Killed

    options = {"tokens": TOKENS, "config": configs(0), "path": tmp_path, "progress": False}
    with pytest.raises(Killed):
        train_together(make(), source(), callbacks=[kill], **options)
    name = list(make())[1]
    newest, before = sorted((tmp_path / name / "checkpoints").glob("step_*"), reverse=True)
    content = bytearray((newest / "trainer.safetensors").read_bytes())
    content[-3] ^= 4
    (newest / "trainer.safetensors").write_bytes(content)
    with pytest.warns(UserWarning, match=f"{newest.name}.*goes on from the one before, {before.name}"):
        results = train_together(make(), source(), **options)
    assert_same({name: result.sae for name, result in results.items()}, alone)


def test_killed_between_the_checkpoints_of_two_saes_each_goes_on_from_its_own(
    tmp_path: Path,
    alone: dict[str, tuple[dict[str, Tensor], list[dict[str, float]]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from monosem.training import member

    written = 0
    original = member.write_checkpoint

    def torn(*arguments: object) -> Path:
        nonlocal written
        written += 1
        if written == 13:  # the third of the third round
            raise Killed
        return original(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(member, "write_checkpoint", torn)
    options = {"tokens": TOKENS, "config": configs(0), "path": tmp_path, "progress": False}
    with pytest.raises(Killed):
        train_together(make(), source(), **options)
    newest = [max(int(p.name[5:]) for p in (tmp_path / name / "checkpoints").glob("step_*")) for name in make()]
    assert newest == [3, 3, 2, 2, 2]
    assert_same({name: r.sae for name, r in train_together(make(), source(), **options).items()}, alone)


def test_what_cannot_be_trained_together_is_said_before_work_starts() -> None:
    with pytest.raises(ConfigError, match="give at least one"):
        train_together({}, source(), tokens=TOKENS)
    config = {name: TrainingConfig(batch_size=16 if name == "few" else 32) for name in make()}
    with pytest.raises(ConfigError, match=r"batch sizes \[16, 32\] must be equal"):
        train_together(make(), source(), tokens=TOKENS, config=config)
    with pytest.raises(MismatchError, match="d_in=6"):
        train_together({**make(), "other": TopKSAE(7, 9, k=2)}, source(), tokens=TOKENS)
