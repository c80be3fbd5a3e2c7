"""Rows of a store read straight from the row groups that hold them: a few milliseconds, and little memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
GROUPS_KEPT = 256
"""Row groups that stay in memory, of all files: 0.1 to 0.5 MB each."""


@dataclass(frozen=True, eq=False)
class LatentFile:
    """A file of a table in which latents ascend."""

    path: Path
    metadata: pq.FileMetaData
    first: np.ndarray
    """(row groups,) the lowest latent in each."""
    last: np.ndarray

    @staticmethod
    def open(path: Path) -> LatentFile:
        """Reads the footer."""
        metadata = pq.read_metadata(path)
        place = metadata.schema.names.index("latent")
        groups = (metadata.row_group(i).column(place).statistics for i in range(metadata.num_row_groups))
        ends = np.array([(group.min, group.max) for group in groups], np.int64).reshape(-1, 2)
        return LatentFile(path, metadata, ends[:, 0], ends[:, 1])

    def rows(self, latents: Sequence[int]) -> list[Row]:
        """The rows of some latents, which ascend."""
        stop = np.searchsorted(latents, self.last, side="right")
        groups = np.flatnonzero(np.searchsorted(latents, self.first) < stop)
        if not len(groups):
            return []
        table = pa.concat_tables([_group(self, i) for i in groups.tolist()])
        there = numbers(table.column("latent"))
        spans = zip(np.searchsorted(there, latents), np.searchsorted(there, latents, side="right"), strict=True)
        return [row for first, stop in spans for row in table.slice(int(first), int(stop - first)).to_pylist()]


@functools.lru_cache(GROUPS_KEPT)
def _group(file: LatentFile, i: int) -> pa.Table:
    """A row group, read once: what was asked for is often asked for again, by itself or by its neighbour."""
    with pq.ParquetFile(file.path, metadata=file.metadata) as opened:
        return opened.read_row_group(i, use_threads=False)


def columns_of(paths: Sequence[Path], names: Sequence[str]) -> pa.Table:
    """Some columns of the files of a table, whole; strings as dictionaries."""
    schema = pq.read_schema(paths[0])
    words = [name for name in names if pa.types.is_string(schema.field(name).type)]

    def read(path: Path) -> pa.Table:
        with pq.ParquetFile(path, read_dictionary=words) as file:
            return file.read(list(names), use_threads=False)

    return pa.concat_tables(map(read, paths))


def numbers(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """The values of a column of numbers; NaN, or zero among integers, where there is none.

    `to_numpy` would do, but imports pandas where that is installed: 60 MiB.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return np.concatenate([_numbers(chunk) for chunk in chunks] or [np.zeros(0, column.type.to_pandas_dtype())])


def _numbers(array: pa.Array) -> np.ndarray:
    kind = np.dtype(array.type.to_pandas_dtype())
    known, values = array.buffers()
    found = np.frombuffer(values, kind, len(array), array.offset * kind.itemsize)
    if not array.null_count:
        return found
    bits = np.unpackbits(np.frombuffer(known, np.uint8), bitorder="little")[array.offset : array.offset + len(array)]
    return np.where(bits, found, kind.type(np.nan if kind.kind == "f" else 0))


def require_numbers(row: Row, names: Sequence[str]) -> None:
    """Refuse a row of which some columns hold something else than numbers or nothing.

    Raises:
        TypeError: with the name of the column.
    """
    for name in names:
        if not isinstance(row.get(name), int | float | None):
            raise TypeError(f"column {name!r} holds {row[name]!r:.40}, not a number")
