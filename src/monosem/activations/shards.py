"""Activations on disk: shards of rows, an index of them, and what says whether a shard is whole.

A folder holds, for every hook point, a folder of shards, each a safetensors file of one tensor `rows`; `places/` has as
many with the document, position and token of every row. Rows were dealt at random to the shards of a window, of which
each is written in one go; `windows/` says of each how many rows its shards have, and their sums. `index.json` says all
that holds for the whole.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, overload

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from monosem.activations.remote import Remote, place_of
from monosem.errors import FileError
from monosem.files import fits, parse_json, read_bytes, reading, regular_file, write_json, writing
from monosem.sae import SAEMetadata
from monosem.spelling import path_meant

FORMAT, VERSION = "monosem activations", 1
CHUNK_BYTES = 2**20
HEADER = 256
"""Bytes before the numbers of a shard: room for what safetensors says of them."""
INDEX, WINDOWS, PLACES = "index.json", "windows", "places"
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, "int32": 4}
CALLED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int32": "I32"}
"""What safetensors calls them."""
AGAIN = "run the same `monosem store` (or ms.store_activations) again: it rewrites what is damaged"

Dtype = Literal["float32", "bfloat16", "float16"]


class Window(BaseModel):
    """Some shards, among which rows were dealt."""

    model_config = ConfigDict(strict=True, extra="forbid")

    rows: list[int] = Field(min_length=1)
    """Of every shard."""
    sums: dict[str, list[int]]
    """CRC-32 of the numbers of every shard, in each of the folders."""
    context: int = Field(ge=0)
    """The context from which the next window goes on,"""
    row: int = Field(ge=0)
    """and how many rows of it and the ones read with it are in this one."""


class StoreIndex(BaseModel):
    """What index.json says."""

    model_config = ConfigDict(strict=True, extra="forbid")

    format: str
    format_version: int
    monosem_version: str
    identity: dict[str, Any]
    """All that decides the rows: model, hook points, data, positions."""
    metadata: SAEMetadata
    """What an SAE trained on them should remember."""
    hooks: dict[str, int]
    """Columns at each hook point."""
    n_models: int = Field(ge=1)
    dtype: Dtype
    tokens: int = Field(ge=1)
    """Rows wished for."""
    shard_rows: int = Field(ge=1)
    window_shards: int = Field(ge=1)
    complete: bool = False

    def folders(self) -> dict[str, tuple[int, str]]:
        """Columns and type of what every folder of shards holds."""
        return {
            **{folder_of(hook): (columns, self.dtype) for hook, columns in self.hooks.items()},
            PLACES: (3, "int32"),
        }

    @property
    def bytes_a_row(self) -> int:
        return sum(columns * SIZES[dtype] for columns, dtype in self.folders().values())

    @property
    def window_rows(self) -> int:
        return self.shard_rows * self.window_shards

    @property
    def n_windows(self) -> int:
        """How many there are at most."""
        return -(-self.tokens // self.window_rows)


def folder_of(hook: str) -> str:
    """The folder of a hook point's shards: its name, without what file systems do not take."""
    return re.sub(r"[^\w.-]", "_", hook)


def shard_name(number: int) -> str:
    return f"{number:06d}.safetensors"


def header_of(rows: int, columns: int, dtype: str) -> bytes:
    """The beginning of a shard."""
    about = {"dtype": CALLED[dtype], "shape": [rows, columns], "data_offsets": [0, rows * columns * SIZES[dtype]]}
    words = json.dumps({"rows": about}, separators=(",", ":")).encode().ljust(HEADER - 8)
    return len(words).to_bytes(8, "little") + words


class ShardWriter:
    """Appends rows to a shard; it is whole once it is closed."""

    def __init__(self, path: Path, columns: int, dtype: str) -> None:
        self.path, self.columns, self.dtype = path, columns, dtype
        self.rows, self.sum = 0, 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self._file.write(header_of(0, columns, dtype))

    def append(self, rows: np.ndarray) -> None:
        """(n, columns), in the bytes of its type; none, where few rows are dealt to many shards."""
        if not len(rows):
            return
        content = np.ascontiguousarray(rows).data.cast("B")
        written = 0
        while written < len(content):  # the system may take less than it is given
            written += self._file.write(content[written:])
        self.sum = zlib.crc32(content, self.sum)
        self.rows += len(rows)

    def close(self, whole: bool = True) -> None:
        """Say how many rows there are, and see them on the disk; or leave it as it is."""
        with self._file as file:
            if whole:
                file.seek(0)
                file.write(header_of(self.rows, self.columns, self.dtype))
                os.fsync(file.fileno())


