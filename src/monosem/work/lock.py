"""Only one process at a time writes into a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from monosem.errors import FileError

try:
    import fcntl
except ImportError:  # Windows has no such locks: there the user takes care
    fcntl = None

_held: ContextVar[frozenset[tuple[int, int]]] = ContextVar("_held", default=frozenset())
"""Device and inode of the folders that this thread has locked already."""


@contextmanager
def alone_in(*folders: Path | None) -> Iterator[None]:
    """Within this block no other process (or thread) enters `alone_in` for the same folders, by whatever path.

    The lock is the system's (flock, on the folder itself): it ends with the process, however that ends, and leaves no
    file. Folders are made if need be; those that are made and stay empty are removed again.

    Raises:
        FileError: another process is writing into one of them, or it cannot be made.
    """
    with ExitStack() as locks:
        for folder in dict.fromkeys(folder for folder in folders if folder is not None):
            locks.enter_context(_locked(folder))
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        made = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{folder!s:.300} cannot be made or opened as a folder ({reason}): give another") from error
    about = os.fstat(descriptor)
    own = (about.st_dev, about.st_ino)
    token = None
    try:
        if own not in _held.get():
            _lock(descriptor, folder)
            token = _held.set(_held.get() | {own})
        yield
    finally:
        if token is not None:
            _held.reset(token)
        os.close(descriptor)
        with suppress(OSError):
            for path in made:
                path.rmdir()


def _lock(descriptor: int, folder: Path) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FileError(
            f"{folder} is in use: another process is writing into it. Wait until that has ended, stop it, or give "
            "another folder"
        ) from error
    except OSError:  # a file system without locks
        return
