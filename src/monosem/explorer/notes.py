"""Notes: labels, comments, stars and lists that people give to features, in a small SQLite file beside the store."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from monosem.errors import ConfigError, FileError
from monosem.explorer.shapes import KeptNote, ListCount, Note, NoteChange
from monosem.files import fits, one_line, parse_json, regular_file

AWAY = "move the file away"
_SCHEMA = """create table if not exists notes (
    dictionary text not null, latent integer not null, label text, comment text, starred integer not null,
    lists text not null, changed text not null, primary key (dictionary, latent)) without rowid"""


class Notes:
    """The notes of one dictionary. They go by the hash of its weights, and so survive another harvest."""

    def __init__(self, path: Path, dictionary: str, n_latents: int) -> None:
        self.path, self.dictionary, self.n_latents = path, dictionary, n_latents
        self._lock = threading.RLock()
        self._known: dict[int, Note] = {}
        self._stamp: tuple[int, int] | None = None

    @staticmethod
    def beside(store: Path, dictionary: str, n_latents: int) -> Notes:
        """Those that belong to a store's folder."""
        folder = store.resolve()
        return Notes(folder.with_name(f"{folder.name}.notes.sqlite"), dictionary, n_latents)

    @property
    def why_not(self) -> str | None:
        """Why they cannot be changed; None if they can."""
        place = self.path if self.path.exists() else self.path.parent
        return None if os.access(place, os.W_OK) else f"notes cannot be written: {place} is read-only"

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        if self.path.exists():
            regular_file(self.path)
        try:
            with closing(sqlite3.connect(self.path, timeout=10)) as connection, connection:
                connection.execute(_SCHEMA)
                yield connection
        except (sqlite3.Error, UnicodeDecodeError) as error:  # its own words may be damaged
            raise FileError(f"the notes in {self.path} cannot be used ({one_line(error)}): {AWAY}") from error

    def all(self) -> dict[int, Note]:
        """Every note that says something, by latent; not to be changed."""
        with self._lock:
            about = self.path.stat() if self.path.is_file() else None
            stamp = (about.st_mtime_ns, about.st_size) if about else None
            if stamp != self._stamp:
                self._known, self._stamp = self._read() if stamp else {}, stamp
            return self._known

    def _read(self) -> dict[int, Note]:
        with self._open() as connection:
            rows = connection.execute(
                "select latent, label, comment, starred, lists, changed from notes "
                "where dictionary = ? order by latent",
                (self.dictionary,),
            ).fetchall()
        found: dict[int, Note] = {}
        for latent, label, comment, starred, lists, changed in rows:
            where = f"{self.path}: the note of latent {latent!r:.30}"
            fits([label, comment, changed], list[str | None], where, AWAY)
            names = parse_json(fits(lists, str, where, AWAY), where, list[str], AWAY)
            found[fits(latent, int, where, AWAY)] = Note(
                latent=latent, label=label, comment=comment, starred=bool(starred), lists=names, changed=changed
            )
        return found

    def __getitem__(self, latent: int) -> Note:
        return self.all().get(latent) or _empty(latent)

    def labels(self) -> dict[int, str]:
        """The labels given, by latent."""
        return {latent: note["label"] for latent, note in self.all().items() if note["label"]}

    def lists(self) -> list[ListCount]:
        """The lists there are."""
        counts = Counter(name for note in self.all().values() for name in note["lists"])
        return [ListCount(name=name, count=counts[name]) for name in sorted(counts)]

    def change(self, latent: int, change: NoteChange) -> Note:
        """Change what is given of a latent's note."""
        given = change.model_dump(exclude_unset=True)
        with self._lock:
            return self._write([{**self[latent], **given, "latent": latent, "changed": _now()}])[0]

    def clear(self, latent: int) -> Note:
        """Take a latent's note away."""
        return self._write([_empty(latent)])[0]

    def take_in(self, notes: list[dict[str, Any]]) -> int:
        """Exported notes, each in place of its latent's own.

        Raises:
            ConfigError: one of them is none.
        """
        return len(self._write([{**_empty(0), **self._kept(note)} for note in notes]))

    def _kept(self, note: dict[str, Any]) -> dict[str, Any]:
        """A note of a file, once it has been found to be one."""
        try:
            kept = KeptNote(**note)
        except (ValidationError, TypeError) as error:
            words = " ".join(str(error).splitlines()[1:3])[:300]
            raise ConfigError(f"the note of latent {note.get('latent')!r:.100} cannot be read: {words}") from error
        if kept.latent >= self.n_latents:
            raise ConfigError(f"a note names latent {kept.latent}, which is not among 0 to {self.n_latents - 1}")
        return kept.model_dump(exclude_none=True)

    def _write(self, notes: list[Any]) -> list[Note]:
        cleaned = [_clean(note) for note in notes]
        if self.why_not:
            raise FileError(self.why_not)
        with self._lock, self._open() as connection:
            for note in cleaned:
                key = (self.dictionary, note["latent"])
                if note["changed"] is None:
                    connection.execute("delete from notes where dictionary = ? and latent = ?", key)
                    continue
                connection.execute(
                    "insert or replace into notes values (?, ?, ?, ?, ?, ?, ?)",
                    (
                        *key,
                        note["label"],
                        note["comment"],
                        int(note["starred"]),
                        json.dumps(note["lists"]),
                        note["changed"],
                    ),
                )
            self._stamp = None
        return cleaned


def _empty(latent: int) -> Note:
    return Note(latent=latent, label=None, comment=None, starred=False, lists=[], changed=None)


def _clean(note: dict[str, Any]) -> Note:
    """Without spaces around and empty strings; one that says nothing is empty."""
    label, comment = ((note.get(name) or "").strip() or None for name in ("label", "comment"))
    lists = sorted({name.strip() for name in (note.get("lists") or []) if name.strip()})
    starred = bool(note.get("starred"))
    if not (label or comment or starred or lists):
        return _empty(note["latent"])
    changed = note.get("changed") or _now()
    return Note(latent=note["latent"], label=label, comment=comment, starred=starred, lists=lists, changed=changed)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
