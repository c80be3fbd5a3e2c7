"""Edits in models of TransformerLens and nnsight (by `make interop`); nothing of theirs is imported without them."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import monosem as ms
from monosem.errors import ConfigError
from monosem.models import SubjectModel

PEERS = os.environ.get("MONOSEM_PEERS")
SCRIPT = Path(__file__).parent / "spliced_elsewhere.py"
SOURCE = Path(ms.__file__).parents[1]
THEIRS = ("transformer_lens", "nnsight", "sklearn", "sae_lens", "dictionary_learning", "sparsify")


def test_a_model_of_ours_and_a_plain_module_are_edited_as_by_edit(tiny: SubjectModel) -> None:
    tokens = torch.arange(12).reshape(2, 6)
    sae = ms.TopKSAE(tiny.d_model, 64, k=8, transform="none")
    sae.metadata.hook, sae.metadata.exclude_special = "resid_post.1", False
    with tiny.edit([ms.Splice(sae)]):
        expected = tiny(tokens)
    plain = tiny(tokens)
    for model in (tiny, tiny.module):
        with ms.spliced(model, ms.Splice(sae)):
            assert torch.equal(tiny(tokens), expected)
        assert torch.equal(tiny(tokens), plain)
    assert not torch.equal(plain, expected)


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="no model that edits"), ms.spliced("gpt2"):
        pass
    with pytest.raises(ConfigError, match="not loaded yet"), ms.spliced(nn.Linear(2, 2, device="meta")):
        pass


def test_no_other_library_is_imported_unless_an_object_of_it_is_given(tmp_path: Path) -> None:
    """Not even where they are installed: a finder says what is asked for."""
    code = f"""
import sys
asked = []
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {THEIRS!r}:
            asked.append(name)
sys.meta_path.insert(0, Finder())
import numpy as np, torch, monosem as ms
sae = ms.TopKSAE(8, 32, k=4, transform="none")
x = np.random.default_rng(0).normal(size=(20, 8)).astype("float32")
ms.SklearnSAE(sae).transform(x)
repr(ms.SklearnSAE(sae))
ms.dense(sae)(torch.from_numpy(x))
for to in ("saelens", "dictionary_learning", "sparsify"):
    ms.export_sae(sae, {str(tmp_path)!r} + "/" + to, to)
ms.catalogue("gemma")
with ms.spliced(torch.nn.Linear(8, 8)):
    pass
print(asked)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(PEERS is None, reason="make interop sets MONOSEM_PEERS, the folder of the libraries' environments")
@pytest.mark.parametrize("library", ["transformer_lens_2", "transformer_lens_4", "nnsight"])
def test_in_their_models_it_is_what_their_own_hooks_make_of_it(library: str, tmp_path: Path) -> None:
    python = Path(PEERS or "") / library / "bin" / "python"
    if not python.exists():
        pytest.skip(f"{library} is not installed")
    about = Path(str(importlib.metadata.distribution("monosem")._path))  # type: ignore[attr-defined]
    shutil.copytree(about, tmp_path / about.name)
    environment = {**os.environ, "PYTHONPATH": f"{SOURCE}{os.pathsep}{tmp_path}"}
    run = [str(python), str(SCRIPT), library]
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "equal"
