"""Files that other libraries have written are read, and encode and decode as those libraries do.

tests/data/interop holds what tests/interop/peers/*_cases.py made with the real libraries (`make interop` makes it
anew): for each case a dictionary and, in expected.safetensors, rows and what its own library made of them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import monosem as ms

FROZEN = Path(os.environ.get("MONOSEM_CASES", Path(__file__).parents[1] / "data" / "interop"))
CASES = sorted(path.parent for path in FROZEN.glob("*/*/expected.safetensors"))
ONE_OF_SEVERAL = {"layers_relu", "layers_jumprelu", "layers_skip"}


def dictionary_of(case: Path) -> Path:
    (folder,) = [path for path in case.iterdir() if path.is_dir()]
    return folder / "layer_1.safetensors" if case.name in ONE_OF_SEVERAL else folder


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Row by row to 1e-5 of the row's largest number: rows are of norms from 0 to 1,000.

    SAELens divides rows of zeros by their norm, in one case: what is then not a number is not compared.
    """
    known = expected.flatten(1).isfinite().all(1)
    assert known.sum() >= len(expected) - 2
    assert found.isfinite().all()
    found, expected = found[known], expected[known]
    scale = expected.flatten(1).abs().amax(1).clamp_min(1)
    return bool(((found - expected).flatten(1).abs().amax(1) <= 1e-5 * scale).all())


@pytest.mark.parametrize("case", CASES, ids=[f"{case.parent.name}-{case.name}" for case in CASES])
def test_codes_and_reconstructions_are_those_of_the_library_that_wrote_the_files(case: Path) -> None:
    expected = load_file(case / "expected.safetensors")
    sae = ms.load_sae(dictionary_of(case))
    with torch.no_grad():
        codes = sae.encode(expected["x"])
        out = sae(expected["x"]).reconstruction
    assert expected["codes"].any(), "a case in which nothing is on proves nothing"
    assert close(codes.to_dense(), expected["codes"])
    assert close(out, expected["reconstruction"])


@pytest.mark.parametrize("case", CASES, ids=[f"{case.parent.name}-{case.name}" for case in CASES])
def test_what_is_read_is_saved_in_our_files_and_comes_back_the_same(case: Path, tmp_path: Path) -> None:
    x = load_file(case / "expected.safetensors")["x"]
    sae = ms.load_sae(dictionary_of(case))
    sae.save(tmp_path / "ours")
    back = ms.load_sae(tmp_path / "ours")
    assert back.metadata == sae.metadata
    assert torch.equal(back(x).reconstruction, sae(x).reconstruction)
    assert torch.equal(back.encode(x).to_dense(), sae.encode(x).to_dense())
