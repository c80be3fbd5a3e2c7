"""Labelled texts: read from the user's files, checked, and put into an order that does not depend on theirs."""

from __future__ import annotations

import csv
import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from monosem.data.documents import path_of
from monosem.errors import DataError, FileError
from monosem.files import json_value, open_parquet, opened, reading
from monosem.spelling import listed, path_meant
from monosem.text import well_formed

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".csv.gz", ".csv.zst", ".parquet")
MOST_LABELS = 20
REMEDY = "give JSON lines, CSV or Parquet with a text and a label in every row"

Data = str | Path | Sequence[Mapping[str, Any]] | Mapping[str, Sequence[str]]
"""A file, rows, or texts by their label."""


@dataclass(frozen=True)
class Labelled:
    """Texts with a label each (and a source), every text once, in an order that depends on texts and seed alone."""

    texts: list[str]
    labels: np.ndarray
    """(texts,) strings."""
    sources: np.ndarray
    """(texts,) strings; empty where none were asked for."""
    keys: list[str]
    """What two texts that differ in case and spaces alone have in common; hashed."""
    name: str
    dropped: dict[str, int] = field(default_factory=dict)
    """How many rows were left out, by reason."""

    def __len__(self) -> int:
        return len(self.texts)

    def of(self, rows: np.ndarray) -> Labelled:
        """Some of them."""
        texts, keys = ([column[i] for i in rows] for column in (self.texts, self.keys))
        return Labelled(texts, self.labels[rows], self.sources[rows], keys, self.name, self.dropped)


def read_labelled(
    data: Data, *, text: str = "text", label: str = "label", source: str | None = None, seed: int = 0
) -> Labelled:
    """Labelled texts. A text that comes twice is kept once; with two labels, not at all.

    Args:
        data: a file (.jsonl, .csv, also .gz or .zst; .parquet; "bundled", "bundled:held_out"), rows as mappings, or a
            mapping of labels to texts.
        text: the column of the text.
        label: the column of the label: words or whole numbers.
        source: the column of the source.
        seed: of the order.

    Raises:
        FileError: the file is missing or damaged, or of another kind.
        DataError: a column is missing, a label is no label, or there are fewer than two of them.
    """
    seen: dict[str, tuple[str, str, str]] = {}
    contradicted: set[str] = set()
    dropped: Counter[str] = Counter()
    n = 0
    for where, row in _rows(data, text, label):
        n += 1
        words = _words(row, text, where)
        name, origin = _label(_cell(row, label, where), label, where), ""
        if source is not None:
            origin = _label(_cell(row, source, where), source, where)
        if not words.strip():
            dropped["without words"] += 1
            continue
        key = _key(words, seed)
        if key in seen and seen[key][1] != name:
            contradicted.add(key)
        elif key in seen:
            dropped["the same text again"] += 1
        seen.setdefault(key, (words, name, origin))
    for key in contradicted:
        del seen[key]
    if contradicted:
        dropped["one text with two labels"] = len(contradicted)
    title = str(data) if isinstance(data, str | Path) else f"{n:,} texts given"
    order = sorted(seen)
    columns = [[seen[key][i] for key in order] for i in range(3)]
    found = Labelled(columns[0], np.array(columns[1], str), np.array(columns[2], str), order, title, dict(dropped))
    _require_labels(found, label)
    return found


def _require_labels(found: Labelled, column: str) -> None:
    names = sorted(set(found.labels.tolist()))
    if len(names) < 2:
        have = f"all {len(found):,} texts have the label {names[0]!r}" if names else "there are no texts"
        raise DataError(f"{found.name}: {have}, and a probe tells labels apart: give texts of at least two labels")
    if len(names) > MOST_LABELS:
        raise DataError(
            f"{found.name}: column {column!r} has {len(names):,} different values ({', '.join(names[:3])}, ...), more "
            f"than the {MOST_LABELS} labels that are told apart: is it the label? label_column='...' names it"
        )


def _rows(data: Data, text: str, label: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows with where they stand."""
    if isinstance(data, str | Path):
        yield from _file_rows(_path(str(data)))
    elif isinstance(data, Mapping):
        for name, texts in cast(Mapping[str, Sequence[str]], data).items():
            if isinstance(texts, str):
                raise DataError(f"the texts of label {name!r} are one string: give a list of texts for every label")
            for number, words in enumerate(texts):
                yield f"text {number} of label {name!r}", {text: words, label: name}
    else:
        for number, row in enumerate(data):
            if not isinstance(row, Mapping):
                raise DataError(
                    f"row {number} is a {type(row).__name__}: give rows as {{'{text}': ..., '{label}': ...}}, or texts "
                    "by label, {'positive': [...], 'negative': [...]}"
                )
            yield f"row {number}", row


def _path(name: str) -> Path:
    if name == "bundled" or name.startswith("bundled:"):
        return path_of(name)
    path = Path(name).expanduser()
    if not path.exists():
        raise FileError(f"{name} does not exist: {REMEDY}{path_meant(path)}")
    if not path.name.endswith(SUFFIXES):
        raise FileError(f"{name} is of no kind that can be read with labels ({', '.join(SUFFIXES)}): {REMEDY}")
    return path


def _file_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if path.suffix == ".parquet":
        with open_parquet(path, REMEDY) as table:
            number = 0
            for batch in table.iter_batches(1024):
                for row in batch.to_pylist():
                    yield f"{path}, row {number}", row
                    number += 1
        return
    with opened(path, REMEDY) as content:
        if ".csv" in path.suffixes:
            with reading(path, REMEDY, csv.Error):
                lines = io.TextIOWrapper(content, encoding="utf-8-sig", newline="")
                for number, row in enumerate(csv.DictReader(lines), 1):
                    yield f"{path}, row {number}", row
            return
        for number, line in enumerate(content, 1):
            if line.strip():
                row = json_value(line)
                if not isinstance(row, dict):
                    raise FileError(f"{path}, line {number}, is no JSON object: {REMEDY}")
                yield f"{path}, line {number}", row


def _cell(row: Mapping[str, Any], column: str, where: str) -> Any:
    if column not in row:
        raise DataError(
            f"{where} has no column {column!r}: name the columns (text_column='...', label_column='...'), it has "
            f"{listed(column, [str(name) for name in row])}"
        )
    return row[column]


def _words(row: Mapping[str, Any], column: str, where: str) -> str:
    value = _cell(row, column, where)
    if not isinstance(value, str):
        raise DataError(f"{where}: {column!r} is {value!r:.60}, not a text")
    return well_formed(value)


def _label(value: Any, column: str, where: str) -> str:
    """A label in words: of 1, 1.0 and True the first two are the same."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        value = int(value)
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, bool | int | np.integer):
        return str(value)
    raise DataError(
        f"{where}: {column!r} is {value!r:.60}, no label: give words or whole numbers, or leave the row out"
    )


def _key(words: str, seed: int) -> str:
    plain = " ".join(words.casefold().split())
    return hashlib.sha256(f"{seed}:{plain}".encode()).hexdigest()
