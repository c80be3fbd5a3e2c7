"""Reading by row groups: the rows are those of the whole table, wherever the groups end."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_store import Made

from monosem.features.rows import LatentFile, columns_of, numbers


@pytest.mark.parametrize("group", [1, 7, 64, 1000])
def test_rows_of_latents_are_those_of_the_whole_table(tmp_path: Path, group: int) -> None:
    rng = np.random.default_rng(group)
    latents = np.repeat(np.arange(40), rng.integers(0, 5, 40))  # some have no row, some lie in two groups
    table = pa.table({"latent": pa.array(latents, pa.int32()), "words": [[i] * (i % 3) for i in range(len(latents))]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=group)
    file, whole = LatentFile.open(tmp_path / "t.parquet"), table.to_pylist()
    for n in (1, 2, 9, 40):
        wanted = sorted(rng.choice(45, n, replace=False).tolist())
        assert file.rows(wanted) == [row for row in whole if row["latent"] in wanted]


def test_columns_of_several_files_are_one_table(tmp_path: Path) -> None:
    words = [["a", None, "b"], ["b", "c"]]
    for i, part in enumerate(words):
        pq.write_table(pa.table({"name": part, "x": [1.0] * len(part), "y": [2] * len(part)}), tmp_path / f"{i}")
    found = columns_of([tmp_path / "0", tmp_path / "1"], ["name", "x"])
    assert found.column_names == ["name", "x"]
    assert found.column("name").to_pylist() == ["a", None, "b", "b", "c"]
    assert [found.column("name")[i].as_py() for i in (1, 4)] == [None, "c"]


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64(), pa.int32(), pa.int64(), pa.uint8()])
def test_numbers_are_those_of_the_column(kind: pa.DataType) -> None:
    values = list(range(1, 30))
    column = pa.chunked_array([pa.array(values[:9], kind), pa.array(values[9:], kind).slice(3, 12)])
    assert numbers(column).tolist() == column.to_pylist()
    gaps = pa.array([None if v % 3 == 0 else v for v in values], kind).slice(5, 17)
    missing = float("nan") if pa.types.is_floating(kind) else 0
    expected = [missing if v is None else v for v in gaps.to_pylist()]
    np.testing.assert_array_equal(numbers(gaps), expected)
    none = numbers(pa.chunked_array([], kind))
    assert (len(none), none.dtype) == (0, numbers(column).dtype)


def test_a_feature_is_read_without_pandas(made: Made) -> None:
    code = "import sys, monosem as ms; ms.FeatureStore(sys.argv[1])[0]; print('pandas' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(made.store.path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False"]
