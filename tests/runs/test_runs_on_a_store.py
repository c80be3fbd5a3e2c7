"""Runs on a store: killed while they train and while they are measured; and on a store that is not theirs."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

NAMES = ("k4", "k8")
DESCRIPTION: dict[str, Any] = {
    "hook": "mlp_in.0",
    "store": "acts",
    "output": "out",
    "tokens": 2000,
    "sae": {"n_latents": 48},
    "grid": {"sae.k": [4, 8]},
    "activations": {"context_length": 64, "buffer_tokens": 1024},
    "training": {"batch_size": 128, "checkpoint_minutes": 0, "log_every": 4},
    "evaluation": {"tokens": 600, "loss_tokens": 200, "controls": False},
}


def digest(folder: Path) -> dict[str, str]:
    """A hash of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(files)}


def test_a_sweep_on_a_store_killed_in_training_and_in_evaluation_ends_in_the_same_files(
    tmp_path: Path, tiny_folder: Path, monosem: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, forks: Any
) -> None:
    described = tmp_path / "sweep.yaml"
    described.write_text(yaml.safe_dump({**DESCRIPTION, "model": str(tiny_folder)}))
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert monosem("store", described, "--shard-rows", 256, "--window-shards", 4).code == 0
    assert monosem("train", described).code == 0
    monkeypatch.chdir(tmp_path / "killed")
    Path("acts").symlink_to(tmp_path / "whole" / "acts")
    out, command = tmp_path / "killed" / "out", ["train", str(described)]
    process = forks("monosem", *command)
    process.until(lambda: list(out.glob("k8/checkpoints/step_0000000[3-9]")))
    process.kill()
    assert not (out / "k8" / "sae").exists()
    process = forks("monosem", *command)
    process.until((out / "k4" / "evaluation.json").is_file)
    process.kill()
    assert not (out / "k8" / "evaluation.json").exists()
    assert monosem(*command).code == 0
    found, expected = digest(out), digest(tmp_path / "whole" / "out")
    for folder in (*NAMES, ""):
        for each in (found, expected):  # drawn anew for every run
            each.pop(f"{folder}/identity.json", None)
    assert found == expected


def test_a_store_of_another_run_is_refused_in_a_line_before_anything_is_written(
    tmp_path: Path, monosem: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    described = tmp_path / "run.yaml"
    one = {key: value for key, value in DESCRIPTION.items() if key != "grid"}
    described.write_text(yaml.safe_dump({**one, "tokens": 600}))
    assert monosem("store", described, "--shard-rows", 256).code == 0
    settings = {
        "hook=mlp_in.1": "acts has no mlp_in.1; it has mlp_in.0",
        "activations.context_length=32": "acts was stored with context_length 64, the run says 32: leave it out, or",
        "text=other.txt": "acts was stored with text bundled, the run says other.txt",
        "sae.architecture=crosscoder": "the SAE reads 2 activations side by side, the source has 1",
        "store=none": "none does not exist",
    }
    (tmp_path / "other.txt").write_text("Something else. " * 100)
    for setting, words in settings.items():
        refused = monosem("train", described, "--set", setting, "--no-evaluation")
        assert refused.code == 2
        assert words in refused.err
        assert not (tmp_path / "out").exists()
    index = tmp_path / "acts" / "index.json"
    whole = index.read_text()
    for old, new, words in (
        ('"tokenizer_fingerprint": "', '"tokenizer_fingerprint": "0', "acts was written with another tokenizer than"),
        ('"model": "', '"model": "0', "acts is of 0bundled, not of bundled: store its activations anew"),
    ):
        index.write_text(whole.replace(old, new))
        refused = monosem("train", described, "--no-evaluation")
        assert refused.code == 2
        assert words in refused.err
    index.write_text(whole)
    shard = tmp_path / "acts" / "mlp_in.0" / "000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:40_000])
    refused = monosem("train", described, "--no-evaluation")
    assert "000001.safetensors is damaged: it has 40,000 of" in refused.err
    assert not (tmp_path / "out").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        mended = monosem("store", described, "--shard-rows", 256)
    assert mended.code == 0
    assert "000001.safetensors: written anew" in mended.err
    assert monosem("train", described, "--no-evaluation").code == 0
