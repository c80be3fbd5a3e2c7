"""Whatever a file holds, the answer is one `FileError` that names it; soon, and without much memory."""

from __future__ import annotations

import gzip
import json
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import save_file

from monosem import files
from monosem.activations import VectorActivations
from monosem.activations.rows import VectorRows
from monosem.errors import FileError

DEEP = 100_000
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
ALIASES_WITHIN = "a: &a [*a]"


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "file"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[" * DEEP, "nested more than 100 deep"),
        ('{"a":' * DEEP, "nested more than 100 deep"),
        ('{"a": 1', "JSON"),
        (b"\xff\xfe", "utf-8"),
        ("9" * 5000, "limit"),
        ('"\\ud83d"', "surrogate"),
        ("", "JSON"),
    ],
)
def test_json_that_is_none(content: str | bytes, words: str, written: Callable[[str | bytes], Path]) -> None:
    with pytest.raises(FileError, match=words) as caught:
        files.read_json(written(content))
    assert "file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_brackets_within_words_are_not_depth() -> None:
    value = ["[" * 300, '\\"' + "{" * 300]
    assert files.parse_json(json.dumps(value), "x") == value


def test_what_json_does_not_have_is_read_and_written_as_null(tmp_path: Path) -> None:
    assert files.parse_json("[NaN, Infinity, -Infinity, 1]", "x") == [None, None, None, 1]
    files.write_json(tmp_path / "x.json", {"a": [float("nan"), (1.5, float("inf"))], "b": 1})
    assert (tmp_path / "x.json").read_text() == '{"a": [null, [1.5, null]], "b": 1}\n'


class _Steps(BaseModel):
    steps: int


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        ('{"steps": NaN}', dict[str, int], "'steps'.*None"),
        ('{"steps": true}', dict[str, int], "'steps'.*True"),
        ('{"steps": 1e999}', dict[str, float], "'steps'.*inf"),
        ('{"steps": [1, "x"]}', dict[str, list[int]], "'steps.1'.*'x'"),
        ("[]", dict[str, Any], "dict.*list of 0"),
        ("{}", _Steps, "'steps'.*required"),
    ],
)
def test_types_are_told_by_file_and_field(
    content: str, kind: type[Any], words: str, written: Callable[[str | bytes], Path]
) -> None:
    path = written(content)
    with pytest.raises(FileError, match=words) as caught:
        files.read_json(path, kind)
    assert str(path) in str(caught.value)


def test_lines_of_json_may_end_torn_and_nowhere_else(written: Callable[[str | bytes], Path]) -> None:
    assert list(files.read_json_lines(written('{"a": 1}\n\n{"a": 2}\n{"a": '))) == [{"a": 1}, {"a": 2}]
    for content in (b'{"a": 1}\n\xff\n{"a": 2}\n', b'{"a": 1}\n1\n', b'{"a": 1}\n{"a": \n{"a": 2}\n'):
        with pytest.raises(FileError, match="line 2"):
            list(files.read_json_lines(written(content)))


@pytest.mark.parametrize(
    "content",
    [
        "tokens: 2001-99-99",
        "tokens: !!int x",
        "tokens: !!bool x",
        "tokens: !!timestamp x",
        "tokens: !!int ''",
        "tokens: !!binary é",
        "tokens: !!python/object/apply:os.getcwd []",
        "[" * 3_000,
        "- " * 3_000,
        "{a: " * 60 + "}" * 60,
        BOMB,
        ALIASES_WITHIN,
        "a: [\n",
        "\0",
        "a: b: c",
        "? [1]\n: {[2]: 3}",
        b"\xff",
        "x" * 300_000,
    ],
)
def test_yaml_that_is_none(content: str | bytes, written: Callable[[str | bytes], Path]) -> None:
    with pytest.raises(FileError, match="file"):
        files.read_yaml(written(content))


def test_yaml_has_the_numbers_of_today_and_aliases() -> None:
    text, expected = "a: &a [1e-3, 2]\nb: *a", {"a": [0.001, 2], "b": [0.001, 2]}
    value: dict[str, list[float]] = files.parse_yaml(text, "x", dict)
    assert value == expected
    value["a"].append(3)
    assert files.parse_yaml(text, "x") == expected, "what one reader does to it no other sees"


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    here = socket.socket(socket.AF_UNIX)
    here.bind(str(tmp_path / "socket"))
    readers = (files.read_json, files.read_yaml, files.read_array, files.read_arrays, files.read_idx)
    more = (files.read_safetensors, lambda p: list(files.read_json_lines(p)), lambda p: files.decompressed(p).read())
    for path in (tmp_path / "pipe.json", tmp_path / "socket", "/dev/zero", tmp_path, tmp_path / "none", "a\0b"):
        for read in (*readers, *more):
            with pytest.raises(FileError, match=r"pipe|folder|exist|opened"):
                read(path)  # pyright: ignore[reportArgumentType]
    here.close()


