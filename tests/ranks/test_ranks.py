"""Several processes that work as one: real ones, with gloo, end where one process ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from monosem.work import alone_in

WORKER = Path(__file__).with_name("equal_to_one.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> list[dict[str, Any]]:
    """What each of four processes has found."""
    folder = tmp_path_factory.mktemp("four")
    with alone_in(folder / "used"):
        command, settings = (
            [sys.executable, str(WORKER), str(folder), str(tiny_folder)],
            {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        done = subprocess.run(command, capture_output=True, text=True, env=settings, check=False, timeout=900)
        output = done.stdout + done.stderr
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


def test_those_that_hold_the_same_latents_have_the_same_bits(found: list[dict[str, Any]]) -> None:
    for each in found:
        assert len(each["alike"]) > 20
        for case, grid, alike in each["alike"]:
            assert alike, (case, grid)


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
