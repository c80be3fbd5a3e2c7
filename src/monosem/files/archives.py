"""Compressed files, read as a stream that ends where a bomb begins."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from monosem.errors import FileError
from monosem.files.checked import MIB, reading, regular_file

EXPANSION, SMALL = 25, 64 * MIB
"""What is unpacked may be so many times larger than its file; up to SMALL bytes in any case."""


def room(path: str | Path) -> int:
    """Bytes that a compressed file may hold."""
    return SMALL + EXPANSION * Path(path).stat().st_size


class Bomb(FileError):
    """A file holds much more than its size lets expect."""


def too_much(path: str | Path, expansion: int = EXPANSION) -> Bomb:
    """What is said of a file that holds more."""
    return Bomb(
        f"{path} holds more than {expansion} times its own size, as a bomb would: if that is right, unpack it and give "
        "what was in it"
    )


def require_room(path: str | Path, n_bytes: int, expansion: int) -> None:
    """Refuse a file that says that it unpacks to more than `expansion` times its size, and SMALL.

    Raises:
        FileError: it does.
    """
    if n_bytes > SMALL + expansion * Path(path).stat().st_size:
        raise too_much(path, expansion)


class _Limited(io.RawIOBase):
    """Bytes of a stream, of which there may be so many."""

    def __init__(self, inner: Any, path: Path) -> None:
        self._inner, self._path, self._left = inner, path, room(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._inner.read(len(buffer))
        self._left -= len(content)
        if self._left < 0:
            raise too_much(self._path)
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._inner.close()
        super().close()


def decompressed(path: str | Path) -> IO[bytes]:
    """The bytes of a file, unpacked if its name ends in .gz or .zst.

    Raises:
        FileError: it is missing or no regular file; when read: it holds more than a file of its size should.
        OSError, EOFError, zlib.error: when read: it is damaged (`reading` turns these into a `FileError`).
    """
    path = regular_file(path, remedy="give a file that is there")
    with reading(path, "give a file that can be read"):
        if path.suffix == ".gz":
            return cast(IO[bytes], io.BufferedReader(_Limited(gzip.open(path), path), MIB))
        if path.suffix == ".zst":
            import pyarrow as pa

            return cast(IO[bytes], io.BufferedReader(_Limited(pa.CompressedInputStream(str(path), "zstd"), path), MIB))
        return path.open("rb")


@contextmanager
def opened(path: str | Path, remedy: str = "give a file that can be read") -> Iterator[IO[bytes]]:
    """As `decompressed`, with what goes wrong while it is read as a `FileError`."""
    with reading(path, remedy), decompressed(path) as file:
        yield file