def npy(descr: str, shape: str, content: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


ARRAYS = [
    npy("'<f4'", "(1000000, 1000000)"),
    npy("'<f4'", f"({10**30},)"),
    npy("'<f4'", "(-1,)"),
    npy("'<f4'", "(True, 2)", bytes(8)),
    npy("'|O'", "(2,)", bytes(16)),
    npy("[('a', '<f4'), ('b', '<f4')]", "(2,)", bytes(16)),
    npy("'<Q'", "(2,)", bytes(15)),
    npy("'x'", "(2,)", bytes(16)),
    npy("(", "(2,)", bytes(16)),
    npy("{1: 2, 'a': 3}", "(2,)", bytes(16)),
    npy("'<f4'", "(" * 50, bytes(16)),
    b"\x93NUMPY\x09\x00" + bytes(200),
    b"\x93NUMPY",
    b"",
]


@pytest.mark.parametrize("content", ARRAYS)
def test_arrays_that_are_none(content: bytes, written: Callable[[str | bytes], Path], tmp_path: Path) -> None:
    with pytest.raises(FileError, match="file"):
        files.read_array(written(content))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", content)
        archive.writestr("note.txt", "no array")
    with pytest.raises(FileError, match=r"x\.npz"):
        files.read_arrays(tmp_path / "x.npz")


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back(order: Any, tmp_path: Path) -> None:
    x = np.asarray(np.random.default_rng(0).normal(size=(5, 3)), order=order)
    np.save(tmp_path / "x.npy", x)
    np.savez_compressed(tmp_path / "x.npz", x=x, n=np.array(3), names=np.array(["a", "b"]))
    assert np.array_equal(files.read_array(tmp_path / "x.npy"), x)
    found = files.read_arrays(tmp_path / "x.npz")
    assert np.array_equal(found["x"], x)
    assert found["n"] == 3
    assert found["names"].tolist() == ["a", "b"]


def test_bfloat16_is_read_as_what_it_stands_for(tmp_path: Path) -> None:
    x = torch.randn(6, 4).bfloat16()
    np.save(tmp_path / "x.npy", x.view(torch.int16).numpy().view("V2"))
    assert np.array_equal(files.read_array(tmp_path / "x.npy"), x.float().numpy())


def test_bombs_end_before_they_take_memory(tmp_path: Path) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(bytes(90 * 2**20), 9))
    with files.decompressed(tmp_path / "a.txt.gz") as file, pytest.raises(FileError, match="25 times"):
        list(iter(lambda: file.read(2**20), b""))
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("a.npy", npy("'<f4'", "(90, 262144)", bytes(90 * 2**20)))
    with pytest.raises(FileError, match="25 times"):
        files.read_arrays(tmp_path / "a.npz")
    idx = b"\0\0\x08\x03" + b"\xff\xff\xff\xff" * 3
    (tmp_path / "a-idx3.gz").write_bytes(gzip.compress(idx + bytes(100)))
    (tmp_path / "a-idx3").write_bytes(idx + bytes(100))
    for name in ("a-idx3.gz", "a-idx3"):
        with pytest.raises(FileError, match="more than there is"):
            files.read_idx(tmp_path / name)
    pq.write_table(pa.table({"a": pa.array(np.zeros(30_000_000, np.int8))}), tmp_path / "a.parquet")
    with pytest.raises(FileError, match="times its own size"), files.open_parquet(tmp_path / "a.parquet"):
        pass


@pytest.mark.parametrize("cut", [5, 30, -4])
def test_torn_archives(cut: int, tmp_path: Path) -> None:
    whole = gzip.compress(b"\0\0\x08\x01\0\0\0\x50" + os.urandom(80))
    (tmp_path / "a-idx1.gz").write_bytes(whole[:cut])
    with pytest.raises(FileError, match=r"a-idx1\.gz"):
        files.read_idx(tmp_path / "a-idx1.gz")
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(1000))
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:cut])
    with pytest.raises(FileError, match=r"a\.npz"):
        files.read_arrays(tmp_path / "a.npz")
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:cut])
    with pytest.raises(FileError, match=r"a\.parquet"), files.open_parquet(tmp_path / "a.parquet") as file:
        file.read()


def test_shapes_without_the_numbers(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(0)}, tmp_path / "x.safetensors")
    assert files.safetensors_shapes(tmp_path / "x.safetensors") == {"a": (2, 3), "b": (0,)}
    (tmp_path / "x.safetensors").write_bytes(b"\xff" * 100)
    for read in (files.safetensors_shapes, files.read_safetensors):
        with pytest.raises(FileError, match=r"x\.safetensors"):
            read(tmp_path / "x.safetensors")


def test_a_file_cut_before_or_while_it_is_mapped_is_refused_and_ends_no_process(tmp_path: Path) -> None:
    """Reading what a mapping has lost ends the process; so this one asks before it reads."""
    path, tensors = tmp_path / "x.npy", tmp_path / "x.safetensors"
    np.save(path, np.ones((4096, 16), np.float32))
    save_file({"x": torch.ones(4096, 16)}, tensors)
    source, rows = VectorActivations(files.read_array(path)), VectorRows(files.read_array(path))
    assert source.pool(0).shape == (4096, 16)
    assert len(rows.read(4000, 4096)) == 96
    for file in (path, tensors):
        os.truncate(file, 100_000)
    for read in (lambda: source.make_pool(1), lambda: rows.read(4000, 4096)):
        with pytest.raises(FileError, match=r"x\.npy cannot be read .*cut to 100,000 of 262,272 bytes"):
            read()
    for again in (lambda: files.read_array(path), lambda: files.read_safetensors(tensors)):
        with pytest.raises(FileError, match="cannot be read"):
            again()
