"""What is said of a store whose files are damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from monosem.errors import FileError


@contextmanager
def readable(folder: Path, refused: Callable[[Exception], Exception] | None = None) -> Iterator[None]:
    """Turns what DuckDB and Arrow say of a damaged file into a `FileError`."""
    import duckdb

    try:
        yield
    except (duckdb.IOException, duckdb.SerializationException, pa.ArrowException, OSError) as error:
        words = str(error).splitlines()[0]
        raise FileError(f"{folder} cannot be read ({words}): harvest the run again") from error
    except duckdb.Error as error:
        if refused is None:
            words = str(error).splitlines()[0]
            raise FileError(f"{folder} cannot be read ({words}): harvest the run again") from error
        raise refused(error) from error
