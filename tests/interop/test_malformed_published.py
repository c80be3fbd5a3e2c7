"""Five faults in the files of every layout as it is published: each is refused in one line that names what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from published_files import FAMILIES, cached, only_the_cache, put
from safetensors.torch import load_file
from torch import Tensor

import monosem as ms
from monosem.errors import MonosemError

D = 12
WEIGHTS = (".safetensors", ".npz", ".pt", ".pth")


def tensors_of(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".npz":
        return {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def matrix_of(tensors: dict[str, Tensor]) -> str:
    """The encoder, whatever it is called."""
    return next(
        name for name, tensor in tensors.items() if name in ("W_E", "w_enc") or ("enc" in name and tensor.dim() == 2)
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def without_a_matrix(path: Path) -> None:
    tensors = tensors_of(path)
    put(path, {name: tensor for name, tensor in tensors.items() if name != matrix_of(tensors)})


def of_another_width(path: Path) -> None:
    tensors = tensors_of(path)
    name = matrix_of(tensors)
    put(path, {**tensors, name: torch.ones(tensors[name].shape[0] + 1, tensors[name].shape[1] + 2)})


def not_finite(path: Path) -> None:
    tensors = tensors_of(path)
    name = matrix_of(tensors)
    put(path, {**tensors, name: torch.where(torch.rand(tensors[name].shape) < 0.1, torch.nan, tensors[name])})


@pytest.mark.parametrize("fault", [cut, empty, without_a_matrix, of_another_width, not_finite])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "Neuronpedia"])
def test_a_fault_is_told_in_one_line(
    family: str, fault: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_the_cache(monkeypatch, tmp_path)
    one = FAMILIES[family]
    owner, repo, *path = one.name.split("/")
    one.write(cached(tmp_path, f"{owner}/{repo}"), "/".join(path), D)
    for file in sorted(file for file in tmp_path.rglob("*") if file.suffix in WEIGHTS and "dec_" not in file.name):
        fault(file)
    with pytest.raises(MonosemError) as refused:
        ms.load_sae(one.name)
    said = str(refused.value)
    assert "\n" not in said
    assert len(said) < 2000


@pytest.mark.parametrize("config", [b"\x00\xff", b"[]", b"{", b'{"k": "many", "trainer": 3, "d_sae": -1}', b"null"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_of_something_else_is_told_in_one_line_or_not_needed(
    family: str, config: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_the_cache(monkeypatch, tmp_path)
    one = FAMILIES[family]
    owner, repo, *path = one.name.split("/")
    one.write(cached(tmp_path, f"{owner}/{repo}"), "/".join(path), D)
    for file in tmp_path.rglob("*"):
        if file.suffix in (".json", ".yaml"):
            file.write_bytes(config)
    said = ""
    try:
        assert ms.load_sae(one.name).d_in == D
    except MonosemError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 2000
