"""What is said of a store whose files are damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from monosem.errors import FileError
from monosem.files import DAMAGE, one_line


@contextmanager
def readable(folder: Path, refused: Callable[[Exception], Exception] | None = None) -> Iterator[None]:
    """Turns what DuckDB and Arrow say of a damaged file into a `FileError`."""
    import duckdb

    try:
        yield
    except (*DAMAGE, pa.ArrowException, duckdb.Error) as error:
        damaged = not isinstance(error, duckdb.Error) or isinstance(error, duckdb.IOException | duckdb.FatalException)
        if refused is None or damaged or isinstance(error, duckdb.SerializationException):
            raise FileError(f"{folder} cannot be read ({one_line(error)}): harvest the run again") from error
        raise refused(error) from error
