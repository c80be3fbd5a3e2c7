"""`monosem eval` that is killed in any of its parts, by a real kill -9, goes on there and ends in the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

from shared_fixtures import SMALL_RUN

SOON_KEPT = """
from monosem.cli.main import run
from monosem.evaluation import untrained
from monosem.evaluation.probing import usefulness
from monosem.models import SubjectModel
from monosem.runs import pipeline
pipeline.KEEP_MINUTES = 0
pipeline._explain = lambda *_: None  # it has no part in this, and tests of its own
untrained.TOKENS, untrained.LEAST = 1024, 512
usefulness.EXAMPLES, usefulness.WORDS = 120, 8
SubjectModel.contexts_at_once = lambda model, length: 4
run()
"""
"""The command line on little, with its state kept after every batch."""
PARTS = (
    "pass.safetensors",
    "longer.safetensors",
    "untrained/checkpoints",
    "probing/*/texts.safetensors",
    "probes.json",
)
"""Of the state, in the order in which they appear; last words come before the second, one more pass after the third."""


def test_killed_in_every_part_an_evaluation_ends_in_the_same_numbers(
    tmp_path: Path, tiny_folder: Path, monosem: Callable[..., Any], forks: Any
) -> None:
    whole, run, words = tmp_path / "whole", tmp_path / "run", tmp_path / "words.txt"
    words.write_text("\n".join(f"{who} went to the city to see the king." for who in ("We", "They", "Anna") * 4))
    short = [
        f"model={tiny_folder}",
        "sae.n_latents=48",
        "sae.k=8",
        "activations.context_length=48",
        "tokens=2048",
        f"output={whole}",
    ]
    assert monosem("train", *SMALL_RUN, *(f"--set={one}" for one in short), "--no-evaluation").code == 0
    copytree(whole, run)
    options = ["--suite", "full", "--tokens", "800", "--loss-tokens", "400", "--last-words", words]
    process = forks("-c", SOON_KEPT, "eval", whole, *options)
    assert process.wait() == 0, process.said

    state, kept = run / "evaluation.state", dict[Path, int]()
    for part in PARTS:
        process = forks("-c", SOON_KEPT, "eval", run, *options)
        process.until(lambda part=part: list(state.glob(part)))
        process.kill()
        assert not (run / "evaluation.json").exists()
        for file, written in kept.items():
            assert file.stat().st_mtime_ns == written, f"{file.name} was done again"
        if part.startswith("longer"):
            files = [state / f"{name}.safetensors" for name in ("pass", "last_words")]
            kept = {file: file.stat().st_mtime_ns for file in files}
    process = forks("-c", SOON_KEPT, "eval", run, *options)
    assert process.wait() == 0, process.said
    assert not state.exists()
    found, wanted = (json.loads((folder / "evaluation.json").read_text()) for folder in (run, whole))
    assert {"untrained", "SAE", "mean"} <= set(found["columns"])
    assert {"kl_beyond", "last_word", "probe_auroc_1"} <= set(found["columns"]["SAE"])
    assert found == wanted
    for path in sorted((whole / "features").rglob("*.parquet")):
        assert path.read_bytes() == (run / "features" / path.relative_to(whole / "features")).read_bytes(), path.name
