"""Every layout that is read is described, exported, harvested, shown and measured by the commands, under its name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from published_files import FAMILIES, cached, only_the_cache
from torch import nn

import monosem as ms
from monosem.interop.load import load_sae
from monosem.models import SubjectModel

D = 32
HOOKS = {"sparsify": "mlp_out.1"}
"""Of layouts whose files name a module of another model."""
KINDS = (
    "SAELens",
    "Gemma Scope, transcoders",
    "Gemma Scope 2, transcoders",
    "Gemma Scope 2, crosscoders",
    "Gemma Scope 2, across layers",
    "Neuronpedia",
)
"""One of each kind of dictionary: what `make test` has time for; `make interop` takes every layout."""
TRIED = tuple(FAMILIES) if "MONOSEM_PEERS" in os.environ else KINDS


@pytest.fixture(scope="module")
def model(
    make_gpt2: Callable[..., nn.Module], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> SubjectModel:
    """A random GPT-2 of width 32 whose name is the folder that it stands in."""
    module, folder = make_gpt2(positions=1024), tmp_path_factory.mktemp("tiny") / "model"
    module.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    return SubjectModel(module, tokenizer, str(folder))


@pytest.mark.filterwarnings("ignore:FVU on a short text")  # of random numbers
@pytest.mark.parametrize("family", TRIED)
def test_the_commands_work_on_it(
    family: str, model: SubjectModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, monosem: Callable[..., Any]
) -> None:
    one = FAMILIES[family]
    only_the_cache(monkeypatch, tmp_path / "hub")
    monkeypatch.chdir(tmp_path)
    owner, repo, *path = one.name.split("/")
    one.write(cached(tmp_path / "hub", f"{owner}/{repo}"), "/".join(path), D)

    def said(*arguments: str | Path) -> str:
        done = monosem(*arguments)
        assert done.code == 0, done
        return done.out

    told = said("info", one.name)
    assert one.layout in told
    assert one.hook.split()[0] in told
    where = ("--model", model.name, *(("--hook", HOOKS[family]) if family in HOOKS else ()))
    said("harvest", one.name, *where, "--tokens", "1100")
    (folder,) = (tmp_path / "runs").iterdir()
    sae = ms.Run(folder).sae()
    assert (sae.metadata.layout, sae.metadata.model) == (one.layout, model.name)
    assert ms.Run(folder).features().n_tokens >= 1100
    said("explore", one.name, "--feature", "7", "--html", "feature.html")
    assert (tmp_path / "feature.html").stat().st_size > 1000
    assert "FVU" in said("eval", one.name, "--tokens", "1100", "--loss-tokens", "0")
    checked = ms.check(load_sae(one.name), model, ms.Run(folder).config.hook)
    assert checked.problems or checked.notes
    done = monosem("export", one.name, "out", "--to", "saelens", "--fold")
    if done.code == 0:
        assert ms.load_sae("out").metadata.layout == "SAELens"
    else:
        assert ": " in done.err
        assert said("export", one.name, "out", "--to", "monosem")
