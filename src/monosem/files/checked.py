"""What can go wrong with a file, in one line: where it stands, what it is, and whether a value is of its type."""

from __future__ import annotations

import functools
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from safetensors import SafetensorError

from monosem.errors import FileError
from monosem.spelling import path_meant

Value = TypeVar("Value")

RESTORE = "restore it or write it anew"
MIB = 2**20
LONGEST_LINE = 400  # characters of an error that are shown
DAMAGE = (
    # What Python and the readers of numpy, zipfile, zlib and safetensors raise for content that they do not understand.
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    zlib.error,
    zipfile.BadZipFile,
    struct.error,
    tokenize.TokenError,
    SafetensorError,
)


def one_line(error: BaseException | str) -> str:
    """The words of an error, on one line that can be printed, of reasonable length."""
    words = repr(error) if isinstance(error, KeyError) else " ".join(str(error).split())
    words = (words or type(error).__name__).encode("utf-8", "replace").decode()
    return words if len(words) <= LONGEST_LINE else f"{words[:LONGEST_LINE]} ..."


@contextmanager
def reading(path: str | Path, remedy: str = RESTORE, *more: type[Exception]) -> Iterator[None]:
    """Around the lines that make sense of a file's content: what they raise becomes a `FileError` that names the file.

    Args:
        path: the file.
        remedy: what to do about it.
        *more: what a library raises beside the usual.
    """
    try:
        yield
    except (*DAMAGE, *more) as error:
        raise FileError(f"{path} cannot be read ({one_line(error)}): {remedy}") from error


def regular_file(path: str | Path, most: int | None = None, remedy: str = RESTORE) -> Path:
    """The path, if a file stands there that ends: no folder, pipe, socket or device.

    Raises:
        FileError: there is none, it is of another kind, or has more than `most` bytes.
    """
    try:
        about = Path(path).stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileError(f"{path} does not exist: {remedy}{path_meant(path)}") from error
    except (OSError, ValueError) as error:  # too long, no permission, a loop of links, a zero byte
        raise FileError(f"{path!s:.200} cannot be opened ({one_line(error)}): {remedy}") from error
    if stat.S_ISDIR(about.st_mode):
        raise FileError(f"{path} is a folder, not a file: {remedy}")
    if not stat.S_ISREG(about.st_mode):
        raise FileError(f"{path} is a pipe, a socket or a device, not a file: copy what it gives into a file")
    if most is not None and about.st_size > most:
        raise FileError(
            f"{path} has {about.st_size / MIB:,.0f} MiB, more than the {most / MIB:,.0f} such a file may have: {remedy}"
        )
    return Path(path)


@functools.lru_cache(256)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))
    except PydanticUserError:  # a model has a configuration of its own
        return TypeAdapter(kind)


def fits(value: Any, kind: type[Value], name: str | Path, remedy: str = RESTORE) -> Value:
    """A value read from a file, once it is known to be of a type: a plain one, a TypedDict or a pydantic model.

    Raises:
        FileError: it is not, with the name of the file and of the first field that is wrong.
    """
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        found = "" if first["type"] == "missing" else f", not {_short(first['input'])}"
        what = f"field {field!r}: " if field else ""
        raise FileError(f"{name} cannot be used: {what}{one_line(first['msg'])}{found}: {remedy}") from error
    except RecursionError as error:
        raise FileError(f"{name} cannot be used: it is nested too deeply: {remedy}") from error


def _short(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{type(value).__name__} of {len(value)}"
    words = repr(value if not isinstance(value, str | bytes) else value[:60])
    return one_line(words if len(words) <= 70 else f"{words[:70]} ...")
