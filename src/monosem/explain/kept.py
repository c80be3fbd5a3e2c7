"""Replies of judges on disk: what was asked once is never asked, or paid, again."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from monosem.errors import FileError
from monosem.files import fits, one_line, parse_json, regular_file

AWAY = "move the file away"
_SCHEMA = """create table if not exists replies (
    key text not null primary key, model text not null, reply text not null) without rowid"""


class Reply(BaseModel):
    """What an endpoint has replied to one question."""

    model_config = ConfigDict(frozen=True)

    text: str | None = None
    first: dict[str, float] | None = None
    """Chances of what the first token might have been."""
    cut: bool = False
    """It ended because it had grown too long."""
    tokens_in: int = 0
    tokens_out: int = 0


class KeptReplies:
    """Replies by a hash of all that was sent. May be used by several threads and processes, killed at any moment."""

    def __init__(self, path: str | Path | None = None) -> None:
        """In this file; if none is given, in the user's folder for what can be made again."""
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.path = Path(path) if path is not None else cache / "monosem" / "judges.sqlite"
        self._lock = threading.Lock()

    @staticmethod
    def key(request: dict[str, Any]) -> str:
        """Of all that was sent: model, messages and settings."""
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

    def get(self, keys: Sequence[str]) -> dict[str, Reply]:
        """Those of some keys that are there.

        Raises:
            FileError: the file is damaged.
        """
        if not self.path.exists():
            return {}
        where, asked = f"{self.path}: a reply", [(key,) for key in dict.fromkeys(keys)]
        rows = self._run("select key, reply from replies where key = ?", asked)
        return {key: fits(parse_json(reply, where, dict, AWAY), Reply, where, AWAY) for key, reply in rows}

    def put(self, key: str, model: str, reply: Reply) -> None:
        """Keep one.

        Raises:
            FileError: it cannot be written.
        """
        self._run("insert or replace into replies values (?, ?, ?)", [(key, model, reply.model_dump_json())])

    def _run(self, statement: str, values: Sequence[tuple[str, ...]]) -> list[Any]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                regular_file(self.path)
            with self._lock, closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
                connection.execute(_SCHEMA)
                return [row for value in values for row in connection.execute(statement, value).fetchall()]
        except (sqlite3.Error, OSError) as error:
            raise FileError(f"the replies in {self.path} cannot be used ({one_line(error)}): {AWAY}") from error
