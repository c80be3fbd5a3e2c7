"""Documents: one piece of text each, from files, lists, the bundled text or a Hugging Face data set."""

from __future__ import annotations

import gzip
import io
import json
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from monosem.errors import DataError, FileError

BUNDLED = Path(__file__).parent / "bundled"
SUFFIXES = (".txt", ".txt.gz", ".txt.zst", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
IN_MEMORY = 256 * 2**20  # bytes of files up to which all documents are kept
WINDOW = 1024  # documents of a longer text that are in memory at a time
LONGEST = 1_000_000  # characters of a .txt file that make a document

Message = Mapping[str, str]


@dataclass(frozen=True)
class Document:
    """A text and where it comes from."""

    text: str
    source: str = ""
    title: str = ""
    messages: tuple[Message, ...] = ()
    """A conversation, {"role": ..., "content": ...} each, in place of the text; the tokenizer's template writes it."""


class Skipped:
    """The documents (or images) that could not be read: counted, and named in one warning."""

    def __init__(self, things: str = "documents") -> None:
        self.things = things
        self.reasons: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, reason: str, warn: bool = True) -> None:
        """Count a document, once however often it is read."""
        if warn and not self.reasons:
            warnings.warn(f"{self.things} that cannot be read are skipped; the first: {reason}", stacklevel=2)
        self.reasons[reason] = None

    def state(self) -> dict[str, list[str]]:
        return {"skipped": list(self.reasons)}

    def load_state(self, state: Mapping[str, list[str]]) -> None:
        """Count what another reader of the same data has skipped."""
        self.reasons |= dict.fromkeys(state.get("skipped", ()))

    @property
    def first(self) -> str | None:
        return next(iter(self.reasons), None)


class Documents(list[Document]):
    """Documents in memory."""

    def __init__(self, documents: Iterable[Document], skipped: Skipped | None = None) -> None:
        super().__init__(documents)
        self.skipped = Skipped() if skipped is None else skipped


class DocumentStream:
    """Documents too many for memory: read in order, in windows of `WINDOW`, of which any can be read again."""

    def __init__(self, read_from: Callable[[int], Iterator[Document]], skipped: Skipped | None = None) -> None:
        """Open a stream; `read_from(n)` gives the documents from the n-th on, the same at every call."""
        self.skipped = Skipped() if skipped is None else skipped
        self._read_from = read_from
        self._now: tuple[int, Iterator[Document]] = (0, read_from(0))
        self._held: tuple[int, list[Document]] | None = None

    def window(self, number: int) -> list[Document]:
        """Documents number * WINDOW and following; fewer at the end, none after it."""
        if self._held is None or self._held[0] != number:
            if self._now[0] != number:
                self._now = (number, self._read_from(number * WINDOW))
            self._held = (number, list(islice(self._now[1], WINDOW)))
            self._now = (number + 1, self._now[1])
        return self._held[1]


Text = str | Path | Sequence[str] | Sequence[Sequence[Message]]


def read_documents(text: Text) -> Documents | DocumentStream:
    """All documents of a text. What cannot be read is skipped, counted (`.skipped`) and named in a warning.

    Args:
        text: "bundled" (its training split), "bundled:held_out"; a file (.txt: a document, or several if it is longer
            than a million characters; .jsonl: one a line; either also .gz or .zst; .parquet: one a row), of which the
            rows have a string "text" or a list "messages" of {"role", "content"}; a folder of such files; a data set
            of Hugging Face, "hub:owner/name[:split][:column]"; a list of strings, or of lists of messages. Files of
            more than 256 MiB and data sets are read as a stream.

    Raises:
        FileError: a file is missing, or nothing in it can be read.
        DataError: there is no text in it.
        ConfigError: a data set without the extra `hub`.
    """
    if isinstance(text, str) and text.startswith("hub:"):
        from monosem.data.hub import hub_documents

        return _not_empty(hub_documents(text), f"text {text!r}")
    if isinstance(text, str | Path):
        return _read_path(_path_of(str(text)), f"text {str(text)!r}")
    try:
        documents = [
            Document(t) if isinstance(t, str) else Document("", messages=messages_of(t, f"item {number} of the list"))
            for number, t in enumerate(text)
        ]
    except ValueError as error:
        raise DataError(f"a list of texts holds strings or conversations: {error}") from error
    return _not_empty(Documents(d for d in documents if has_words(d)), "the list of texts")


