"""Several processes that work as one: real ones, with gloo, end where one process ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from monosem.runs import RunConfig, run_training
from monosem.sae import load_sae
from monosem.training import checkpoints
from monosem.work import alone_in

WORKER = Path(__file__).with_name("equal_to_one.py")


def started(n: int, *words: str, **environment: str) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node n ...`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n), *words]
    settings = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=settings)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of four processes has found."""
    folder = tmp_path_factory.mktemp("four")
    with alone_in(folder / "used"):
        output, _ = started(4, str(WORKER), str(folder)).communicate(timeout=240)
    files = [folder / f"{rank}.json" for rank in range(4)]
    assert all(file.is_file() for file in files), output
    return [json.loads(file.read_text()) for file in files]


def test_two_and_four_processes_end_where_one_does(found: list[dict[str, Any]]) -> None:
    grids = {grid for each in found for _, grid, _, _ in each["differences"]}
    assert grids == {"two, by rows", "two, by latents", "four, two by two", "four, by rows", "four, by latents"}
    for each in found:
        for case, grid, dtype, difference in each["differences"]:
            assert difference < (1e-9 if dtype == "torch.float64" else 1e-5), (case, grid, dtype)
        assert dict(each["dead"])["topk"] > 0.1, "and dead latents were revived on the way"


def test_latents_their_gradients_and_moments_live_on_one_rank_each(found: list[dict[str, Any]]) -> None:
    shared = 3 * 8  # b_dec and its moments
    for each in found:
        for case, grid, held, alone in each["held"]:
            parts = {"two, by latents": 2, "four, two by two": 2, "four, by latents": 4}.get(grid, 1)
            if case in ("topk", "batchtopk"):
                assert held - shared == (alone - shared) // parts


def test_what_is_sent_does_not_depend_on_the_number_of_latents(found: list[dict[str, Any]]) -> None:
    for each in found:
        once, again, many = each["sent"]
        assert once == again == many > 0
        assert once <= 16 * 4 * (3 + 2 * 8) + 512, "a row: k candidates, and what is reconstructed of it"


def test_a_store_a_harvest_and_an_evaluation_of_four_are_those_of_one(found: list[dict[str, Any]]) -> None:
    first = found[0]
    assert len(first["same bytes"]) > 10
    assert all(first["same bytes"])
    assert first["fired"] > 6000
    assert first["features"]
    report, of_one = first["reports"]
    assert report.keys() == of_one.keys()
    for name, interval in of_one.items():
        numbers = [[end for end in ends if end is not None] for ends in (report[name], interval)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5, abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        ("three", "ConfigError: training.latent_ranks: a dictionary over 3 processes needs a multiple"),
        ("batch", "ConfigError: training.batch_size: 18 rows cannot be dealt equally to 4 processes"),
        ("width", "ConfigError: training.latent_ranks: 26 latents cannot be dealt equally to 4 processes"),
        ("files", "RankError: process 3 of 4 sees another activations."),
    ],
)
def test_what_cannot_be_done_is_said_by_all(found: list[dict[str, Any]], attempt: str, words: str) -> None:
    assert all(each["said"][attempt].startswith(words) for each in found)


def test_of_a_folder_in_use_the_first_process_says_so(found: list[dict[str, Any]]) -> None:
    first, *others = (each["said"].get("in use", "RankError: ") for each in found)
    assert "is in use: another process is writing into it" in first
    assert all(other.startswith("RankError: ") for other in others)


# The command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def described(tmp_path: Path) -> RunConfig:
    """A run on vectors."""
    rows = np.random.default_rng(0).normal(1, 3, (400, 8)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    description: dict[str, Any] = {
        "output": str(tmp_path / "run"),
        "vectors": str(tmp_path / "rows.npy"),
        "tokens": 64_000,
        "sae": {"architecture": "batchtopk", "n_latents": 48, "k": 3},
        "training": {"batch_size": 32, "checkpoint_minutes": 0.002, "log_every": 100},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(description))
    return RunConfig.model_validate(description)


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def test_a_killed_process_ends_the_job_with_one_line_and_another_number_goes_on(
    described: RunConfig, tmp_path: Path
) -> None:
    run, yaml_file = tmp_path / "run", str(tmp_path / "run.yaml")
    command = ["-m", "monosem", "train", yaml_file, "--no-evaluation", "--set", "training.latent_ranks=2"]
    job = started(2, *command)
    deadline = time.monotonic() + 120
    while not checkpoints.checkpoints_of(run) and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.05)
    assert job.poll() is None, job.communicate()[0]
    os.kill(max(children(job.pid)), signal.SIGKILL)
    killed = time.monotonic()
    output, _ = job.communicate(timeout=60)
    assert job.returncode
    assert time.monotonic() - killed < 60
    lines = [line for line in output.splitlines() if "another" in line and "process" in line]
    assert len(lines) == 1, output
    assert "goes on from what is saved" in lines[0]
    assert not (run / "sae").exists()
    reached = checkpoints.step_of(checkpoints.checkpoints_of(run)[0])
    assert 0 < reached < 2000
    described.training = described.training.model_copy(update={"checkpoint_minutes": 5})
    run_training(described, progress=False)
    alone = described.model_copy(update={"output": str(tmp_path / "alone")})
    run_training(alone, progress=False)
    several, one = (load_sae(folder).state_dict() for folder in (run, tmp_path / "alone"))
    for name, tensor in one.items():
        torch.testing.assert_close(several[name], tensor, atol=1e-4, rtol=1e-3)


def test_a_command_of_one_process_says_so(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "monosem", "info", "bundled"],
        env={**os.environ, "WORLD_SIZE": "2", "RANK": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.strip().replace("\n", " ") == (
        "monosem: monosem info is of one process: call it without torchrun, which is for train, store, harvest, eval"
    )