class Shard(NamedTuple):
    """A shard in a folder."""

    path: Path | Remote
    rows: int
    columns: int
    dtype: str
    sum: int

    @property
    def n_bytes(self) -> int:
        return self.rows * self.columns * SIZES[self.dtype]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return HEADER + self.n_bytes

    def check_size(self, size: int | None = None) -> None:
        """See that it is as long as it should be; `size` is what is known of that already.

        Raises:
            FileError: it is missing, or not of that length.
        """
        if size is None and not Path(str(self.path)).exists():
            raise FileError(f"{self.path} does not exist: {AGAIN}")
        if size is None:
            size = regular_file(Path(str(self.path)), remedy=AGAIN).stat().st_size
        if size != self.size:
            raise FileError(f"{self.path} is damaged: it has {size:,} of {self.size:,} bytes: {self._again}")

    def chunks(self, chunk_bytes: int, checked: bool) -> Iterator[np.ndarray]:
        """Its bytes, (rows, bytes of a row), some at a time; each is overwritten by the next.

        Raises:
            FileError: it is missing, cut short, or (where `checked`) not what was written.
        """
        width, found = self.columns * SIZES[self.dtype], 0
        at_once = max(1, chunk_bytes // width)
        buffer = np.empty((min(at_once, self.rows), width), np.uint8)
        with self._open() as file, reading(str(self.path), self._again):
            self.check_size(os.fstat(file.fileno()).st_size)
            if file.read(HEADER) != header_of(self.rows, self.columns, self.dtype):
                raise ValueError("it does not begin as what was written")
            for first in range(0, self.rows, at_once):
                part = buffer[: min(at_once, self.rows - first)]
                view, got = part.data.cast("B"), 0
                while got < len(view):
                    more = file.readinto(view[got:])  # type: ignore[attr-defined]
                    if not more:
                        raise ValueError("it has been cut while it was read")
                    got += more
                if checked:
                    found = zlib.crc32(view, found)
                yield part
        if checked and found != self.sum:
            raise FileError(f"{self.path} is damaged: its numbers are not those that were written: {self._again}")

    def whole(self, copy: Path) -> bool:
        """Whether a file is what was written, be it this one."""
        try:
            for _ in self._replace(path=copy).chunks(CHUNK_BYTES, checked=True):
                pass
        except FileError:
            return False
        return True

    def _open(self) -> IO[bytes]:
        if isinstance(self.path, Remote):
            return self.path.open(self.whole)
        with reading(regular_file(self.path, remedy=AGAIN), AGAIN):
            return self.path.open("rb", buffering=0)

    @property
    def _again(self) -> str:
        return AGAIN if isinstance(self.path, Path) else "copy it there again"


class Shards(Sequence[Shard]):
    """The shards of one folder, in the order of their numbers, each made when it is asked for."""

    def __init__(self, folder: Path | Remote, columns: int, dtype: str, rows: np.ndarray, sums: np.ndarray) -> None:
        self.folder, self.columns, self.dtype = folder, columns, dtype
        self.rows, self.sums = rows, sums
        self._checked = np.zeros(len(rows), bool)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, number: int) -> Shard: ...
    @overload
    def __getitem__(self, number: slice) -> list[Shard]: ...
    def __getitem__(self, number: int | slice) -> Shard | list[Shard]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(f"there is no shard {number} of {len(self)}")
        rows, total = int(self.rows[number]), int(self.sums[number])
        return Shard(self.folder / shard_name(number), rows, self.columns, self.dtype, total)

    def chunks(self, number: int, chunk_bytes: int) -> Iterator[np.ndarray]:
        """As `Shard.chunks`; its sum is compared the first time, and of what is fetched when it comes."""
        fetched = isinstance(self.folder, Remote)
        yield from self[number].chunks(chunk_bytes, checked=not fetched and not self._checked[number])
        self._checked[number] = True

    def check(self) -> None:
        """See that all are there and as long as they should be, as far as that is known without reading them.

        Raises:
            FileError: one is not.
        """
        if isinstance(self.folder, Path):
            for shard in self:
                shard.check_size()
            return
        sizes = self.folder.files.sizes(self.folder.name)
        for number, shard in enumerate(self if sizes else ()):
            if shard_name(number) not in sizes:
                raise FileError(f"{shard.path} does not exist: copy it there again")
            shard.check_size(sizes[shard_name(number)])


