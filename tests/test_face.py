"""The public face: light to import, complete, and of one kind of error."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from types import ModuleType

import pytest

import monosem as ms
from monosem import errors

HEAVY = ("transformers", "numba", "pyarrow", "matplotlib", "scipy", "sklearn", "typer", "pydantic", "safetensors")

IMPORT = """
import sys, time
import torch
start = time.process_time()
import monosem
print(time.process_time() - start)
print(*(name for name in sys.argv[1:] if name in sys.modules))
"""


def test_the_import_is_light() -> None:
    """No heavy library, and at most 0.3 s (of the processor: the machine may be busy) beyond torch's own import."""
    times: list[float] = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", IMPORT, *HEAVY], capture_output=True, text=True, check=True)
        seconds, loaded = done.stdout.split("\n")[:2]
        assert loaded == ""
        times.append(float(seconds))
        if times[-1] <= 0.3:
            break
    assert min(times) <= 0.3


def test_what_only_a_plan_counts_is_not_imported_by_runs() -> None:
    """The counter of operations of torch of operations imports triton, 66 MiB."""
    code = "import sys, monosem.runs.storing, monosem.planning; print('triton' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("arguments", [["--help"], ["harvest", "--help"], ["--version"]])
def test_the_command_line_explains_itself_without_torch(arguments: list[str]) -> None:
    code = "import sys; from monosem.cli.main import app; app(sys.argv[1:], standalone_mode=False)"
    code += "; print(*(name for name in ('torch', 'numpy') if name in sys.modules), 'end')"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "end", done.stdout + done.stderr
    if arguments == ["--version"]:
        assert done.stdout.splitlines()[0] == f"monosem {ms.__version__}"


@pytest.mark.parametrize("name", ms.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(ms, name)
    assert not isinstance(value, ModuleType)
    assert name in dir(ms)
    assert value.__doc__


def test_the_names_of_the_contract_are_public() -> None:
    contract = (
        "load_model activations TopKSAE train evaluate load_sae fit Trainer TrainingConfig SparseCodes ReLUSAE check"
    )
    assert set(contract.split()) <= set(ms.__all__)
    assert sorted(ms.__all__) == sorted(set(ms.__all__))
    assert ms.__version__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'monosem' has no attribute 'autoencode'"):
        _ = ms.autoencode


SHADOWS = """
import monosem.activations.vectors, monosem.training.run, monosem.activations.check
import monosem as ms
assert callable(ms.activations) and callable(ms.train) and callable(ms.check), ms.activations
from monosem import activations
assert activations is ms.activations
"""


def test_ms_activations_is_the_function_whatever_was_imported_before() -> None:
    done = subprocess.run([sys.executable, "-c", SHADOWS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ms_activations_is_the_function_whatever_is_imported_after() -> None:
    before = ms.activations
    ms.activations = importlib.import_module("monosem.activations")  # what an import does with the subpackage
    assert ms.activations is before
    assert callable(before)


def test_every_error_is_a_monosem_error_and_says_when_it_comes() -> None:
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    assert len(kinds) >= 6
    for kind in kinds:
        assert issubclass(kind, ms.MonosemError)
        assert kind.__doc__
    from monosem.training import TrainingInterrupted

    assert issubclass(TrainingInterrupted, ms.MonosemError)
