"""What takes too long or too much is ended, and the next question is answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from monosem.errors import ConfigError, FileError
from monosem.sql import Limited, Stopped, Tables, condition

SECONDS = 1.0
ENDLESS = {
    "between blocks of rows": "(select count(*) from range(1000000000000)) > 0",
    "recursive": "(with recursive r as (select 1 as i union all select i + 1 from r) select count(*) from r) > 0",
    "within a function": "levenshtein(repeat('a' || latent, 99999), repeat('b', 99999)) > 0",
    "while it is planned": "levenshtein(repeat('a', 99999), repeat('b', 99999)) > 0",
    "asleep": "sleep_ms(100000) is null",
}
TOO_LARGE = {
    "a string": "length(repeat('a' || latent, 2000000000)) > 0",
    "a list": "len(list_sort(range(2000000000))) > 0",
    "a table": "(select count(distinct a.range) from range(100000000) a) > 0",
}


@pytest.fixture(scope="module")
def limited() -> Iterator[Limited]:
    made = Limited(processes=1, seconds=SECONDS)
    yield made
    made.close()


def count(limited: Limited, tables: Tables, where: str) -> int:
    return limited.ask(tables, f"select count(*) as n from features where {condition(where)}", where=where)["n"][0]


def test_a_question_is_answered_or_refused_as_by_the_tables(limited: Limited, tables: Tables) -> None:
    assert count(limited, tables, "rate < 0.1") == 10
    assert limited.ask(tables, "select latent from features where latent < ?", [2]) == {"latent": [0, 1]}
    with pytest.raises(ConfigError, match="cannot be run"):
        count(limited, tables, "colour > 1")
    with pytest.raises(ConfigError, match="one expression"):
        count(limited, tables, "true, false")
    with pytest.raises(ConfigError, match="no table"):
        count(limited, tables, "(select count(*) from '/etc/passwd') > 0")
    (tables.folder / "examples.parquet").write_bytes(b"")
    with pytest.raises((FileError, ConfigError)):
        limited.ask(tables, "from examples")


@pytest.mark.parametrize("kind", [*ENDLESS, *TOO_LARGE])
def test_what_does_not_end_is_ended(limited: Limited, tables: Tables, kind: str) -> None:
    assert count(limited, tables, "true") == 100
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"(?i)was ended|memory|allocat|does not exist"):
        count(limited, tables, (ENDLESS | TOO_LARGE)[kind])
    assert time.monotonic() - begun < SECONDS + 3
    assert count(limited, tables, "true") == 100


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system holds no process to such a limit")
def test_addresses_that_are_merely_reserved_are_no_memory(tables: Tables) -> None:
    """With each of its threads a library reserves some, and on a processor of sixteen there are many."""
    reserved = """
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *4 * [ctypes.c_int]]
assert libc.mmap(None, 2**34, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0) < 2**63
from monosem.sql.worker import main
main()
"""
    question = {
        "folder": str(tables.folder),
        "files": tables.files,
        "query": "select count(*) as n from features where rate < 0.1",
        "values": [],
        "where": None,
        "seconds": 20,
    }
    command = [sys.executable, "-c", reserved]
    process = subprocess.run(command, input=json.dumps(question) + "\n", capture_output=True, text=True, check=False)
    assert process.stdout.splitlines() == ["{}", json.dumps({"columns": {"n": [10]}})]


def test_closing_ends_what_is_running(tables: Tables) -> None:
    limited = Limited(processes=1, seconds=60)
    count(limited, tables, "true")
    (process,) = limited._running
    met: list[Exception] = []

    def ask() -> None:
        try:
            count(limited, tables, ENDLESS["within a function"])
        except Stopped as error:
            met.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    limited.close()
    asking.join(5)
    assert met
    with pytest.raises(Stopped):
        count(limited, tables, "true")
    with pytest.raises(ProcessLookupError):
        os.kill(process._process.pid, 0)
