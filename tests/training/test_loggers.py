"""Loggers: every one sees every logged step once, also when a run is stopped and goes on; a look at the rows before."""

from __future__ import annotations

import builtins
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.errors import ConfigError
from monosem.training import LOGGERS, TrainingInterrupted, train_together

TOKENS = 640


def settings(*names: str) -> ms.TrainingConfig:
    return ms.TrainingConfig(batch_size=32, log_every=2, loggers=names, checkpoint_minutes=0)


def rows(mean: float = 0.0) -> torch.Tensor:
    return torch.randn(2000, 8, generator=torch.Generator().manual_seed(0)) + mean


def sae(**options: Any) -> ms.TopKSAE:
    return ms.TopKSAE(8, 16, k=3, **options)


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Notes:
    """A logger that remembers."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.begun_after, self.closed = folder, steps, False
        self.seen: list[dict[str, float]] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.seen.append({"step": step, **metrics})

    def close(self) -> None:
        self.closed = True


def test_a_logger_of_one_s_own_sees_what_metrics_jsonl_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Notes] = []
    monkeypatch.setitem(LOGGERS, "notes", lambda folder, steps: opened.append(Notes(folder, steps)) or opened[-1])
    source, saes = ms.activations(rows()), {"a": sae(), "b": sae(seed=1)}
    train_together(saes, source, tokens=TOKENS, config=settings("notes"), path=tmp_path, progress=False)
    assert [notes.folder.name for notes in opened] == ["a", "b"]
    for notes in opened:
        assert notes.closed
        assert notes.seen == lines(notes.folder)
        assert [row["step"] for row in notes.seen] == list(range(2, 21, 2))


def test_loggers_are_closed_when_a_run_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Notes] = []
    monkeypatch.setitem(LOGGERS, "notes", lambda folder, steps: opened.append(Notes(folder, steps)) or opened[-1])

    def fail(trainer: ms.Trainer, _: object) -> None:
        if trainer.steps == 5:
            raise ValueError("broken")

    options: dict[str, Any] = {"tokens": TOKENS, "config": settings("notes"), "path": tmp_path, "progress": False}
    with pytest.raises(ValueError, match="broken"):
        ms.train(sae(), ms.activations(rows()), callbacks=[fail], **options)
    assert opened[0].closed
    ms.train(sae(), ms.activations(rows()), **options)
    assert opened[1].begun_after == 4
    assert [row["step"] for row in opened[1].seen] == list(range(6, 21, 2))


def test_tensorboard_shows_every_step_once_though_the_run_was_stopped(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options: dict[str, Any] = {"tokens": TOKENS, "config": settings("tensorboard"), "path": tmp_path}
    options["progress"] = False

    def stop(trainer: ms.Trainer, _: object) -> None:
        if trainer.steps == 9:
            raise TrainingInterrupted

    with pytest.raises(TrainingInterrupted):
        ms.train(sae(), ms.activations(rows()), callbacks=[stop], **options)
    ms.train(sae(), ms.activations(rows()), **options)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    written = lines(tmp_path)
    assert set(events.Tags()["scalars"]) == set(written[0]) - {"step"}
    for name in ("fvu", "l0", "tokens"):
        shown = {event.step: event.value for event in events.Scalars(name)}
        assert shown == pytest.approx({row["step"]: row[name] for row in written}, rel=1e-5)


def test_wandb_offline_keeps_every_figure_in_the_folder_and_one_id_though_the_run_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = tmp_path / "run"
    options: dict[str, Any] = {"tokens": TOKENS, "config": settings("wandb"), "path": folder, "progress": False}

    def stop(trainer: ms.Trainer, _: object) -> None:
        if trainer.steps == 9:
            raise TrainingInterrupted

    with pytest.raises(TrainingInterrupted):
        ms.train(sae(), ms.activations(rows()), callbacks=[stop], **options)
    time.sleep(1.1)  # parts are named by the second in which they begin
    ms.train(sae(), ms.activations(rows()), **options)
    parts = sorted((folder / "wandb").glob("offline-run-*"))
    assert len({part.name.rpartition("-")[2] for part in parts}) == 1
    assert len(parts) == 2
    kept = b"".join(file.read_bytes() for part in parts for file in part.glob("*.wandb"))
    for row in lines(folder):
        for name in ("fvu", "l0", "tokens"):
            assert name.encode() in kept
            assert json.dumps(row[name]).encode() in kept


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_what_is_not_installed_names_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def absent(module: str, *arguments: Any) -> Any:
        if module.partition(".")[0] == "wandb" or module == "torch.utils.tensorboard":
            raise ImportError(module)
        return original(module, *arguments)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ConfigError, match=rf"pip install 'monosem\[{name}\]'"):
        ms.train(sae(), ms.activations(rows()), tokens=64, config=settings(name), path=tmp_path, progress=False)


def test_a_wrong_logger_or_no_folder_is_said_before_work_starts(tmp_path: Path) -> None:
    source = ms.activations(rows())
    with pytest.raises(ConfigError, match="unknown 'paper'; there are tensorboard, wandb"):
        ms.train(sae(), source, tokens=64, config=settings("paper"), path=tmp_path, progress=False)
    with pytest.raises(ConfigError, match=r"write into the run folder: give path="):
        ms.train(sae(), source, tokens=64, config=settings("tensorboard"), progress=False)


# A look at the rows ---------------------------------------------------------------------------------------------------


def spoilt() -> torch.Tensor:
    x = rows(20.0)
    x[::100] *= 50
    return x


def test_what_would_spoil_a_dictionary_is_said_once_before_it_is_trained(tmp_path: Path) -> None:
    saes = {"a": sae(transform="none"), "b": sae(transform="none", seed=1)}
    options: dict[str, Any] = {"tokens": 320, "config": settings(), "path": tmp_path, "progress": False}
    with pytest.warns(UserWarning, match=r"^activations: ") as caught:
        train_together(saes, ms.activations(spoilt()), **options)
    said = [str(warning.message) for warning in caught]
    assert len(said) == 2
    assert "10 times the median norm" in said[0]
    assert "max_norm_ratio=10" in said[0]
    assert "the mean is" in said[1]
    assert "transform='centre_scale'" in said[1]
    train_together(saes, ms.activations(spoilt()), **options)  # going on says nothing again: warnings are errors here


def test_a_mean_that_the_transform_takes_away_is_no_matter() -> None:
    ms.train(sae(), ms.activations(rows(20.0)), tokens=320, config=settings(), progress=False)