class StoreFolder:
    """The index and the windows of a store, as they stand in a folder or at an address."""

    def __init__(self, path: str | Path) -> None:
        """Open it.

        Raises:
            FileError: there is no store, its index is damaged or of another version, or the address is out of reach.
        """
        self.path = place_of(path)
        file = self.path / INDEX
        (found,) = self._read([INDEX])
        if found is None:
            what = "holds no activations (no index.json)"
            if isinstance(self.path, Path) and not self.path.is_dir():
                what = f"does not exist{path_meant(self.path)}"
            raise FileError(f"{self.path} {what}: `monosem store` and ms.store_activations write such a folder")
        content = parse_json(found, str(file), dict[str, Any], AGAIN)
        if content.get("format") != FORMAT:
            raise FileError(f'{file} is not of stored activations (no "format": "{FORMAT}")')
        if content.get("format_version") != VERSION:
            there = content.get("format_version")
            raise FileError(f"{file} is of another version of the format ({there}): upgrade monosem")
        self.index = fits(content, StoreIndex, str(file), AGAIN)
        self.windows = list(self._windows())

    def _windows(self) -> Iterator[Window]:
        names = set(self.index.folders())
        for number, content in enumerate(self._read([window_name(i) for i in range(self.index.n_windows)])):
            if content is None:
                return
            name = f"{self.path}/{window_name(number)}"
            window = fits(parse_json(content, name, dict[str, Any], AGAIN), Window, name, AGAIN)
            if set(window.sums) != names or any(len(sums) != len(window.rows) for sums in window.sums.values()):
                raise FileError(f"{name} does not fit {self.path / INDEX}: {AGAIN}")
            yield window

    def _read(self, names: Sequence[str]) -> Iterator[bytes | None]:
        """Small files; None for one that is not there."""
        if isinstance(self.path, Remote):
            yield from self.path.files.read_all(names)
            return
        for name in names:
            file = self.path / name
            yield read_bytes(file, remedy=AGAIN) if file.is_file() else None

    def here(self, name: str) -> Path:
        """Where a small file of it can be read."""
        found = self.path.files.copy(name) if isinstance(self.path, Remote) else self.path / name
        if found is None:
            raise FileError(f"{self.path}/{name} does not exist: copy it there again")
        return found

    @property
    def rows(self) -> int:
        return sum(sum(window.rows) for window in self.windows)

    def shards(self, hook_folder: str) -> Shards:
        """Those of one folder."""
        columns, dtype = self.index.folders()[hook_folder]
        rows = [rows for window in self.windows for rows in window.rows]
        sums = [total for window in self.windows for total in window.sums[hook_folder]]
        return Shards(self.path / hook_folder, columns, dtype, np.array(rows, np.int64), np.array(sums, np.uint32))


def window_name(number: int) -> str:
    return f"{WINDOWS}/{number:06d}.json"


def window_file(path: Path, number: int) -> Path:
    """Where a window of the store in a folder is described."""
    return path / window_name(number)


def write_index(path: Path, index: StoreIndex) -> None:
    """Write index.json.

    Raises:
        FileError: the disk is full, or the folder cannot be written.
    """
    write_json(path / INDEX, index.model_dump(exclude_none=True), indent=2)


def require_disk(path: Path, n_bytes: int) -> None:
    """See that there is room for so many bytes more.

    Raises:
        FileError: there is not, with how much is missing.
    """
    with writing(path / INDEX, n_bytes):
        pass
