"""GGUF: a file that llama.cpp could read gives the model that it was written from; any other, one clear line."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import BLOCK, written

from monosem.errors import ConfigError, FileError
from monosem.models import load_model

pytest.importorskip("gguf")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, written(path)


def test_a_file_is_the_model_that_it_was_written_from(
    file: tuple[Path, Any], tmp_path: Path, monosem: Callable[..., Any]
) -> None:
    path, llama = file
    model = load_model(path, device="cpu")
    tokens = model.tokens("the hen")
    assert tokens.tolist() == [[0, *(model.tokenizer.convert_tokens_to_ids(t) for t in ("t", "he", "Ġ", "he", "n"))]]
    torch.testing.assert_close(model(tokens), llama.eval()(tokens).logits, rtol=0, atol=1e-5)
    assert (model.name, model.family, model.n_layers, model.d_model) == (str(path), "llama", 2, BLOCK)
    assert model.capture(tokens, ["resid_post.0"])["resid_post.0"].shape == (1, 6, BLOCK)
    assert load_model(path.parent, device="cpu").fingerprint() == model.fingerprint()  # the only file of a folder
    assert model.fingerprint() in monosem("info", str(path)).out
    model.module.save_pretrained(tmp_path)
    assert load_model(tmp_path, device="cpu").fingerprint() == model.fingerprint()


def test_blocks_are_unpacked(tmp_path: Path) -> None:
    llama = written(tmp_path / "q8.gguf", "Q8_0")
    model = load_model(tmp_path / "q8.gguf", device="cpu", dtype=torch.float64)
    for (name, ours), theirs in zip(model.module.named_parameters(), llama.parameters(), strict=True):
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert ours.dtype == torch.float64
        assert error < (1 / 127 if theirs.ndim == 2 else 1e-6), name


def test_files_that_are_none_damaged_or_parts_are_refused(file: tuple[Path, Any], tmp_path: Path) -> None:
    data, path = file[0].read_bytes(), tmp_path / "bad.gguf"

    def reason(content: bytes) -> str:
        path.write_bytes(content)
        with pytest.raises(FileError) as error:
            load_model(path)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "empty" in reason(b"")
    assert "does not begin with GGUF" in reason(b"PK" + data[2:])
    assert "version 1" in reason(data[:4] + b"\1" + data[5:])
    assert "cut short" in reason(data[:3000])
    assert "blk.1" in (cut := reason(data[:-100])) or "output" in cut
    huge = data.replace(
        b"tokenizer.ggml.tokens\t\0\0\0\x08\0\0\0", b"tokenizer.ggml.tokens\t\0\0\0\x08\0\0\0" + b"\xff" * 7
    )
    assert "cut short or damaged" in reason(huge)
    written(path, block_count=3)
    with pytest.raises(FileError, match=r"its llama.block_count is 3, and holds weights of 2"):
        load_model(path)
    written(path, **{"split.count": 4})
    with pytest.raises(FileError, match="one of 4 parts: join them with llama-gguf-split --merge"):
        load_model(path)
    with pytest.raises(FileError, match="no file: give a GGUF file"):
        load_model(tmp_path / "typo.gguf")
    path.with_name("other.gguf").write_bytes(data)
    with pytest.raises(FileError, match=r"has 2 GGUF files: name one, as .*bad.gguf"):
        load_model(tmp_path)


def test_a_damaged_header_is_one_clear_line(file: tuple[Path, Any], tmp_path: Path) -> None:
    """Bytes changed at random places of the header: a FileError, or a model; never anything else, never slow."""
    data, random = file[0].read_bytes(), np.random.default_rng(0)
    end = data.index(b"token_embd.weight")
    for trial in range(24):
        damaged = bytearray(data)
        for place in random.integers(4, end + 600 if trial % 2 else 400, size=1 + trial % 3):
            damaged[place] = random.integers(256)
        path = tmp_path / f"{trial}.gguf"
        path.write_bytes(damaged)
        with suppress(FileError):
            load_model(path, device="cpu")


def test_without_the_extra_the_remedy_is_named(file: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("monosem.models.gguf.PACKAGES", ("no_such_package",))
    with pytest.raises(ConfigError, match=r"pip install 'monosem\[gguf\]'"):
        load_model(file[0])
