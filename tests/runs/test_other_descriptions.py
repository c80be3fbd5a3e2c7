"""A run folder and another description: what is the same run goes on, what grows is completed, all else is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from monosem.errors import ConfigError
from monosem.runs import Run, RunConfig, run_evaluation, run_training


@pytest.fixture
def describe(tmp_path: Path) -> Callable[..., RunConfig]:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32) + 1)

    def make(**changes: Any) -> RunConfig:
        base = {"sae": {"n_latents": 24, "k": 3}, "training": {"batch_size": 20}, "tokens": 200}
        return RunConfig.of(base | {"vectors": str(tmp_path / "x.npy"), "output": str(tmp_path / "run")} | changes)

    return make


def weights(folder: Path) -> bytes:
    return (folder / "sae" / "sae.safetensors").read_bytes()


def test_a_run_yaml_changed_by_hand_is_refused_and_left_as_it_is(describe: Callable[..., RunConfig]) -> None:
    run, _ = run_training(describe(), progress=False)
    path = run.path / "run.yaml"
    changed = yaml.safe_load(path.read_text())
    changed["training"]["lr"], changed["sae"]["k"] = 0.5, 4
    path.write_text(yaml.safe_dump(changed))
    before = path.read_text()
    with pytest.raises(ConfigError, match=r"training.lr \(0.004 then, 0.5 now\), sae.k \(3 then, 4 now\)"):
        run_training(RunConfig.read(path), progress=False)
    assert path.read_text() == before


def test_what_decides_no_bits_may_change(describe: Callable[..., RunConfig], tmp_path: Path) -> None:
    run, _ = run_training(describe(), progress=False)
    before = weights(run.path)
    (tmp_path / "x.npy").rename(tmp_path / "y.npy")
    training = {"batch_size": 20, "checkpoint_minutes": 1.0}
    run_training(describe(vectors=str(tmp_path / "y.npy"), training=training), progress=False)
    assert weights(run.path) == before


def test_a_grid_that_grows_trains_what_is_new_and_leaves_what_is_finished(describe: Callable[..., RunConfig]) -> None:
    run, _ = run_training(describe(grid={"sae.k": [2, 3]}), progress=False)
    before = {name: (weights(member.path), _times(member.path)) for name, member in run.members.items()}
    grown, _ = run_training(describe(grid={"sae.k": [2, 3, 4]}), progress=False)
    assert list(grown.members) == ["k2", "k3", "k4"]
    for name, (bits, times) in before.items():
        assert weights(run.path / name) == bits
        assert _times(run.path / name) == times
    alone, _ = run_training(describe(sae={"n_latents": 24, "k": 4}, output=f"{run.path}_alone"), progress=False)
    assert weights(grown.path / "k4") == weights(alone.path)
    with pytest.raises(ConfigError, match=r"dictionaries that this description lacks \(k2\)"):
        run_training(describe(grid={"sae.k": [3, 4]}), progress=False)
    with pytest.raises(ConfigError, match="a run of several dictionaries, and this is another description"):
        run_training(describe(), progress=False)
    assert list(Run(run.path).members) == ["k2", "k3", "k4"]


def _times(folder: Path) -> dict[str, int]:
    """When the files of its dictionary were written."""
    files = [*(folder / "sae").iterdir(), folder / "metrics.jsonl", *(folder / "checkpoints").rglob("*.*")]
    return {str(file): file.stat().st_mtime_ns for file in files}


@pytest.mark.parametrize("other", [{"text": "bundled:held_out"}, {"images": "photos"}])
def test_a_run_on_vectors_is_not_measured_on_anything_else(
    describe: Callable[..., RunConfig], other: dict[str, str]
) -> None:
    run, _ = run_training(describe(), progress=False)
    with pytest.raises(ConfigError, match="reads vectors: it is measured on vectors, not on text or images"):
        run_evaluation(run, config=run.config.evaluation.model_copy(update=other), progress=False)
    assert not (run.path / "evaluation.json").exists()
