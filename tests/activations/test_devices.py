"""A model on a GPU and a dictionary made on the CPU: the two meet without a word from the user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.activations.views import HookSource
from monosem.models import default_device
from monosem.runs import run_training

HERE = Path(__file__).parent
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def test_models_go_to_the_gpu_where_there_is_one() -> None:
    assert default_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert ms.load_model("bundled").device.type == default_device().type


def test_a_source_knows_where_its_rows_are_made(tmp_path: Path) -> None:
    model = ms.load_model("bundled")
    live = ms.activations(model, ["mlp_in.1", "mlp_out.1"])
    assert isinstance(live, HookSource)
    assert live.device == live.select("mlp_out.1").device == live.pair("mlp_in.1", "mlp_out.1").device == model.device
    assert ms.activations(torch.randn(4, 8)).device is None


def test_what_stands_on_two_devices_meets(tmp_path: Path) -> None:
    """On a GPU, or on one that is pretended: that must be before anything else is begun."""
    pretended = [] if torch.cuda.is_available() else ["-p", "pretended_gpu"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", *pretended]
    search = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    ran = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'work'}", str(HERE / "device_checks.py")],
        env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "skipped" not in ran.stdout


@on_a_gpu
def test_a_run_is_trained_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    step = ms.Trainer.step

    def looked_at(self: ms.Trainer, *given: Any, **options: Any) -> Any:
        seen.append(self.sae.W_enc.device.type)
        return step(self, *given, **options)

    monkeypatch.setattr(ms.Trainer, "step", looked_at)
    config = {"hook": "resid_post.2", "tokens": 8192, "output": str(tmp_path), "sae": {"n_latents": 512, "k": 8}}
    run_training(ms.RunConfig.model_validate(config), progress=False)
    assert set(seen) == {"cuda"}
