"""Documents: one piece of text each, and how they are read from files."""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, cast

from monosem.errors import DataError, FileError
from monosem.files import Bomb, json_value, open_parquet, opened
from monosem.spelling import meant, path_meant
from monosem.text import well_formed, well_formed_in

BUNDLED = Path(__file__).parent / "bundled"
PLAIN = (".txt", ".txt.gz", ".txt.zst")
SUFFIXES = (*PLAIN, ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
IN_MEMORY = 256 * 2**20  # bytes of files up to which all documents are kept
WINDOW = 1024  # documents of a longer text that are in memory at a time
TEXT = "give a whole file of text (UTF-8)"
LONGEST = 1_000_000  # characters of a .txt file that make a document
REASONS = 3  # for skipping documents that are listed, the commonest

Message = Mapping[str, Any]
"""Its "role" and "content", strings, and whatever else the tokenizer's template reads of it."""


@dataclass(frozen=True)
class Document:
    """A text and where it comes from. Lone surrogates are read as U+FFFD."""

    text: str
    source: str = ""
    title: str = ""
    messages: tuple[Message, ...] = ()
    """A conversation, {"role": ..., "content": ...} each, in place of the text; the tokenizer's template writes it."""

    def __post_init__(self) -> None:
        for name in ("text", "source", "title"):
            object.__setattr__(self, name, well_formed(getattr(self, name)))
        object.__setattr__(self, "messages", tuple(well_formed_in(dict(message)) for message in self.messages))


class Skipped:
    """The documents (or images) that could not be read: counted, by reason, and named in one warning."""

    def __init__(self, things: str = "documents") -> None:
        self.things = things
        self.reasons: dict[str, str] = {}
        """What was wrong with each of them, with its place; and without, as many have it in common."""

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, reason: str, warn: bool = True, common: str | None = None) -> None:
        """Count a document, once however often it is read.

        Args:
            reason: what is wrong with it, and where it stands: different for every document.
            warn: warn of the first.
            common: the reason alone, by which documents are counted.
        """
        if warn and not self.reasons:
            warnings.warn(f"{self.things} that cannot be read are skipped; the first: {reason}", stacklevel=2)
        self.reasons[reason] = common or reason

    def state(self) -> dict[str, dict[str, str]]:
        return {"skipped": dict(self.reasons)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Count what another reader of the same data has skipped."""
        known = state.get("skipped", {})
        self.reasons |= known if isinstance(known, dict) else dict(zip(known, known, strict=True))

    @property
    def first(self) -> str | None:
        return next(iter(self.reasons), None)

    @property
    def summary(self) -> str:
        """All in one line: the only reason, or how many were skipped for which."""
        if len(self) <= 1:
            return self.first or f"no {self.things} were skipped"
        counted = Counter(self.reasons.values()).most_common(REASONS)
        reasons = "; ".join(f"{count:,} x {reason}" for reason, count in counted)
        return f"{len(self):,} {self.things} were skipped ({reasons}); the first: {self.first}"


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


def path_of(text: str) -> Path:
    """The file or folder that a text is in.

    Raises:
        FileError: there is none, or it is of a kind that cannot be read as text.
    """
    if text == "bundled" or text.startswith("bundled:"):
        split = text.partition(":")[2] or "train"
        path = BUNDLED / f"{split}.parquet"
        if not path.is_file():
            near = meant(split, ("train", "held_out"))
            raise FileError(
                f"the bundled text has no split {split!r}: use 'bundled' (train) or 'bundled:held_out'{near}"
            )
        return path
    path = Path(text).expanduser()
    if not path.exists():
        raise FileError(
            f"text {text!r} is not a file: give 'bundled', a path ending in {', '.join(SUFFIXES)}, or hub:owner/name"
            + (meant(text, ("bundled", "bundled:held_out")) or path_meant(text))
        )
    if path.is_file() and not path.name.endswith(SUFFIXES):
        raise FileError(f"{path} is of no kind that can be read as text ({', '.join(SUFFIXES)})")
    return path


def read_path(path: Path, name: str) -> Documents | DocumentStream:
    """The documents of a file, or of all files of a folder in the order of their names."""
    files = sorted(f for f in path.iterdir() if f.name.endswith(SUFFIXES)) if path.is_dir() else [path]
    skipped, small = Skipped(), sum(f.stat().st_size for f in files if f.is_file()) <= IN_MEMORY

    def read_from(start: int) -> Iterator[Document]:
        every = (d for file in files for d in _read_file(file, skipped, warn=not small) if has_words(d))
        return islice(every, start, None)

    if not small:
        return not_empty(DocumentStream(read_from, skipped), name)
    documents = Documents(read_from(0), skipped)
    if documents and skipped:
        warnings.warn(
            f"{name}: documents that cannot be read are skipped ({len(skipped)}); the first: {skipped.first}",
            stacklevel=3,
        )
    return not_empty(documents, name)


def not_empty(documents: Documents | DocumentStream, name: str) -> Documents | DocumentStream:
    """The documents.

    Raises:
        FileError: there are none, as they could not be read.
        DataError: there are none.
    """
    if not (documents.window(0) if isinstance(documents, DocumentStream) else documents):
        if documents.skipped:
            raise FileError(documents.skipped.summary)
        raise DataError(f"{name} is empty: it has no document with any words")
    return documents


def has_words(document: Document) -> bool:
    return bool(document.messages) or (not document.text.isspace() and document.text != "")


def _read_file(path: Path, skipped: Skipped, warn: bool) -> Iterator[Document]:
    try:
        if path.name.endswith(PLAIN):
            yield from _read_pieces(path)
            return
        for where, row in _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path):
            try:
                yield document_of(row, where, path.name)
            except ValueError as error:
                skipped.add(f"{path} cannot be read as text: {error}", warn, str(error).replace(where, "the row"))
    except Bomb:
        raise
    except FileError as error:
        skipped.add(str(error), warn)


def _read_pieces(path: Path) -> Iterator[Document]:
    """A .txt file, cut after the line that reaches LONGEST characters; a byte order mark is none of them."""
    with opened(path, TEXT) as content, io.TextIOWrapper(content, encoding="utf-8-sig") as file:
        while lines := file.readlines(LONGEST):
            yield Document("".join(lines), source=path.name)


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with opened(path, TEXT) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json_value(line)
                except ValueError:
                    row = None
                yield f"line {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with open_parquet(path, TEXT) as file:
        columns = [name for name in ("text", "messages", "source", "title") if name in file.schema_arrow.names]
        if not {"text", "messages"} & set(columns):
            raise FileError(f"{path} cannot be read as text: {_lacking('the table', file.schema_arrow.names)}")
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
        raise ValueError(f"'text' in {where} is {text!r:.60}, not a string")
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
    return tuple({key: value for key, value in m.items() if value is not None} for m in messages)
