"""A run may be killed or stopped at any moment: the same command goes on from there, to the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from shared_fixtures import SMALL_RUN

from monosem.runs import Run

EXECUTABLE = Path(sys.executable).parent / "monosem"
N_STEPS = 40
PATIENCE = 600  # seconds; the machine may be busy


def start(folder: Path) -> subprocess.Popen[str]:
    command = [str(EXECUTABLE), *arguments(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def arguments(folder: Path) -> list[str]:
    return ["train", *SMALL_RUN, "--set=training.checkpoint_minutes=0", f"--set=output={folder}", "--no-evaluation"]


def step_reached(folder: Path) -> int:
    found = [int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*")]
    return max(found, default=0)


def wait_for_step(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    end = time.monotonic() + PATIENCE
    while step_reached(folder) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the run did not get on"
        time.sleep(0.002)


def test_killed_stopped_and_continued_a_run_ends_in_the_same_bits(
    small_run: Path, tmp_path: Path, monosem: Callable[..., Any], forks: Any
) -> None:
    folder = tmp_path / "run"
    killed = forks("monosem", *arguments(folder))
    killed.until(lambda: step_reached(folder) >= 3)
    killed.kill()
    first = step_reached(folder)
    assert 3 <= first < N_STEPS
    assert not Run(folder).finished

    stopped = start(folder)
    wait_for_step(stopped, folder, first + 3)
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate(timeout=PATIENCE)
    assert stopped.returncode == 130
    second = step_reached(folder)
    assert first < second < N_STEPS
    last_line = errors.strip().splitlines()[-1]
    assert f"stopped after {second * 512:,} of 20,000 tokens" in last_line
    assert "the same command goes on from it" in last_line
    assert "Traceback" not in errors
    assert not Run(folder).finished

    assert monosem(*arguments(folder)).code == 0
    assert Run(folder).finished
    for name in ("sae/sae.safetensors", "sae/cfg.json", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (small_run / name).read_bytes(), name
