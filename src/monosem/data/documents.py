"""Documents: one piece of text each, from files, lists, or the bundled text."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monosem.errors import DataError, FileError

BUNDLED = Path(__file__).parent / "bundled"
SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet")


@dataclass(frozen=True)
class Document:
    """A text and where it comes from."""

    text: str
    source: str = ""
    title: str = ""


def read_documents(text: str | Path | Sequence[str]) -> list[Document]:
    """All documents of a text.

    Args:
        text: "bundled" (its training split), "bundled:held_out", a file (.txt: one document; .jsonl: one a line, under
            "text"; either also .gz; .parquet: one a row, column "text"), a folder of such files, or a list of strings.

    Raises:
        FileError: a file is missing or cannot be read.
        DataError: there is no text in it.
    """
    if isinstance(text, str | Path):
        documents = list(_read_path(_path_of(str(text))))
        name = f"text {str(text)!r}"
    else:
        documents = [Document(t) for t in text]
        name = "the list of texts"
    documents = [d for d in documents if d.text.strip()]
    if not documents:
        raise DataError(f"{name} is empty: it has no document with any words")
    return documents


def _path_of(text: str) -> Path:
    if text == "bundled" or text.startswith("bundled:"):
        split = text.partition(":")[2] or "train"
        path = BUNDLED / f"{split}.parquet"
        if not path.is_file():
            raise FileError(f"the bundled text has no split {split!r}: use 'bundled' (train) or 'bundled:held_out'")
        return path
    path = Path(text).expanduser()
    if not path.exists():
        raise FileError(f"text {text!r} is not a file: give 'bundled', or a path ending in {', '.join(SUFFIXES)}")
    return path


def _read_path(path: Path) -> Iterator[Document]:
    if path.is_dir():
        for file in sorted(f for f in path.iterdir() if f.name.endswith(SUFFIXES)):
            yield from _read_path(file)
        return
    if not path.name.endswith(SUFFIXES):
        raise FileError(f"{path} is of no kind that can be read as text ({', '.join(SUFFIXES)})")
    try:
        yield from _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise FileError(f"{path} cannot be read as text: {error}") from error


def _read_lines(path: Path) -> Iterator[Document]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        if ".jsonl" not in path.name:
            yield Document(file.read(), source=path.name)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                yield _read_row(line, number, path.name)


def _read_row(line: str, number: int, source: str) -> Document:
    try:
        row = json.loads(line)
        text, title = row["text"], row.get("title")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"line {number} is no JSON object with a 'text'") from error
    return Document(_string(text, f"line {number}"), source, str(title or ""))


def _string(text: Any, where: str) -> str:
    if text is not None and not isinstance(text, str):
        raise ValueError(f"'text' in {where} is {text!r}, not a string")
    return text or ""


def _read_parquet(path: Path) -> Iterator[Document]:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if "text" not in table.column_names:
        raise ValueError(f"no column 'text' among {', '.join(table.column_names)}")
    texts = table.column("text").to_pylist()
    extras = [
        table.column(name).to_pylist() if name in table.column_names else [""] * len(texts)
        for name in ("source", "title")
    ]
    for number, (text, source, title) in enumerate(zip(texts, *extras, strict=True)):
        yield Document(_string(text, f"row {number}"), str(source or path.name), str(title or ""))
