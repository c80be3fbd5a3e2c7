"""Documents: every kind of file, what goes wrong with them, and the bundled text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monosem.data import Document, read_documents
from monosem.data.documents import BUNDLED
from monosem.errors import DataError, FileError, MonosemError

TEXTS = ["One fine day.", "Zwei schöne Tage –\nund mehr.", "三日。"]


def write(folder: Path, name: str) -> Path:
    """The three texts as a file of the kind that its name says (.txt holds the second alone)."""
    path = folder / name
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": TEXTS, "title": ["a", "b", None], "other": [1, 2, 3]}), path)
        return path
    lines = [json.dumps({"text": t, "title": t[:3]}) for t in TEXTS]
    content = TEXTS[1] if ".txt" in name else "\n".join([lines[0], "", *lines[1:]]) + "\n"
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    assert read_documents(write(tmp_path, name)) == [Document(TEXTS[1], source=name)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_a_table_has_a_document_a_row(tmp_path: Path, name: str) -> None:
    found = read_documents(str(write(tmp_path, name)))
    assert [d.text for d in found] == TEXTS
    assert {d.source for d in found} == {name}
    assert found[1].title == ("b" if name == "a.parquet" else "Zwe")


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("c.parquet", "a.jsonl.gz", "b.txt"):
        write(tmp_path, name)
    (tmp_path / "README.md").write_text("not a text")
    found = read_documents(tmp_path)
    assert [d.source for d in found] == ["a.jsonl.gz"] * 3 + ["b.txt"] + ["c.parquet"] * 3
    assert [d.text for d in found] == [*TEXTS, TEXTS[1], *TEXTS]


def test_a_list_is_its_strings_without_the_empty_ones() -> None:
    assert read_documents(["one", "", "  \n", "two"]) == [Document("one"), Document("two")]


def test_lone_surrogates_are_read_as_replacement_characters_wherever_they_stand(tmp_path: Path) -> None:
    line = r'{"text": "bad \ud83d one, \ud83e\udd89", "title": "\udc00"}'
    talk = r'{"messages": [{"role": "user", "content": "\ud83d?"}]}'
    (tmp_path / "a.jsonl").write_text(f"{line}\n{talk}\n")
    first, second = read_documents(tmp_path / "a.jsonl")
    assert (first.text, first.title) == ("bad \ufffd one, \U0001f989", "\ufffd")
    assert second.messages == ({"role": "user", "content": "\ufffd?"},)
    assert list(read_documents(["a\ud83d", [{"role": "u\udfff", "content": "b"}]])) == [
        Document("a\ufffd"),
        Document("", messages=({"role": "u\ufffd", "content": "b"},)),
    ]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, name: str) -> None:
    content = b"\xef\xbb\xbf" + (b'{"text": "One."}\n' if "jsonl" in name else b"One.")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert [d.text for d in read_documents(tmp_path / name)] == ["One."]


@pytest.mark.parametrize("name", ["dump.txt.jsonl", "dump.txt.gz.jsonl", "dump.txt.jsonl.gz", "my.txt.parquet"])
def test_the_end_of_a_name_says_what_a_file_is(tmp_path: Path, name: str) -> None:
    assert [d.text for d in read_documents(write_table(tmp_path, name))] == TEXTS


def write_table(folder: Path, name: str) -> Path:
    """The three texts, one a row."""
    lines = "".join(json.dumps({"text": t}) + "\n" for t in TEXTS).encode()
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": TEXTS}), folder / name)
    else:
        (folder / name).write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    return folder / name


def test_what_is_empty_after_skipping_says_so_with_the_reasons_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": 5}\n' * 30 + "torn\n" * 20)
    with pytest.raises(FileError) as error:
        read_documents(tmp_path / "a.jsonl")
    assert "50 documents were skipped" in str(error.value)
    assert "30 x 'text' in the row is 5, not a string; 20 x the row is no JSON object" in str(error.value)
    assert f"the first: {tmp_path / 'a.jsonl'}" in str(error.value)
    assert "line 1" in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "kind", "says"),
    [
        ("a.txt", None, FileError, "not a file"),
        ("a.txt", b"", DataError, "empty"),
        ("a.txt", b" \n\n ", DataError, "empty"),
        ("a.jsonl", b"", DataError, "empty"),
        ("a.jsonl", b'{"words": "one"}\n', FileError, "'text'"),
        ("a.jsonl", b'["one"]\n', FileError, "'text'"),
        ("a.jsonl", b'{"text": 5}\n', FileError, "'text'"),
        ("a.jsonl", b'{"text": null}\n', DataError, "empty"),
        ("a.pdf", b"words", FileError, ".parquet"),
        ("a.txt", b"\xff\xfe\xff", FileError, "utf-8"),
        ("a.txt.gz", b"not packed", FileError, "gzip"),
        ("a.txt.gz", gzip.compress(b"words and words", mtime=0)[:-12], FileError, "end"),
        ("a.parquet", b"not a table", FileError, "Parquet"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes | None, kind: type[MonosemError], says: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind) as error:
        read_documents(path)
    assert str(path) in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("column", [{"words": ["one"]}, {"text": [1, 2]}])
def test_a_table_without_a_column_of_text_is_named(tmp_path: Path, column: dict[str, list[object]]) -> None:
    pq.write_table(pa.table(column), tmp_path / "a.parquet")
    with pytest.raises(FileError, match=r"a\.parquet.*text"):
        read_documents(tmp_path / "a.parquet")


@pytest.mark.parametrize("text", [5, None, {"text": "one"}, b"one"])
def test_what_is_no_list_of_texts_is_named(text: Any) -> None:
    with pytest.raises(DataError, match=f"a list of strings, not from {type(text).__name__}"):
        read_documents(text)


def test_a_message_keeps_what_a_template_may_read_of_it(tmp_path: Path) -> None:
    calls = [{"name": "look\ufffd", "arguments": {"at": 1}}]
    row = {"messages": [{"role": "user", "content": "Hi", "name": "Bo", "tools": None, "tool_calls": calls}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row).replace("ufffd", "ud83d"))
    kept = {"role": "user", "content": "Hi", "name": "Bo", "tool_calls": calls}
    assert read_documents(tmp_path / "a.jsonl")[0].messages == (kept,)


def test_an_empty_folder_and_an_empty_list_are_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="empty"):
        read_documents(tmp_path)
    with pytest.raises(DataError, match="list of texts is empty"):
        read_documents([])


def test_the_bundled_splits_share_no_document_and_no_book_s_author() -> None:
    tables = {split: pq.read_table(BUNDLED / f"{split}.parquet").to_pylist() for split in ("train", "held_out")}
    texts = {split: {row["text"] for row in rows} for split, rows in tables.items()}
    assert not texts["train"] & texts["held_out"]
    titles = {
        split: {(row["source"], row["title"]) for row in rows if row["source"] in ("wikipedia", "wikinews")}
        for split, rows in tables.items()
    }
    assert not titles["train"] & titles["held_out"]
    credits = {
        split: {row["credit"].rsplit(",", 1)[0] for row in rows if row["source"] == "books"}
        for split, rows in tables.items()
    }
    assert not credits["train"] & credits["held_out"]
    for rows in tables.values():
        assert all(row["licence"] and row["source"] and row["credit"] and row["text"].strip() for row in rows)


def test_the_bundled_text_is_read_by_its_name_and_is_small() -> None:
    train, held_out = read_documents("bundled"), read_documents("bundled:held_out")
    assert read_documents("bundled:train") == train
    assert len(train) > 5 * len(held_out) > 1000
    assert sum(f.stat().st_size for f in BUNDLED.glob("*.parquet")) <= 6_000_000
    with pytest.raises(FileError, match="no split 'test'"):
        read_documents("bundled:test")
