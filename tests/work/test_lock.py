"""One process at a time writes into a folder; the lock dies with its process."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.errors import FileError
from monosem.work import alone_in

HOLDER = """
import sys
from pathlib import Path
from monosem.work import alone_in
with alone_in(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""
IN_USE = "is in use: another process is writing into it"


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process is at work in a folder."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], env=os.environ, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def train(path: Path) -> None:
    config = ms.TrainingConfig(batch_size=10)
    ms.fit(ms.TopKSAE(6, 24, k=3), torch.ones(30, 6) + torch.eye(30, 6), tokens=30, config=config, path=path)


@pytest.mark.filterwarnings("ignore:activations")
def test_a_second_process_is_refused_before_it_writes_and_goes_to_work_once_the_first_is_killed(tmp_path: Path) -> None:
    folder, link = tmp_path / "run", tmp_path / "link"
    folder.mkdir()
    link.symlink_to(folder)
    with held(folder) as process:
        for path in (folder, link):
            with pytest.raises(FileError, match=IN_USE):
                train(path)
        assert list(folder.iterdir()) == []
        process.kill()
        process.wait()
        train(link)
    assert (folder / "sae" / "cfg.json").is_file()


def test_every_command_that_writes_is_refused(small_run: Path, monosem: Any) -> None:
    before = {file: file.read_bytes() for file in small_run.rglob("*") if file.is_file()}
    with held(small_run):
        for arguments in (
            ["train", small_run / "run.yaml"],
            ["eval", small_run, "--tokens", 500],
            ["harvest", small_run, "--tokens", 500],
        ):
            outcome = monosem(*arguments)
            assert outcome.code == 2
            assert IN_USE in outcome.err
            assert len(outcome.err.strip().splitlines()) == 1
    assert {file: file.read_bytes() for file in small_run.rglob("*") if file.is_file()} == before


def test_within_itself_a_process_may_enter_again_but_not_in_another_thread(tmp_path: Path) -> None:
    refused: list[str] = []

    def other() -> None:
        try:
            with alone_in(tmp_path):
                pass
        except FileError as error:
            refused.append(str(error))

    with alone_in(tmp_path), alone_in(tmp_path, tmp_path / "inner"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(refused) == 1
    with alone_in(tmp_path):
        pass


def test_a_folder_that_stays_empty_is_not_left_behind_and_one_that_cannot_be_is_named(tmp_path: Path) -> None:
    with alone_in(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for wrong in ("file", "file/run", "dangling"):
        with (
            pytest.raises(FileError, match=f"{tmp_path / wrong} cannot be made or opened as a folder"),
            alone_in(tmp_path / wrong),
        ):
            pass


@pytest.mark.parametrize("name", ["a\0b", "long" * 100])
def test_a_name_that_no_folder_can_have_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be made or opened as a folder"):
        train(tmp_path / name)
    assert list(tmp_path.iterdir()) == []
