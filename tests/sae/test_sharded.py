"""A dictionary above the limit of one file stands in several, and an index says where; whole at any moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from monosem.errors import FileError
from monosem.files import sharded
from monosem.sae import CrossLayerTranscoder, TopKSAE, load_sae
from monosem.sae.crosslayer import read_decoder_rows


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharded, "LIMIT", 3000)


def saved(folder: Path, seed: int = 0) -> TopKSAE:
    sae = TopKSAE(8, 64, k=3, seed=seed)  # each matrix takes 2048 bytes
    sae.initialise(torch.randn(100, 8, generator=torch.Generator().manual_seed(seed)))
    sae.save(folder)
    return sae


def require_same(folder: Path, sae: TopKSAE) -> None:
    found = load_sae(folder).state_dict()
    assert found.keys() == sae.state_dict().keys()
    for name, tensor in sae.state_dict().items():
        assert torch.equal(found[name], tensor), name


def test_several_files_hold_what_one_does_and_replace_each_other(tmp_path: Path, small: None) -> None:
    del small
    for seed in range(2):
        sae = saved(tmp_path, seed)
        index = json.loads((tmp_path / "sae.safetensors.index.json").read_text())
        files = set(index["weight_map"].values())
        assert {path.name for path in tmp_path.glob("*.safetensors")} == files
        assert len(files) == 2
        assert all((tmp_path / file).stat().st_size < 3000 + 1000 for file in files)
        require_same(tmp_path, sae)


def test_a_single_file_takes_the_place_of_several_and_they_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, number in ((3000, 2), (10**6, 1), (3000, 2)):
        monkeypatch.setattr(sharded, "LIMIT", limit)
        sae = saved(tmp_path, limit)
        assert len(list(tmp_path.glob("*.safetensors"))) == number
        assert (tmp_path / "sae.safetensors").exists() == (number == 1)
        require_same(tmp_path, sae)


def test_interrupted_before_the_index_is_written_the_old_one_holds(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    del small
    before = saved(tmp_path)
    monkeypatch.setattr(sharded, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 1)
    require_same(tmp_path, before)


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_rows_of_a_cross_layer_transcoder_are_read_from_the_file_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharded, "LIMIT", 500)
    sae = CrossLayerTranscoder(8, 32, k=3, n_layers=2)
    sae.save(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    rows = read_decoder_rows(tmp_path, 1, [3, 0])
    assert torch.equal(rows, dict(sae.named_parameters())["W_dec_1"][[3, 0]])


def test_a_file_that_is_missing_or_elsewhere_is_named(tmp_path: Path, small: None) -> None:
    del small
    saved(tmp_path)
    index = tmp_path / "sae.safetensors.index.json"
    content = json.loads(index.read_text())
    name, file = next(iter(content["weight_map"].items()))
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], name: "../elsewhere.safetensors"}}))
    with pytest.raises(FileError, match=r"names \.\./elsewhere.safetensors, and not files beside it"):
        load_sae(tmp_path)
    index.write_text(json.dumps({"weight_map": {**content["weight_map"], "more": file}}))
    with pytest.raises(FileError, match=r"do not fit \(more\)"):
        load_sae(tmp_path)
    index.write_text(json.dumps(content))
    (tmp_path / file).unlink()
    with pytest.raises(FileError, match=file):
        load_sae(tmp_path)
