"""Files at an address (s3://, gs://, hf://, ...): fetched whole and ahead of need into a folder of bounded size.

What fsspec reaches is read as files of this machine are, by their name below the address. Every file that is wanted is
fetched once into a folder beside others', of which those that were not used for longest make room; it is looked at when
it comes, and when it is first taken from there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import BoundedSemaphore, Lock, Thread
from typing import IO, Any

from monosem.errors import FileError
from monosem.files import DAMAGE, one_line, write_bytes, writing
from monosem.work import doing

AT_ONCE, TRIES, PAUSE = 8, 3, 0.5
"""Files that are fetched at a time; how often one is tried; seconds before the second time, twice as many later."""
CACHE_GIB = 10.0
HALF_DONE = 3600.0
"""Seconds after which half of a file is left by a process that was killed."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
ERRORS = {
    # What the libraries of addresses raise beside the usual, where they are loaded.
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "aiohttp": ("ClientError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "gcsfs.retry": ("HttpError",),
    "azure.core.exceptions": ("AzureError",),
    "httpx": ("HTTPError", "InvalidURL"),
    "httpx2": ("HTTPError", "InvalidURL"),
    "paramiko": ("SSHException",),
}

Whole = Callable[[Path], bool]
"""Whether a file that has come is what it should be."""


def is_address(path: str | Path) -> bool:
    """Whether a path is of another machine's, or of a file system that fsspec knows by name."""
    words = str(path)
    return words.startswith("hub:") or ("://" in words and not words.startswith(("file://", "local://")))


def place_of(path: str | Path) -> Path | Remote:
    """A folder here, or at an address; "hub:owner/name/folder" is one of a data set of the Hugging Face hub.

    Raises:
        FileError: the library for such an address is missing.
    """
    words = str(path)
    if not is_address(path):
        return Path(words.partition("://")[2] if "://" in words else path)
    return Remote(Files(re.sub("^hub:(//)?", "hf://datasets/", words)))


@dataclass(frozen=True)
class Remote:
    """A place at an address: what `Path` is here."""

    files: Files
    name: str = ""

    def __truediv__(self, name: str) -> Remote:
        return Remote(self.files, f"{self.name}/{name}".lstrip("/"))

    def __str__(self) -> str:
        return f"{self.files.address}/{self.name}".rstrip("/")

    def open(self, whole: Whole) -> IO[bytes]:
        """The file, to be read without a buffer.

        Raises:
            FileError: it is not there, is not whole, or the address cannot be reached.
        """
        return self.files.open(self.name, whole)


class Files:
    """The files below an address."""

    def __init__(self, address: str, cache: str | Path | None = None, cache_gib: float | None = None) -> None:
        """Reach for an address.

        Args:
            address: what fsspec takes; keys and the like are what fsspec and the address's own library find in the
                environment and their settings.
            cache: the folder that what is fetched goes into; below XDG_CACHE_HOME if not given.
            cache_gib: how much it may hold, this process's next needs apart; MONOSEM_CACHE_GIB, or 10, if not given.

        Raises:
            FileError: the library for such an address is missing, or the address makes no sense.
        """
        from fsspec.core import url_to_fs

        self.address = address.rstrip("/")
        with reached(self.address):
            self._system: Any
            self._system, self._root = url_to_fs(self.address)
        own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "monosem" / "stores"
        self.cache = Path(cache) if cache is not None else own
        self.folder = self.cache / hashlib.sha256(self.address.encode()).hexdigest()[:16]
        gib = float(os.environ.get("MONOSEM_CACHE_GIB") or CACHE_GIB) if cache_gib is None else cache_gib
        self.most = int(gib * 2**30)
        self._lock, self._slots = Lock(), BoundedSemaphore(AT_ONCE)
        self._coming: dict[str, Future[None]] = {}
        self._looked_at: set[str] = set()
        self._kept: set[Path] = set()
        self._arriving = 0

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """Small files as they stand there now; None for those that are not there.

        Raises:
            FileError: the address cannot be reached, or not be read.
        """
        paths = [self._path(name) for name in names]
        with reached(self.address):
            self._system.invalidate_cache()
            found = self._system.cat(paths, on_error="return") if paths else {}
            contents = [found.get(path, FileNotFoundError()) for path in paths]
            for content in contents:
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return [content if isinstance(content, bytes) else None for content in contents]

    def copy(self, name: str) -> Path | None:
        """Where a small file stands here as it stands there now; None if it is not there.

        Raises:
            FileError: the address cannot be reached, or there is no room here.
        """
        (content,) = self.read_all([name])
        if content is not None:
            write_bytes(self._local(name), content)
        return None if content is None else self._local(name)

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files of a folder by name, as far as the address tells; none where it gives no list.

        Raises:
            FileError: the address cannot be reached.
        """
        path = self._path(folder)
        with reached(f"{self.address}/{folder}"):
            try:
                listed = self._system.find(path, detail=True)
            except NotImplementedError:
                return {}
            sizes = {found.rpartition("/")[2]: about.get("size") for found, about in listed.items()}
            self._system.invalidate_cache()
        return {name: size for name, size in sizes.items() if size is not None}

    def open(self, name: str, whole: Whole) -> IO[bytes]:
        """A file, fetched if it is not here."""
        for _ in range(TRIES):
            self.fetch(name, whole).result()
            with suppress(FileNotFoundError):  # another process has made room in the meantime
                file = self._local(name).open("rb", buffering=0)
                with suppress(OSError):
                    os.utime(self._local(name))
                return file
        raise FileError(f"{self.cache} holds too little: others take out what is fetched: raise MONOSEM_CACHE_GIB")

    def fetch_all(self, now: Sequence[tuple[str, Whole]], ahead: Sequence[tuple[str, Whole]]) -> None:
        """Fetch what is needed now, and begin to fetch what will be needed next; both stay until they are read.

        Raises:
            FileError: something of what is needed now cannot be had.
        """
        self._kept = {self._local(name) for name, _ in (*now, *ahead)}
        coming = [self.fetch(*each) for each in now]
        for each in ahead:
            self.fetch(*each)
        if not all(future.done() for future in coming):
            with doing("fetching", len(coming), unit="shards") as stage:
                for future in coming:
                    future.result()
                    stage.advance(1)

    def fetch(self, name: str, whole: Whole) -> Future[None]:
        """Begin to fetch a file, if it is not here or coming."""
        with self._lock:
            if name not in self._coming:
                self._coming[name] = Future()
                Thread(target=self._run, args=(name, whole), daemon=True, name="monosem-fetch").start()
            return self._coming[name]

    def _run(self, name: str, whole: Whole) -> None:
        future, error = self._coming[name], None
        with self._slots:
            try:
                self._fetch(name, whole)
            except BaseException as raised:  # noqa: BLE001 - whatever it is, `result` raises it again
                error = raised
        with self._lock:
            del self._coming[name]
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def _fetch(self, name: str, whole: Whole) -> None:
        here = self._local(name)
        if here.is_file() and (name in self._looked_at or whole(here)):
            self._looked_at.add(name)
            return
        for left in reversed(range(TRIES)):
            try:
                self._download(name, here, whole)
            except FileError as error:
                if not left or isinstance(error.__cause__, FileNotFoundError | PermissionError | ImportError):
                    raise
                time.sleep(PAUSE * 2 ** (TRIES - 1 - left))
            else:
                self._looked_at.add(name)
                return

    def _download(self, name: str, here: Path, whole: Whole) -> None:
        part = here.with_name(f"{here.name}.{os.getpid()}.part")
        address = f"{self.address}/{name}"
        with reached(address):
            size = self._system.info(self._path(name)).get("size") or 0
        with self._room(size), writing(here, size):
            here.parent.mkdir(parents=True, exist_ok=True)
            self._bring(name, part, size)
            if not whole(part):
                part.unlink()
                raise FileError(f"{address} is damaged: it is not what was written: copy it there again")
            part.replace(here)

    def _bring(self, name: str, part: Path, size: int) -> None:
        try:
            with reached(f"{self.address}/{name}"):
                self._system.get_file(self._path(name), str(part))
        except FileError as error:
            part.unlink(missing_ok=True)
            if isinstance(cause := error.__cause__, OSError) and cause.errno in NO_ROOM:
                raise cause from None  # not there, but here
            raise

    @contextmanager
    def _room(self, n_bytes: int) -> Iterator[None]:
        """Within this block so much more is on its way: what was not used for longest is deleted for it."""
        with self._lock:
            self._arriving += n_bytes
            files = [file for file in sorted(_files_in(self.cache)) if file[2].suffix != ".part" or _is_left(file[0])]
            there = self._arriving + sum(size for _, size, _ in files)
            for _, size, path in files:
                if there > self.most and path not in self._kept:
                    with suppress(OSError):
                        path.unlink()
                        there -= size
        try:
            yield
        finally:
            with self._lock:
                self._arriving -= n_bytes

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _local(self, name: str) -> Path:
        return self.folder / name.replace("/", "--")


def _files_in(cache: Path) -> Iterator[tuple[float, int, Path]]:
    """When each was used last, its bytes, and where it is."""
    for path in cache.glob("*/*"):
        with suppress(OSError):  # another process may have deleted it
            about = path.stat()
            yield about.st_mtime, about.st_size, path


def _is_left(written: float) -> bool:
    """Whether half of a file is of a process that was killed."""
    return written < time.time() - HALF_DONE


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Around lines that reach for an address: whatever goes wrong becomes one line that names it and the remedy.

    Raises:
        FileError: it cannot be reached, or there is nothing.
    """
    try:
        yield
    except FileError:
        raise
    except ImportError as error:
        raise FileError(
            f"{address} cannot be reached ({one_line(error)}): pip install 'monosem[remote]' for s3, "
            "monosem[hub] for the hub, gcsfs for gs, adlfs for az"
        ) from error
    except FileNotFoundError as error:
        raise FileError(f"{address} does not exist: look at the address") from error
    except PermissionError as error:
        raise FileError(
            f"{address} may not be read ({one_line(error)}): look at the keys that you use for it"
        ) from error
    except (*DAMAGE, *_errors()) as error:
        raise FileError(
            f"{address} cannot be read ({one_line(error)}): see that the address, your keys and the network are right"
        ) from error


def _errors() -> tuple[type[Exception], ...]:
    found = [getattr(sys.modules.get(module), name, None) for module, names in ERRORS.items() for name in names]
    return tuple(each for each in found if isinstance(each, type) and issubclass(each, Exception))
