"""JSON and text. NaN and infinities, which JSON does not have, are read as null."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from monosem.errors import FileError
from monosem.files.checked import MIB, RESTORE, fits, one_line, reading, regular_file

Value = TypeVar("Value")

MOST = 64 * MIB  # bytes of a file, or of a line, of JSON
DEEPEST = 100
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)


def read_bytes(path: str | Path, most: int = MOST, remedy: str = RESTORE) -> bytes:
    """All of a file.

    Raises:
        FileError: it is missing, no regular file, larger than `most` bytes, or cannot be read.
    """
    with reading(regular_file(path, most, remedy), remedy):
        return Path(path).read_bytes()


def read_text(path: str | Path, most: int = MOST, remedy: str = RESTORE) -> str:
    """All of a file of UTF-8; a byte order mark is left out.

    Raises:
        FileError: as `read_bytes`, or it is no UTF-8.
    """
    content = read_bytes(path, most, remedy)
    with reading(path, remedy):
        return content.decode("utf-8-sig")


def read_json(path: str | Path, kind: type[Value] = object, most: int = MOST, remedy: str = RESTORE) -> Value:
    """The value in a file of JSON, of a type as in `fits`.

    Raises:
        FileError: the file is missing, damaged, too large or too deep, or its value is of another type.
    """
    return parse_json(read_text(path, most, remedy), path, kind, remedy)


def parse_json(content: str | bytes, name: str | Path, kind: type[Value] = object, remedy: str = RESTORE) -> Value:
    """The value in a piece of JSON; `name` says in errors where it stands.

    Raises:
        FileError: as `read_json`.
    """
    try:
        text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
        value = json_value(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a character cannot be written
    except ValueError as error:
        raise FileError(f"{name} cannot be read as JSON ({one_line(error)}): {remedy}") from error
    return value if kind is object else fits(value, kind, name, remedy)


def json_value(text: str | bytes) -> Any:
    """What a piece of JSON says, be it of half characters; NaN and infinities are None.

    Raises:
        ValueError: it is no JSON, too long or too deep.
    """
    if len(text) > MOST:
        raise ValueError(f"{len(text) / MIB:,.0f} MiB are too much")
    text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
    _check_depth(text)
    return json.loads(text, parse_constant=_nothing)


def read_json_lines(
    path: str | Path, kind: type[Value] = dict[str, Any], torn: bool = True, remedy: str = RESTORE
) -> Iterator[Value]:
    """The values in a file that has one on each line; empty lines are left out.

    Args:
        path: the file.
        kind: the type of each, as in `fits`.
        torn: whether the file may have been cut off while its last line was written: that line is left out then.
        remedy: what to do about a damaged one.

    Raises:
        FileError: the file is missing, or a line is wrong; with its number.
    """
    with reading(regular_file(path, remedy=remedy), remedy), Path(path).open("rb") as file:
        number = 0
        while line := file.readline(MOST + 1):
            number += 1
            if not line.strip():
                continue
            if torn and not line.endswith(b"\n"):
                return
            yield parse_json(line, f"{path}, line {number},", kind, remedy)


def _check_depth(text: str) -> None:
    """Before anything is made of it: deep nesting is refused at the same depth wherever the stack stands."""
    if text.count("[") + text.count("{") <= DEEPEST:
        return
    depth = 0
    for found in _BRACKETS.finditer(text):
        first = text[found.start()]
        if first in "[{":
            depth += 1
            if depth > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} deep")
        elif first in "]}":
            depth -= 1


def _nothing(_: str) -> None:
    """What stands for NaN, Infinity and -Infinity."""
