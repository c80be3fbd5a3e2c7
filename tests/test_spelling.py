"""What was meant is named; where nothing is near, nothing is."""

from __future__ import annotations

from pathlib import Path

import pytest

from monosem.runs.config import all_keys
from monosem.sae import SAE
from monosem.spelling import listed, meant, nearest, path_meant


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("hok", "hook"),
        ("Hook", "hook"),
        ("ouput", "output"),
        ("sae.nlatents", "sae.n_latents"),
        ("sae.n-latents", "sae.n_latents"),
        ("nlatents", "sae.n_latents"),
        ("n_latents", "sae.n_latents"),
        ("sae.kk", "sae.k"),
        ("sae.l1coefficient", "sae.l1_coefficient"),
        ("trainig.lr", "training.lr"),
        ("training.batchsize", "training.batch_size"),
        ("lr", "training.lr"),
        ("activation.context_lenght", "activations.context_length"),
        ("evaluations", "evaluation"),
        ("colour", None),
        ("training.epochs", None),
        ("x", None),
    ],
)
def test_the_nearest_key(word: str, expected: str | None) -> None:
    assert nearest(word, all_keys()) == expected


def test_the_nearest_of_a_list() -> None:
    names = sorted(SAE.registry)
    assert meant("topkk", names) == ". Did you mean topk?"
    assert meant("TopK", names) == ". Did you mean topk?"
    assert meant("jump_relu", names) == ". Did you mean jumprelu?"
    assert meant("vae", names) == meant("topk", ["topk"]) == meant("x", []) == ""
    assert listed("vwd", ["fvu", "l0"]) == "fvu, l0"


def test_the_nearest_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/demo", "runs/mlp_wide", "data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "run.yaml").touch()
    assert path_meant("demmo") == path_meant("demo") == ". Did you mean runs/demo?"
    assert path_meant("runs/demmo") == ". Did you mean runs/demo?"
    assert path_meant("mlpwide") == ". Did you mean runs/mlp_wide?"
    assert path_meant("run.yml") == ". Did you mean run.yaml?"
    assert path_meant(tmp_path / "dat") == f". Did you mean {tmp_path / 'data'}?"
    for word in ("runs/demo", "gpt2", "other.txt", "none/here", "a\0b", "x" * 5000, ""):
        assert path_meant(word) == "", word
