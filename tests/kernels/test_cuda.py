"""The Triton kernels: right in Triton's interpreter, right on a GPU where there is one, compiled for the GPU anywhere.

In processes of their own, because Triton must be told that it interprets before it is imported.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed here: nothing is shown of its kernels"
)


def run(*arguments: str, interpret: bool) -> str:
    """What a Python process prints that must not fail."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    if interpret:
        environment["TRITON_INTERPRET"] = "1"
    command = [sys.executable, *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


CHECKS = ("-m", "pytest", "-p", "no:cacheprovider", "--noconftest", "-x", str(HERE / "cuda_checks.py"))


def test_the_kernels_equal_the_reference_in_the_interpreter() -> None:
    assert "10 skipped" in run(*CHECKS, interpret=True)  # those that need a GPU, and no others


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_kernels_equal_the_reference_on_a_gpu() -> None:
    assert "skipped" not in run(*CHECKS, interpret=False)


def test_the_kernels_compile_for_hopper_with_all_that_they_hold_in_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the size of a real step; numbers in memory of a thread's own would show as a stack."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    printed = run(str(HERE / "cuda_compiled.py"), str(tmp_path), interpret=False)
    kernels = [line.split()[0] for line in printed.splitlines()]
    assert set(kernels) == {
        "_best_groups", "_best_of_groups", "_count_above", "_write_above",
        "_gather_dot", "_sum_slabs", "_sum_segments", "_adam", "_sum_parts",
        "_round", "_count_reaching", "_write_reaching",
    }  # fmt: skip
    assert all("STACK:0 " in line and "LOCAL:0 " in line for line in printed.splitlines()), printed
