"""A full disk ends a run in words, and the run goes on to the same bits once there is room."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem.errors import FileError
from monosem.sae import TopKSAE
from monosem.training import TrainingConfig, TrainingResult, fit


@pytest.fixture
def small_disk(mounted: Callable[[str], Path]) -> Path:
    return mounted("256k")


def run(path: Path | None) -> TrainingResult:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) + 1
    config = TrainingConfig(batch_size=10, checkpoint_minutes=0, log_every=1)
    return fit(TopKSAE(6, 24, k=3), x, tokens=60, config=config, path=path, progress=False)


def same(found: TrainingResult, expected: TrainingResult) -> bool:
    tensors = expected.sae.state_dict()
    return found.history == expected.history and all(
        torch.equal(tensor, tensors[name]) for name, tensor in found.sae.state_dict().items()
    )


def test_wherever_the_disk_is_full_it_is_said_and_the_run_goes_on_once_there_is_room(small_disk: Path) -> None:
    expected, said = run(None), list[str]()
    for free in (0, 8, 16, 24, 40, 64, 96, 240):  # KiB
        path, filler = small_disk / f"run_{free}", small_disk / "filler"
        path.mkdir()
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free - 1024 * min(free, 200))
        try:
            run(path)
        except FileError as error:
            said.append(str(error))
        filler.unlink()
        assert same(run(path), expected), free
        shutil.rmtree(path)
    assert 3 <= len(said) < 8
    assert all(str(small_disk) in line and "the disk is full" in line for line in said)
    assert all("run the same command again" in line for line in said)


def test_a_limit_of_file_sizes_is_said_too(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    options: dict[str, Any] = {"match": "cannot be written, the disk is full"}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2048, limits[1]))
        with pytest.raises(FileError, **options):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert same(run(tmp_path), run(None))


def test_a_folder_deleted_while_it_is_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "run"

    def delete(trainer: Any, _: Any) -> None:
        if trainer.steps == 3:
            shutil.rmtree(path)

    from monosem.activations import VectorActivations
    from monosem.training import train

    config = TrainingConfig(batch_size=10, checkpoint_minutes=0, log_every=1)
    source = VectorActivations(torch.randn(60, 6))
    with pytest.raises(FileError, match=r"metrics.jsonl cannot be written"):
        train(TopKSAE(6, 24, k=3), source, tokens=60, config=config, path=path, callbacks=[delete], progress=False)
    assert not path.exists()
