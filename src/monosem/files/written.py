"""Writing: a new file takes the old one's place once it is whole; a full disk is said with how much it lacks."""

from __future__ import annotations

import errno
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError

from monosem.errors import FileError
from monosem.files.checked import MIB, one_line

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def replacing(path: str | Path, n_bytes: int = 0) -> Iterator[Path]:
    """Where to write what shall stand at `path`: it appears there whole, or not at all.

    Args:
        path: the file; its folder is made if need be.
        n_bytes: about how many bytes will be written, so that a full disk is known before.

    Raises:
        FileError: the disk is full, or the folder cannot be written.
    """
    path = Path(path)
    if not path.name:
        raise FileError(f"{str(path)!r} names no file to write: give a file's name")
    new = path.with_name(f".{path.name}.new")
    with writing(path, n_bytes):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield new
            new.replace(path)
        except Exception:
            with suppress(OSError):
                new.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: str | Path, n_bytes: int = 0) -> Iterator[None]:
    """Around lines that write a file: what the system raises becomes a `FileError` that names it and the remedy."""
    try:
        free = _free(Path(path))
        if n_bytes > free:
            raise OSError(errno.ENOSPC, "No space left on device")
        yield
    except (OSError, SafetensorError) as error:
        # safetensors says it in words alone
        full = getattr(error, "errno", None) in FULL or "os error 28" in str(error) or "os error 27" in str(error)
        if not full:
            raise FileError(f"{path} cannot be written ({one_line(error)}): choose another folder") from error
        free = _free(Path(path))
        size = f"{n_bytes / MIB:,.1f} MiB are to be written, " if n_bytes else ""
        lacking = f" ({(n_bytes - free) / MIB:,.1f} MiB are missing)" if n_bytes > free else ""
        raise FileError(
            f"{path} cannot be written, the disk is full: {size}{free / MIB:,.1f} MiB are free{lacking}: "
            "make room, then run the same command again"
        ) from error


def require_place(path: str | Path | None, kind: Literal["file", "folder"] = "file") -> None:
    """See that a file or a folder can be written at a path, before the work whose result it shall take; nothing stays.

    Of None nothing is to be written.

    Raises:
        FileError: something else stands there, or nothing can be written beside.
    """
    if path is None:
        return
    path = Path(path)
    with writing(path):
        if "\0" in str(path):
            raise OSError(errno.EINVAL, "its name holds a zero byte")
        if kind == "file" and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder stands there")
        nearest = next(found for found in (path.absolute(), *path.absolute().parents) if found.exists())
        nearest = nearest.parent if kind == "file" and nearest == path.absolute() else nearest
        with tempfile.TemporaryFile(dir=nearest):
            pass


def _free(path: Path) -> int:
    """Bytes that can still be written where a file is to stand."""
    for folder in path.absolute().parents:
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return 0


def as_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON: numbers that are not finite become null."""
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write a file of JSON, as `as_json`.

    Raises:
        FileError: as `replacing`.
    """
    write_text(path, as_json(value, indent) + "\n")


def write_text(path: str | Path, text: str) -> None:
    """Write a file of UTF-8; half a character becomes "?".

    Raises:
        FileError: as `replacing`.
    """
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file.

    Raises:
        FileError: as `replacing`.
    """
    with replacing(path, len(content)) as new:
        new.write_bytes(content)


def append_json_line(path: str | Path, value: Any) -> None:
    """Add a line to a file of JSON lines.

    Raises:
        FileError: the disk is full, or the folder cannot be written.
    """
    with writing(path), Path(path).open("a", encoding="utf-8") as file:
        file.write(as_json(value) + "\n")


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor] | Mapping[str, np.ndarray], words: dict[str, str] | None = None
) -> None:
    """Write tensors or arrays, on whatever device they are, and words beside them.

    Raises:
        FileError: as `replacing`.
    """
    with replacing(path, sum(tensor.nbytes for tensor in tensors.values())) as new:
        if all(hasattr(tensor, "cpu") for tensor in tensors.values()):
            from safetensors.torch import save_file
        else:
            from safetensors.numpy import save_file
        plain: Any = {n: t.detach().cpu().contiguous() if hasattr(t, "cpu") else t for n, t in tensors.items()}  # type: ignore[union-attr]
        save_file(plain, new, words)
