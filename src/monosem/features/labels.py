"""The rows of a store of ready vectors, and what is known of them in words."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from monosem.activations import VectorRows
from monosem.sql import readable


class Rows:
    """The rows that a store's examples show. May be used by several threads."""

    def __init__(self, folder: Path, index: dict[str, Any]) -> None:
        """Of the store in `folder`, whose index.json says `index`."""
        self.source: str = index["vectors"]["source"]
        """Where they came from."""
        table = index["tables"].get("rows")
        self._file = None if table is None else folder / table["parts"][0]["file"]

    def label(self, number: int) -> str | None:
        """What is known of a row; None if nothing is."""
        return self._labels.get(number)

    def name(self, number: int) -> str:
        """A row in words: its number, and its label if it has one."""
        label = self.label(number)
        return f"row {number}" if label is None else f"row {number}: {label}"

    @functools.cached_property
    def _labels(self) -> dict[int, str]:
        if self._file is None:
            return {}
        with readable(self._file.parent):
            table = pq.read_table(self._file)
        return dict(zip(table.column("row").to_pylist(), table.column("label").to_pylist(), strict=True))


def rows_table(rows: VectorRows, numbers: Sequence[int]) -> pa.Table:
    """One row a row that an example shows."""
    return pa.table(
        {
            "row": pa.array(numbers, pa.int32()),
            "label": pa.array([rows.label(number) for number in numbers], pa.string()),
        }
    )
