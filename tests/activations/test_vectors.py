"""Activations that are there already: every epoch every row once, pools that can be made again, bad data named."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from monosem.activations import ActivationSource, IterableActivations, Place, VectorActivations, activations, batches
from monosem.activations import vectors as module
from monosem.errors import ConfigError, DataError, FileError

POOL_ROWS = 7
small_pools = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def pool_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL_ROWS", POOL_ROWS)


def numbered(n: int, d: int = 2) -> Tensor:
    """Row i is i, i + 1000, ..."""
    return torch.arange(n, dtype=torch.float32)[:, None] + 1000 * torch.arange(d)


def ids(rows: Tensor) -> list[int]:
    return [int(i) for i in rows[:, 0]]


def pools(source: ActivationSource, count: int) -> list[list[int]]:
    return [ids(source.pool(number)) for number in range(count)]


# Pools and batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 6, 7, 8, 23])
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_an_epoch_has_every_row_once_and_whole(n: int, kind: str) -> None:
    x = numbered(n, 3)
    source = VectorActivations(x if kind == "tensor" else x.numpy())
    an_epoch = -(-n // POOL_ROWS)
    orders: list[list[int]] = []
    for epoch in range(3):
        seen: list[int] = []
        for part in range(an_epoch):
            pool = source.pool(epoch * an_epoch + part)
            assert torch.equal(pool, x[ids(pool)])
            seen += ids(pool)
        assert sorted(seen) == list(range(n))
        orders.append(seen)
    if n > 8:
        assert orders[0] != orders[1] != orders[2]
        assert orders[0] != sorted(orders[0])


def test_a_pool_is_a_function_of_its_number_and_the_seed_alone() -> None:
    one, two, other = (VectorActivations(numbered(30), seed=seed) for seed in (0, 0, 1))
    expected = pools(one, 12)
    assert [ids(two.pool(i)) for i in reversed(range(12))] == expected[::-1]
    assert [ids(one.pool(i)) for i in (5, 0, 5, 11)] == [expected[i] for i in (5, 0, 5, 11)]
    assert [sorted(p) for p in pools(other, 5)] != [sorted(p) for p in expected[:5]]


def test_tensor_and_array_give_the_same_rows() -> None:
    assert pools(VectorActivations(numbered(30)), 9) == pools(VectorActivations(numbered(30).numpy()), 9)


@given(n=st.integers(1, 30), batch_size=st.integers(1, 20), data=st.data())
@small_pools
def test_batches_across_pools_lose_and_repeat_nothing(n: int, batch_size: int, data: st.DataObject) -> None:
    """From any place on, in whole batches, as a plain loop over the pools would."""
    source = VectorActivations(numbered(n))
    stream = [row for pool in pools(source, 5 * batch_size) for row in pool]
    found, places = take(batches(source, batch_size), 5)
    assert [len(rows) for rows in found] == [batch_size] * 5
    assert list(chain(*found)) == stream[: 5 * batch_size]
    stop = data.draw(st.integers(0, 3))
    rest, rest_places = take(batches(VectorActivations(numbered(n)), batch_size, places[stop]), 4 - stop)
    assert rest == found[stop + 1 :]
    assert rest_places == places[stop + 1 :]


def take(stream: Iterator[tuple[Tensor, Place]], count: int) -> tuple[list[list[int]], list[Place]]:
    taken = [next(stream) for _ in range(count)]
    return [ids(rows) for rows, _ in taken], [place for _, place in taken]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), batch_size=st.integers(1, 12))
@small_pools
def test_of_an_iterable_only_an_incomplete_last_batch_is_dropped(sizes: list[int], batch_size: int) -> None:
    parts = numbered(sum(sizes)).split(sizes)
    source = IterableActivations(part.numpy() if i % 2 else part for i, part in enumerate(parts))
    found = [ids(rows) for rows, _ in batches(source, batch_size)]
    whole = sum(sizes) // batch_size
    assert list(chain(*found)) == list(range(whole * batch_size))
    assert [len(rows) for rows in found] == [batch_size] * whole


def test_an_iterable_cannot_be_taken_up_in_the_middle() -> None:
    with pytest.raises(ConfigError, match="cannot be resumed"):
        next(batches(IterableActivations([numbered(5)]), 2, Place(3, 0)))


def test_probes_are_the_first_rows_that_are_trained_on() -> None:
    source = VectorActivations(numbered(30))
    assert ids(source.probe_activations(source.probe())) == pools(source, 1)[0]
    iterable = IterableActivations([numbered(300), numbered(4)])
    list(batches(iterable, 10))
    assert ids(iterable.probe_activations(iterable.probe())) == list(range(256))


# Types and shapes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64", "uint8", ">f4", "float64", ">f8"])
def test_every_type_of_number_is_read_as_float32_and_float64_stays(dtype: str) -> None:
    x = (numbered(5) / 10).numpy().astype(dtype)
    pool = VectorActivations(x).pool(0)
    assert pool.dtype == (torch.float64 if dtype.endswith(("64", "8")) and "f" in dtype else torch.float32)
    assert sorted(pool.tolist()) == sorted(x.astype(np.float64).tolist())


def test_bfloat16_tensors_are_read_as_float32() -> None:
    x = numbered(5).bfloat16()
    assert sorted(VectorActivations(x).pool(0).tolist()) == sorted(x.float().tolist())
    assert next(batches(IterableActivations([x]), 5))[0].dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 4), (4,), (), (2, 3, 4)])
def test_other_shapes_than_rows_of_vectors_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="shape"):
        activations(torch.zeros(shape))
    with pytest.raises(DataError, match="shape"):
        activations(np.zeros(shape))


def test_bad_iterables_are_refused() -> None:
    with pytest.raises(DataError, match="empty"):
        activations([])
    with pytest.raises(DataError, match="shape"):
        activations([torch.zeros(4)])


# Bad numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_rows_that_are_not_finite_are_named_by_their_place_in_the_data(kind: str, bad: float) -> None:
    x = numbered(POOL_ROWS)
    x[3, 1] = x[5, 0] = bad
    with pytest.raises(DataError, match=r"2 of 7 rows are not finite \(the first: row 3\)"):
        VectorActivations(x if kind == "tensor" else x.numpy()).pool(0)


def test_a_bad_row_is_found_in_whichever_pool_it_falls() -> None:
    for place in range(23):
        x = numbered(23)
        x[place] = float("nan")
        source = VectorActivations(x)
        messages: list[str] = []
        for number in range(4):
            try:
                source.pool(number)
            except DataError as error:
                messages.append(str(error))
        assert len(messages) == 1
        assert f"the first: row {place})" in messages[0]


def test_a_bad_batch_of_an_iterable_is_refused() -> None:
    x = numbered(5)
    x[2] = float("nan")
    with pytest.raises(DataError, match="row 2"):
        list(batches(IterableActivations([numbered(5), x]), 5))


def test_empty_batches_of_an_iterable_do_not_end_it() -> None:
    parts = [numbered(9)[:3], numbered(9)[:0], numbered(9)[3:]]
    (found,) = batches(IterableActivations(part for part in parts), 9)
    assert ids(found[0]) == list(range(9))
    with pytest.raises(DataError, match="empty"):
        IterableActivations([parts[1], parts[1]])


def test_batches_of_different_widths_are_refused() -> None:
    with pytest.raises(DataError, match="the first has 4, one 3"):
        IterableActivations([torch.zeros(2, 4), torch.zeros(2, 3)])


# Files ------------------------------------------------------------------------------------------------------------


def test_npy_and_safetensors_files_are_read(tmp_path: Path) -> None:
    x = numbered(9)
    np.save(tmp_path / "x.npy", x.numpy())
    save_file({"acts": x}, tmp_path / "x.safetensors")
    for path in (tmp_path / "x.npy", str(tmp_path / "x.npy"), tmp_path / "x.safetensors"):
        assert pools(activations(path), 4) == pools(VectorActivations(x), 4)
    mapped = module.read_vectors(tmp_path / "x.npy")
    assert isinstance(mapped, np.memmap)


@pytest.mark.parametrize("form", ["fixed", "lists", "columns"])
def test_the_vectors_of_a_table_are_read(tmp_path: Path, form: str) -> None:
    x = numbered(9, 3)
    kind = pa.list_(pa.float32(), 3) if form == "fixed" else pa.list_(pa.float64())
    if form == "columns":
        table = pa.table({"name": list("abcdefghi"), **{f"x{i}": x[:, i].numpy() for i in range(3)}})
    else:
        table = pa.table({"number": list(range(9)), "vector": pa.array(x.tolist(), kind)})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=4)
    assert np.array_equal(module.read_vectors(tmp_path / "x.parquet"), x.numpy())
    assert pools(activations(tmp_path / "x.parquet"), 4) == pools(VectorActivations(x), 4)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"a": [[1.0, 2.0]], "b": [[1.0, 2.0]]}, r"several columns of vectors \(a, b\)"),
        ({"a": ["x", "y"]}, "no column of vectors or numbers"),
        ({"a": [[1.0, 2.0], [1.0]]}, "all of one length"),
        ({"a": [[1.0, 2.0], None]}, "all of one length"),
        ({"a": [["x"], ["y"]]}, "lists of numbers"),
    ],
)
def test_tables_that_hold_no_vectors_are_named(tmp_path: Path, table: dict[str, Any], says: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    with pytest.raises(FileError, match=rf"x\.parquet.*{says}"):
        activations(tmp_path / "x.parquet")


def saved(save: Callable[..., Any], *arguments: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *arguments, **options)
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.npy", saved(np.save, np.ones((3, 2))))
    return buffer.getvalue()


GOOD = saved(np.save, np.ones((50, 8)))
BAD_FILES = {
    "empty.npy": b"",
    "garbage.npy": bytes(range(256)),
    "header.npy": GOOD[:40],
    "torn.npy": GOOD[:1000],
    "archive.npy": archive(),
    "objects.npy": saved(np.save, np.array([[{}, 1]], dtype=object), allow_pickle=True),
    "empty.safetensors": b"",
    "garbage.parquet": bytes(range(256)),
    "garbage.safetensors": bytes(range(256)),
    "two.safetensors": None,
    "x.csv": b"1,2\n3,4\n",
    "no_suffix": b"1 2",
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_named(name: str, tmp_path: Path) -> None:
    path, content = tmp_path / name, BAD_FILES[name]
    if content is None:
        save_file({"a": torch.ones(2, 2), "b": torch.ones(2, 2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(FileError, match=re.escape(str(path))):
        activations(path)


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors", "x.parquet"])
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileError, match=re.escape(str(tmp_path / name))):
        activations(tmp_path / name)


class Trap:
    """A pickle of this creates a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_an_npy_file_is_not_executed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[Trap(tmp_path / "sprung")]], dtype=object), allow_pickle=True)
    with pytest.raises(FileError, match=r"x\.npy cannot be read"):
        activations(tmp_path / "x.npy")
    assert not (tmp_path / "sprung").exists()


