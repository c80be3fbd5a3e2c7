"""`monosem eval` that is killed in any of its parts, by a real kill -9, goes on there and ends in the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from shared_fixtures import SMALL_RUN

SERVER = """
import os, sys
import torch
torch.set_num_threads(1)
from monosem.cli.main import run
from monosem.evaluation import untrained
from monosem.evaluation.probing import probe, usefulness
from monosem.features import harvest
from monosem.models import SubjectModel
from monosem.runs import pipeline
from monosem.training import run as training
pipeline.KEEP_MINUTES = 0
untrained.TOKENS, untrained.LEAST = 2048, 1024
usefulness.EXAMPLES, usefulness.WORDS = 160, 12
SubjectModel.contexts_at_once = lambda model, length: 4
for line in sys.stdin:
    *sys.argv, said = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        descriptor = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, 1), os.dup2(descriptor, 2)
        run()
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Runs the command line in a process of its own for each line, with everything imported but nothing begun."""
PATIENCE = 600  # seconds; the machine may be busy
PARTS = (
    "pass.safetensors",
    "longer.safetensors",
    "untrained/checkpoints",
    "probing/*/texts.safetensors",
    "probes.json",
)
"""Of the state, in the order in which they appear; last words come before the second, one more pass after the third."""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (tmp_path / "server.py").write_text(SERVER)
    command = [sys.executable, str(tmp_path / "server.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def started(server: subprocess.Popen[str], run: Path, words: Path) -> int:
    assert server.stdin is not None
    assert server.stdout is not None
    options = ["--suite", "full", "--tokens", "1500", "--loss-tokens", "700", "--last-words", str(words)]
    print("monosem", "eval", run, *options, run.with_suffix(".log"), sep="\t", file=server.stdin, flush=True)
    return int(server.stdout.readline())


def ended(server: subprocess.Popen[str]) -> int:
    assert server.stdout is not None
    return int(server.stdout.readline())


def test_killed_in_every_part_an_evaluation_ends_in_the_same_numbers(
    server: subprocess.Popen[str], tmp_path: Path, monosem: Callable[..., Any]
) -> None:
    whole, run, words = tmp_path / "whole", tmp_path / "run", tmp_path / "words.txt"
    words.write_text("\n".join(f"{who} went to the city to see the king." for who in ("We", "They", "Anna") * 4))
    short = ["--set=activations.context_length=48", "--set=tokens=4096", f"--set=output={whole}"]
    assert monosem("train", *SMALL_RUN, *short, "--no-evaluation").code == 0
    copytree(whole, run)
    started(server, whole, words)
    assert ended(server) == 0, whole.with_suffix(".log").read_text()

    state, kept = run / "evaluation.state", dict[Path, int]()
    for part in PARTS:
        process, end = started(server, run, words), time.monotonic() + PATIENCE
        while not list(state.glob(part)) and time.monotonic() < end:
            time.sleep(0.002)
        os.kill(process, signal.SIGKILL)
        assert ended(server) == -signal.SIGKILL, run.with_suffix(".log").read_text()
        assert not (run / "evaluation.json").exists()
        for file, written in kept.items():
            assert file.stat().st_mtime_ns == written, f"{file.name} was done again"
        if part.startswith("longer"):
            files = [state / f"{name}.safetensors" for name in ("pass", "last_words")]
            kept = {file: file.stat().st_mtime_ns for file in files}
    started(server, run, words)
    assert ended(server) == 0, run.with_suffix(".log").read_text()
    assert not state.exists()
    found, wanted = (json.loads((folder / "evaluation.json").read_text()) for folder in (run, whole))
    assert {"untrained", "SAE", "mean"} <= set(found["columns"])
    assert {"kl_beyond", "last_word", "probe_auroc_1"} <= set(found["columns"]["SAE"])
    assert found == wanted
    for path in sorted((whole / "features").rglob("*.parquet")):
        assert path.read_bytes() == (run / "features" / path.relative_to(whole / "features")).read_bytes(), path.name
