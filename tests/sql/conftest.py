"""A folder of two small tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monosem.sql import Tables

ROWS = 100


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    folder = tmp_path / "store"
    folder.mkdir()
    pq.write_table(
        pa.table({"latent": range(ROWS), "rate": [i / ROWS for i in range(ROWS)]}), folder / "features.parquet"
    )
    pq.write_table(pa.table({"latent": [3, 3, 5], "text": ["a", "b", "c"]}), folder / "examples.parquet")
    return Tables(folder, {"features": ["features.parquet"], "examples": ["examples.parquet"]})
