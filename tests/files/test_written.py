"""A file appears whole or not at all, and a full disk is said with how much it lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from monosem import files
from monosem.errors import FileError
from monosem.files import require_place

SMALL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from monosem import files
from monosem.errors import FileError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (
    lambda: files.write_safetensors(folder / "x", {"a": np.zeros(10_000)}),
    lambda: files.write_json(folder / "x", list(range(1_000))),
):
    try:
        write()
    except FileError as error:
        print(error)
try:
    for _ in range(1_000):
        files.append_json_line(folder / "lines", [1])
except FileError as error:
    print(error)
"""


def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    done = subprocess.run([sys.executable, "-c", SMALL_DISK, str(tmp_path)], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert len(said) == 3, done
    assert all("the disk is full" in line and "make room" in line for line in said)
    assert (tmp_path / "x").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"x", "lines"}


def test_what_is_lacking_is_known_before_anything_is_written(tmp_path: Path) -> None:
    with (
        pytest.raises(FileError, match=r"to be written.*are free.*are missing"),
        files.replacing(tmp_path / "x", 2**60),
    ):
        pytest.fail("it began")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        files.write_text(tmp_path / "x" / "y", "words")


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UnicodeEncodeError), files.replacing(tmp_path / "x") as new:
        new.write_text("half, then \ud83d" * 10_000, encoding="utf-8")
    assert not list(tmp_path.iterdir())


def test_a_place_to_write_is_looked_at_before_the_work(tmp_path: Path) -> None:
    """Nothing is left there, and what cannot be is said as it would be in the end."""
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    before = sorted(tmp_path.rglob("*"))
    require_place(tmp_path / "new.json")
    require_place(tmp_path / "file")
    require_place(tmp_path / "a" / "b" / "new.json")
    require_place(tmp_path / "folder", "folder")
    require_place(tmp_path / "c" / "d", "folder")
    for path, kind in (
        (tmp_path / "folder", "file"),
        (tmp_path / "file", "folder"),
        (tmp_path / "file" / "x.json", "file"),
        (tmp_path / "file" / "x", "folder"),
        ("a\0b", "file"),
        ("x" * 300, "file"),
        ("/proc/x/y.json", "file"),
    ):
        with pytest.raises(FileError, match="cannot be written"):
            require_place(path, kind)  # pyright: ignore[reportArgumentType]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_without_a_name_is_no_file(path: str) -> None:
    with pytest.raises(FileError, match="names no file to write"):
        files.write_text(path, "text")
