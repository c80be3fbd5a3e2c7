"""Parquet: a table whose footer is sound and whose rows fit a file of its size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monosem.files.archives import require_room
from monosem.files.checked import RESTORE, reading, regular_file

if TYPE_CHECKING:
    import pyarrow.parquet as pq

EXPANSION = 200
"""Runs of equal values cost next to nothing in a table: so many times its file's size may be unpacked."""


@contextmanager
def open_parquet(path: str | Path, remedy: str = RESTORE, **options: Any) -> Iterator[pq.ParquetFile]:
    """A table, with what goes wrong while it is read as a `FileError`.

    Args:
        path: the file.
        remedy: what to do about a damaged one.
        **options: of `pyarrow.parquet.ParquetFile`.

    Raises:
        FileError: it is missing, damaged, or says that it holds more than a file of its size can.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = regular_file(path, remedy=remedy)
    with reading(path, remedy, pa.ArrowException), pq.ParquetFile(path, **options) as file:
        about = file.metadata
        groups = [about.row_group(i) for i in range(about.num_row_groups)]
        unpacked = max(sum(group.total_byte_size for group in groups), 4 * about.num_rows * about.num_columns)
        require_room(path, unpacked, EXPANSION)
        yield file
