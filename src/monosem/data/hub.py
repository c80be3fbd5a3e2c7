"""Hugging Face data sets as a stream of documents (the extra `hub`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from monosem.data.documents import Document, DocumentStream, Skipped, document_of, has_words
from monosem.errors import ConfigError, FileError
from monosem.files import one_line
from monosem.hub import offline, reachable


def load_hub(spec: str, streaming: bool) -> tuple[Any, str | None]:
    """The data set behind "hub:owner/name[:split][:column]" (owner/name/config for one with several), and the column.

    Raises:
        ConfigError: the extra `hub` is not installed.
        FileError: there is no such data set, split or column.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{spec!r} needs the package `datasets`: pip install 'monosem[hub]'") from error
    name, split, column, *more = [*spec.removeprefix("hub:").split(":"), "", ""]
    if not name or "".join(more):
        raise ConfigError(f"{spec!r}: write hub:owner/name, hub:owner/name:split or hub:owner/name:split:column")
    parts = [name] if Path(name).is_dir() else ["/".join(name.split("/")[:2]), *name.split("/")[2:]]
    if streaming and not Path(name).is_dir() and not reachable(parts[0], "dataset"):
        raise FileError(
            f"cannot load the data set {spec!r}: the Hugging Face hub cannot be reached{offline()}. "
            "Give a file or a folder, or go online."
        )
    with _loading(spec):
        options: dict[str, Any] = {"split": split or "train", "streaming": streaming}
        data: Any = datasets.load_dataset(*parts, **options)
        names = list(data.column_names or next(iter(data), {}))
    if column and column not in names:
        raise FileError(f"{spec!r} has no column {column!r}: it has {', '.join(names)}")
    return data, column or None


@contextmanager
def _loading(spec: str) -> Iterator[None]:
    """What a data set's readers and scripts raise, which may be anything, becomes a `FileError`."""
    try:
        yield
    except Exception as error:
        raise FileError(f"cannot load the data set {spec!r}: {one_line(error)}") from error


def _rows(data: Any, spec: str) -> Iterator[Any]:
    """The rows of a data set."""
    rows = iter(data)
    while True:
        with _loading(spec):
            row = next(rows, None)
        if row is None:
            return
        yield row


def hub_documents(spec: str) -> DocumentStream:
    """A data set's rows, one document each, from the given column, or "text", or "messages"."""
    data, column = load_hub(spec, streaming=True)
    skipped = Skipped()

    def read_from(start: int) -> Iterator[Document]:
        for number, row in enumerate(_rows(data, spec)):
            if column is not None:
                row = {"text" if not isinstance(row[column], list) else "messages": row[column]}
            where = f"row {number}"
            try:
                document = document_of(row, where, spec)
            except ValueError as error:
                reason = str(error).replace(where, "the row")
                skipped.add(f"{spec} cannot be read as text: {error}", common=reason)
                continue
            if has_words(document):
                if start:
                    start -= 1
                else:
                    yield document

    return DocumentStream(read_from, skipped)
