"""SQL that strangers write: answered by processes of their own, which are ended when a question takes too long.

DuckDB can be interrupted between blocks of rows, not within a function: `levenshtein(repeat('a', 99999), ...)` on one
row takes minutes, and `repeat` any amount of memory. A process can be ended whatever it does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import LifoQueue
from typing import Any

from monosem import errors
from monosem.errors import ConfigError, MonosemError
from monosem.sql.tables import Tables

PROCESSES = 2
SECONDS = 5.0
BEGINNING = 60.0
"""Seconds that a process may take to begin."""
ROOT = Path(__file__).parents[2]


class Stopped(MonosemError):
    """Nothing is answered any more."""


class Limited:
    """Processes that answer questions, begun when first needed. May be used by several threads, some of which wait."""

    def __init__(self, processes: int = PROCESSES, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._free: LifoQueue[_Process | None] = LifoQueue()
        self._running: set[_Process] = set()
        self._lock = threading.Lock()
        self._closed = False
        for _ in range(processes):
            self._free.put(None)

    def ask(
        self, tables: Tables, query: str, values: Sequence[Any] = (), where: str | None = None
    ) -> dict[str, list[Any]]:
        """The columns of the answer, as from `Tables.ask`.

        Raises:
            ConfigError: the query is wrong, does anything but read the tables, takes too long or too much memory.
            FileError: a file is damaged.
            Stopped: `close` was called.
        """
        question = {
            "folder": str(tables.folder.resolve()),
            "files": tables.files,
            "query": query,
            "values": list(values),
            "where": where,
            "seconds": self.seconds,
        }
        process = self._free.get()
        try:
            process = self._begin() if process is None or process.ended else process
            answer = process.ask(json.dumps(question), self.seconds)
        finally:
            self._free.put(process)
        if answer is None:
            if self._closed:
                raise Stopped("the server stops: no more questions are answered")
            raise ConfigError(f"the query was ended: it took longer than {self.seconds:g} s, or too much memory")
        ((kind, content),) = answer.items()
        if kind != "columns":
            raise getattr(errors, kind)(content)
        return content

    def _begin(self) -> _Process:
        with self._lock:
            if self._closed:
                raise Stopped("the server stops: no more questions are answered")
            self._running = {process for process in self._running if not process.ended}
            process = _Process()
            self._running.add(process)
        process.ask(None, BEGINNING)
        return process

    def close(self) -> None:
        """End every process, whatever it does."""
        with self._lock:
            self._closed = True
            for process in self._running:
                process.end()


class _Process:
    def __init__(self) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "monosem.sql.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C in a terminal is for the server, which then ends this one
        )

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def ask(self, question: str | None, seconds: float) -> dict[str, Any] | None:
        """The answer; None if the process has ended without one. Without a question: what it says once it has begun."""
        writes, reads = self._process.stdin, self._process.stdout
        assert writes is not None, "as asked for"
        assert reads is not None, "as asked for"
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        with self._lock:
            timer.start()
            try:
                if question is not None:
                    writes.write(question + "\n")
                    writes.flush()
                line = reads.readline()
            except OSError:  # it has just died
                line = ""
            timer.cancel()
            timer.join()  # so that it ends no later question
        if not line:
            self.end()
            return None
        return json.loads(line)

    def end(self) -> None:
        self._process.kill()
        with self._lock:
            self._process.communicate()  # waits, and closes what led to it
