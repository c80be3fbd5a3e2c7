"""Written for other libraries, read by them: run by `make interop`, where MONOSEM_PEERS names their environments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_writers import FORMULAS, HELD, WITH_FOLD
from written_saes import SAES, made

import monosem as ms
from monosem.interop.export import Format

PEERS = os.environ.get("MONOSEM_PEERS")
SCRIPT = Path(__file__).parent / "peers" / "read_back.py"


@torch.no_grad()
@pytest.mark.skipif(PEERS is None, reason="make interop sets MONOSEM_PEERS, the folder of the libraries' environments")
@pytest.mark.parametrize("to", FORMULAS)
def test_the_library_gives_our_codes_and_reconstructions(to: Format, tmp_path: Path) -> None:
    python = Path(PEERS or "") / to / "bin" / "python"
    if not python.exists() and to != "gemma_scope":
        pytest.skip(f"{to} is not installed")
    arguments, expected = list[str](), list[tuple[str, torch.Tensor, torch.Tensor]]()
    for name in sorted(HELD[to] | WITH_FOLD[to], key=list(SAES).index):
        sae, x = made(name)
        folder = ms.export_sae(sae, tmp_path / name, to, fold=True)
        np.save(folder / "rows.npy", x.numpy())
        arguments += [str(folder), str(folder / "rows.npy"), str(folder / "found.npz")]
        out = sae(x)
        expected.append((name, out.codes.to_dense(), out.reconstruction))
    run = [str(python) if to != "gemma_scope" else sys.executable, str(SCRIPT), to, *arguments]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for name, codes, reconstruction in expected:
        found = np.load(tmp_path / name / "found.npz")
        for theirs, ours in ((found["codes"], codes), (found["reconstruction"], reconstruction)):
            assert np.abs(theirs - ours.numpy()).max() <= 1e-5 * ours.abs().max().item(), name
