"""A start that left no checkpoint leaves nothing in the log of the next one; a run that goes on keeps its id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.training import TrainingInterrupted
from monosem.training.identity import Identity


def train(path: Path, *, stop_at: int | None = None, tokens: int = 320, minutes: float = 60) -> None:
    def stop(trainer: ms.Trainer, _: Any) -> None:
        if trainer.steps == stop_at:
            raise TrainingInterrupted

    config = ms.TrainingConfig(batch_size=32, log_every=1, loggers=("tensorboard",), checkpoint_minutes=minutes)
    x = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"config": config, "path": path, "callbacks": [stop], "progress": False}
    ms.train(ms.TopKSAE(8, 16, k=3), ms.activations(x), tokens=tokens, **options)


def run_id(path: Path) -> str:
    """By which Weights & Biases knows a run."""
    identity = Identity.read(path)
    assert identity is not None
    return identity.run


def test_a_run_that_begins_anew_has_another_id_and_one_that_goes_on_keeps_it(tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        train(tmp_path, stop_at=5)
    first = run_id(tmp_path)
    with pytest.raises(TrainingInterrupted):
        train(tmp_path, stop_at=5, minutes=0)
    second = run_id(tmp_path)
    assert second != first
    train(tmp_path)
    assert run_id(tmp_path) == second
    train(tmp_path)
    assert run_id(tmp_path) == second


def test_tensorboard_has_every_step_of_the_last_start_once_and_none_of_one_before(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(TrainingInterrupted):
        train(tmp_path, stop_at=9)
    train(tmp_path, tokens=160)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("fvu")] == [1, 2, 3, 4, 5]
