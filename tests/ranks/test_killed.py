"""A killed process ends the job in one line, wherever it is, and any number of processes go on."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from monosem.errors import RankError
from monosem.ranks import job
from monosem.runs import RunConfig, run_training
from monosem.sae import load_sae
from monosem.training import checkpoints

WORKER = Path(__file__).with_name("killed.py")
KILLED_AT = 30  # steps
PATIENCE = 600  # seconds; the machine may be busy


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads wait for each other where other work goes on."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ended(torchrun: subprocess.Popen[str]) -> str:
    """What a job said, once it has ended with an error; it is ended if it does not."""
    try:
        output, _ = torchrun.communicate(timeout=PATIENCE)
    finally:
        torchrun.kill()
        torchrun.wait()
    assert torchrun.returncode
    return output


def started(name: str, call: int, *words: str) -> subprocess.Popen[str]:
    """Two processes; the second is killed at a certain call."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*launcher, str(WORKER), name, str(call), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )


def require_one_line(output: str) -> None:
    lines = [line for line in output.splitlines() if "another" in line and "process" in line]
    assert len(lines) == 1, output
    assert "has ended" in lines[0]
    assert "goes on from what is saved" in lines[0]


def test_training_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    """Killed within a step, right after a checkpoint: what is gone on from is that one, whatever else runs."""
    rows = np.random.default_rng(0).normal(1, 3, (400, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    described = RunConfig.model_validate(
        {
            "output": str(tmp_path / "run"),
            "vectors": str(tmp_path / "rows.npy"),
            "tokens": 200 * 32,
            "sae": {"architecture": "batchtopk", "n_latents": 48, "k": 3},
            "training": {"batch_size": 32, "checkpoint_minutes": 0, "log_every": 100},
        }
    )
    run, described_in = tmp_path / "run", tmp_path / "run.yaml"
    described_in.write_text(yaml.safe_dump(described.model_dump(exclude_unset=True)))
    words = ["train", str(described_in), "--no-evaluation", "--set", "training.latent_ranks=2"]
    torchrun = started("monosem.training.trainer:Trainer.step", KILLED_AT + 1, *words)
    require_one_line(ended(torchrun))
    assert not (run / "sae").exists()
    found = [checkpoints.step_of(checkpoint) for checkpoint in checkpoints.checkpoints_of(run)]
    assert found == [KILLED_AT, KILLED_AT - 1]
    described.training = described.training.model_copy(update={"checkpoint_minutes": 5})
    run_training(described, progress=False)
    run_training(described.model_copy(update={"output": str(tmp_path / "alone")}), progress=False)
    several, one = (load_sae(folder).state_dict() for folder in (run, tmp_path / "alone"))
    for name, tensor in one.items():
        torch.testing.assert_close(several[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_store_and_a_harvest_go_on_alone_and_an_evaluation_ends(tmp_path: Path, tiny_folder: Path) -> None:
    """Each is killed while it reads; then one process makes of it what it makes without."""
    spec = importlib.util.spec_from_file_location("killed_work", WORKER)
    assert spec is not None
    assert spec.loader is not None
    worker: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    run_by_itself(WORKER, "passes", str(tmp_path), tiny_folder)
    assert (tmp_path / "ended").read_text() == "2 -9 2 -9 2 -9"
    for task in ("store", "harvest", "evaluate"):
        require_one_line((tmp_path / f"{task}.txt").read_text())
    assert any((tmp_path / "store").rglob("*")), "something was there to go on from"
    for task in ("store", "harvest"):
        worker.work(task, tmp_path / task, str(tiny_folder))
        worker.work(task, tmp_path / f"{task} of one", str(tiny_folder))
    shards = sorted(path.relative_to(tmp_path / "store") for path in (tmp_path / "store").rglob("*.safetensors"))
    assert len(shards) > 5
    for shard in shards:
        assert (tmp_path / "store" / shard).read_bytes() == (tmp_path / "store of one" / shard).read_bytes(), shard
    for name in ("features", "examples"):
        several, one = (pq.read_table(tmp_path / folder / name) for folder in ("harvest", "harvest of one"))
        columns = ["count"] if name == "features" else several.column_names
        assert several.select(columns).equals(one.select(columns)), name


def test_a_process_that_goes_nowhere_is_named_and_one_that_is_slow_is_waited_for(tmp_path: Path) -> None:
    run_by_itself(WORKER.with_name("stopped.py"), str(tmp_path))
    where = [f"{pid} on {socket.gethostname()}" for pid in (tmp_path / "seconds").read_text().split()]
    again = "The same command, with any number of processes, goes on from what is saved"

    waited, *_, stopped = (line for line in (tmp_path / "stopped").read_text().splitlines() if "process 1" in line)
    assert "(adding up) for process 1 of 2, at work elsewhere" in waited
    assert "slow is not stopped" in (tmp_path / "stopped").read_text()
    assert f"process 1 of 2 ({where[0]}) has shown no sign of life for 4 s" in stopped
    assert stopped.endswith(again)

    (hangs,) = told(tmp_path / "hangs")
    assert hangs.startswith(f"monosem: process 1 of 2 ({where[1]}) has been at a training step for ")
    assert hangs.endswith(f"more than 10 times as long as ever before, and hangs. {again}")

    (knot,) = told(tmp_path / "waits_elsewhere")
    assert "wait for each other, and none has gone on for 1 s: process 0 (adding up), 1 (adding up)." in knot
    assert knot.endswith(again)


def told(said: Path) -> list[str]:
    """What the first to say something says; here the others end with tracebacks."""
    return [line for line in said.read_text().splitlines() if line.startswith("monosem: ")]


def run_by_itself(*words: str | Path) -> None:
    """A script that forks the processes of its jobs."""
    command = [sys.executable, *map(str, words)]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_told_to_end_while_it_tells_why_it_ends_a_process_goes_on_telling() -> None:
    """Torchrun sends SIGTERM to all once one has failed: to the one that is saying so too."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(RankError, match="why"), job.told_once():
            raise RankError("why")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(job.JobEnded), job.told_once():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