# What others write ------------------------------------------------------------------------------------------------


def test_bfloat16_is_read_from_arrays_and_files(tmp_path: Path) -> None:
    x = numbered(9).bfloat16()
    np.save(tmp_path / "x.npy", x.view(torch.int16).numpy().view("V2"))
    for source in (tmp_path / "x.npy", x.view(torch.int16).numpy().view("V2"), x):
        assert torch.equal(activations(source).pool(0), VectorActivations(x.float()).pool(0))


@pytest.mark.parametrize(
    "array",
    [
        np.ones((4, 3), np.complex64),
        np.ones(4, [("a", "<f4"), ("b", "<f4")]),
        np.full((4, 3), "a"),
        np.ones((4, 3), "M8[s]"),
    ],
    ids=["complex", "fields", "words", "dates"],
)
def test_what_are_no_real_numbers_is_refused_by_name(array: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", array)
    with pytest.raises((FileError, DataError), match=r"x\.npy"):
        activations(tmp_path / "x.npy")
    with pytest.raises(DataError):
        activations(array)
    with pytest.raises(DataError):
        activations([array])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: np.ma.masked_greater(np.eye(4), 0.5), "4 of the numbers are masked"),
        (lambda: torch.nested.nested_tensor([torch.ones(3, 2), torch.ones(5, 2)]), "not torch.float32 .nested."),
        (lambda: torch.ones(4, 3, device="meta"), "not torch.float32 .meta."),
    ],
    ids=["masked", "nested", "without values"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
def test_numbers_that_are_not_there_are_not_made_up(make: Callable[[], Any], words: str) -> None:
    for source in (make(), [make()]):
        with pytest.raises(DataError, match=words):
            activations(source)


def test_a_mask_that_hides_nothing_is_no_hindrance() -> None:
    assert torch.equal(activations(np.ma.array(np.eye(4))).pool(0), activations(np.eye(4)).pool(0))


@pytest.mark.parametrize("wrong", [None, 1.5, "word"])
def test_whatever_an_iterable_gives_is_a_batch(wrong: Any) -> None:
    for source in ([torch.ones(2, 3), wrong, torch.ones(2, 3)], iter([torch.ones(2, 3), wrong])):
        with pytest.raises(DataError, match="batch"):
            activations(source)


@pytest.mark.parametrize("dtype", ["u2", "u8", "i1", "?", "f2", ">f4", "longdouble"])
def test_numbers_of_every_type_are_taken(dtype: str) -> None:
    x = np.eye(6)[:, :4].astype(dtype)
    for source in (x, [x]):
        assert torch.equal(activations(source).pool(0).double().sum(0), torch.ones(4).double())


@pytest.mark.parametrize("index", ["named", "kept", "from a csv", "unnamed"])
def test_the_index_of_pandas_is_no_dimension(index: str, tmp_path: Path) -> None:
    x = numbered(9, 3).numpy()
    columns: dict[str, Any] = {f"x{i}": x[:, i] for i in range(3)}
    about = {}
    if index == "named":
        columns["id"] = np.arange(9) * 7
        about = {"pandas": '{"index_columns": ["id"], "columns": []}'}
    elif index == "kept":
        columns["__index_level_0__"] = np.arange(9) + 100
        about = {"pandas": '{"index_columns": ["__index_level_0__"], "columns": []}'}
    else:
        columns = {"Unnamed: 0" if index == "from a csv" else "": np.arange(9), **columns}
    pq.write_table(pa.table(columns).replace_schema_metadata(about or None), tmp_path / "x.parquet")
    assert np.array_equal(module.read_vectors(tmp_path / "x.parquet"), x)


def test_batches_come_wrapped_as_a_data_loader_wraps_them() -> None:
    from torch.utils.data import DataLoader, TensorDataset

    x = numbered(20)
    for source in (DataLoader(TensorDataset(x), batch_size=8), [{"x": x}], DataLoader(x, batch_size=8)):
        found = [rows for rows, _ in batches(activations(source), 4)]
        assert torch.equal(torch.cat(found), x)
    assert torch.equal(activations(TensorDataset(x)).pool(0), VectorActivations(x).pool(0))
    with pytest.raises(DataError, match="2 arrays: give the activations alone"):
        activations(DataLoader(TensorDataset(x, x), batch_size=8))
    with pytest.raises(ConfigError, match=r"source must be .*, not 5"):
        activations(5)  # pyright: ignore[reportArgumentType]