def _path_of(text: str) -> Path:
    if text == "bundled" or text.startswith("bundled:"):
        split = text.partition(":")[2] or "train"
        path = BUNDLED / f"{split}.parquet"
        if not path.is_file():
            raise FileError(f"the bundled text has no split {split!r}: use 'bundled' (train) or 'bundled:held_out'")
        return path
    path = Path(text).expanduser()
    if not path.exists():
        raise FileError(
            f"text {text!r} is not a file: give 'bundled', a path ending in {', '.join(SUFFIXES)}, or hub:owner/name"
        )
    if path.is_file() and not path.name.endswith(SUFFIXES):
        raise FileError(f"{path} is of no kind that can be read as text ({', '.join(SUFFIXES)})")
    return path


def _read_path(path: Path, name: str) -> Documents | DocumentStream:
    files = sorted(f for f in path.iterdir() if f.name.endswith(SUFFIXES)) if path.is_dir() else [path]
    skipped, small = Skipped(), sum(f.stat().st_size for f in files) <= IN_MEMORY

    def read_from(start: int) -> Iterator[Document]:
        every = (d for file in files for d in _read_file(file, skipped, warn=not small) if has_words(d))
        return islice(every, start, None)

    if not small:
        return _not_empty(DocumentStream(read_from, skipped), name)
    documents = Documents(read_from(0), skipped)
    if documents and skipped:
        warnings.warn(
            f"{name}: documents that cannot be read are skipped ({len(skipped)}); the first: {skipped.first}",
            stacklevel=3,
        )
    return _not_empty(documents, name)


def _not_empty(documents: Documents | DocumentStream, name: str) -> Documents | DocumentStream:
    if not (documents.window(0) if isinstance(documents, DocumentStream) else documents):
        if documents.skipped.first:
            raise FileError(documents.skipped.first)
        raise DataError(f"{name} is empty: it has no document with any words")
    return documents


def has_words(document: Document) -> bool:
    return bool(document.messages) or (not document.text.isspace() and document.text != "")


def _read_file(path: Path, skipped: Skipped, warn: bool) -> Iterator[Document]:
    try:
        if ".txt" in path.name:
            yield from _read_pieces(path)
            return
        for where, row in _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path):
            try:
                yield document_of(row, where, path.name)
            except ValueError as error:
                skipped.add(f"{path} cannot be read as text: {error}", warn)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        skipped.add(f"{path} cannot be read as text: {' '.join(str(error).split())}", warn)


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path))
    if path.suffix == ".zst":
        import pyarrow as pa

        return cast(IO[bytes], io.BufferedReader(pa.CompressedInputStream(str(path), "zstd")))
    return path.open("rb")


def _read_pieces(path: Path) -> Iterator[Document]:
    """A .txt file, cut after the line that reaches LONGEST characters."""
    with io.TextIOWrapper(_open(path), encoding="utf-8") as file:
        while lines := file.readlines(LONGEST):
            yield Document("".join(lines), source=path.name)


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                yield f"line {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns = [name for name in ("text", "messages", "source", "title") if name in file.schema_arrow.names]
        if not {"text", "messages"} & set(columns):
            raise ValueError(_lacking("the table", file.schema_arrow.names))
        number = 0
        for batch in file.iter_batches(WINDOW, columns=columns):
            for row in batch.to_pylist():
                yield f"row {number}", row
                number += 1


def _lacking(where: str, names: Sequence[str]) -> str:
    what = ("labels without text: " if any("label" in name for name in names) else "") + ", ".join(names)
    return f"{where} has no 'text' and no 'messages' (it has {what}): call the column of the text 'text'"


def document_of(row: Any, where: str, source: str) -> Document:
    """A row of a table.

    Raises:
        ValueError: it has no text, or what stands there is none.
    """
    if not isinstance(row, dict):
        raise ValueError(f"{where} is no JSON object with a 'text'")
    row = cast(dict[str, Any], row)
    text, messages = row.get("text"), row.get("messages")
    if "text" not in row and "messages" not in row:
        raise ValueError(_lacking(where, list(row)))
    if text is not None and not isinstance(text, str):
        raise ValueError(f"'text' in {where} is {text!r}, not a string")
    talk = messages_of(messages, where) if messages is not None and not text else ()
    return Document(text or "", str(row.get("source") or source), str(row.get("title") or ""), talk)


def messages_of(messages: Any, where: str) -> tuple[Message, ...]:
    """A conversation, checked.

    Raises:
        ValueError: it is not a list of {"role", "content"}.
    """
    good = isinstance(messages, Sequence) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in cast(Sequence[Any], messages)
    )
    if not good:
        raise ValueError(f"'messages' in {where} is no list of {{'role': ..., 'content': ...}}")
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)
