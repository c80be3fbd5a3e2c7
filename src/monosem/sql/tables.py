"""Parquet files of one folder as tables, read and never written."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from monosem.errors import ConfigError
from monosem.sql.question import check_condition, check_query
from monosem.sql.readable import readable


class Tables:
    """A connection to DuckDB that knows the tables of one folder. May be used by several threads."""

    def __init__(self, folder: Path, files: Mapping[str, Sequence[str]], settings: Mapping[str, str] | None = None):
        """Open the files.

        Args:
            folder: where they are.
            files: of every table its parts, by their paths in the folder.
            settings: of DuckDB, such as memory_limit.

        Raises:
            FileError: one of them is missing or damaged.
        """
        import duckdb

        self.folder, self.files = folder, {name: list(parts) for name, parts in files.items()}
        self.connection = duckdb.connect(":memory:")
        self._threads = threading.local()
        run = self.connection.execute
        with readable(folder):
            for name, parts in self.files.items():
                listed = ", ".join(_quoted(folder / part) for part in parts)
                run(f"create view {name} as select * from read_parquet([{listed}])")
        for name, value in {
            "enable_progress_bar": "false",
            "preserve_insertion_order": "true",
            "parquet_metadata_cache": "true",
            "python_enable_replacements": "false",  # no variable of the program is a table
            "temp_directory": "''",
            "autoload_known_extensions": "false",
            **(settings or {}),
            "allowed_directories": f"[{_quoted(folder.resolve())}, {_quoted(folder)}]",
            "enable_external_access": "false",
            "lock_configuration": "true",
        }.items():
            run(f"set {name} = {value}")

    def run(self, query: str, values: Sequence[Any] = ()) -> pa.Table:
        """Run a query of our own; `?` in it stand for values.

        Raises:
            FileError: a file is damaged.
        """
        with readable(self.folder):
            return self._cursor.sql(query, params=list(values)).to_arrow_table()

    def ask(self, query: str, values: Sequence[Any] = (), where: str | None = None) -> pa.Table:
        """Run a query that somebody else has written, or a part of it.

        Args:
            query: in SQL.
            values: for every `?` in it.
            where: a part of it, as `condition` puts it there, that must be one expression.

        Raises:
            ConfigError: it is wrong, or does anything but read these tables.
            FileError: a file is damaged.
        """
        with readable(self.folder, _refusal):
            if where and where.strip():
                check_condition(where, self._parse)
            check_query(query, self.files, self._parse)
            return self._cursor.sql(query, params=list(values)).to_arrow_table()

    @property
    def _cursor(self) -> Any:
        if not hasattr(self._threads, "cursor"):
            self._threads.cursor = self.connection.cursor()
        return self._threads.cursor

    def _parse(self, query: str) -> str:
        return self._cursor.sql("select json_serialize_sql(?::varchar)", params=[query]).fetchall()[0][0]


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def _refusal(error: Exception) -> Exception:
    return ConfigError(f"the query cannot be run: {' '.join(str(error).split())[:300]}")
