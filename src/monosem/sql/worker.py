"""A process that answers questions in SQL, a line of JSON each, until its input ends. It imports little."""

from __future__ import annotations

import functools
import json
import signal
import sys
from pathlib import Path
from typing import Any

from monosem.errors import MonosemError
from monosem.sql.tables import Tables

MEMORY = "1GB"
"""For DuckDB's tables ..."""
WRITTEN = 5 * 2**30
"""... and for everything that can be written to, as strings and lists of an expression are not counted among them.

Not of addresses: those that libraries merely reserve are the more, the more threads the processor has.
"""
THREADS = "2"


def main() -> None:
    """Say that it has begun, then answer every line of the input."""
    _limit_memory()
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    _limit_time(question["seconds"])
    try:
        tables = _tables(question["folder"], json.dumps(question["files"]))
        found = tables.ask(question["query"], question["values"], question["where"])
        return {"columns": found.to_pydict()}
    except MonosemError as error:
        return {type(error).__name__: str(error)}
    except MemoryError:
        return {"ConfigError": "the query takes too much memory"}
    finally:
        _limit_time(0)


@functools.lru_cache(8)
def _tables(folder: str, files: str) -> Tables:
    return Tables(Path(folder), json.loads(files), {"memory_limit": f"'{MEMORY}'", "threads": THREADS})


def _limit_memory() -> None:
    if sys.platform != "win32":
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        limit = WRITTEN if most == resource.RLIM_INFINITY else min(WRITTEN, most)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: float) -> None:
    """The system's own alarm, in case that who asks has died: nothing else ends a function of SQL that is running."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, 2 * seconds)


if __name__ == "__main__":
    main()
