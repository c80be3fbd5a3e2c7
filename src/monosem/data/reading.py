"""read_documents: text from files, lists, the bundled text or a Hugging Face data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from monosem.data.documents import (
    Document,
    Documents,
    DocumentStream,
    Text,
    has_words,
    messages_of,
    not_empty,
    path_of,
    read_path,
)
from monosem.data.hub import hub_documents
from monosem.errors import DataError


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
        return not_empty(hub_documents(text), f"text {text!r}")
    if isinstance(text, str | Path):
        return read_path(path_of(str(text)), f"text {str(text)!r}")
    if not isinstance(text, Iterable) or isinstance(text, Mapping | bytes):
        raise DataError(f"text comes from a file, a folder or a list of strings, not from {type(text).__name__}")
    try:
        documents = [
            Document(t) if isinstance(t, str) else Document("", messages=messages_of(t, f"item {number} of the list"))
            for number, t in enumerate(text)
        ]
    except ValueError as error:
        raise DataError(f"a list of texts holds strings or conversations: {error}") from error
    return not_empty(Documents(d for d in documents if has_words(d)), "the list of texts")
