"""The processes of a job, forked from this one: what it has imported none of them imports again."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


def forked(n: int, work: Callable[[], None], *, said_in: Path | None = None) -> list[int]:
    """Start so many processes with the environment that torchrun gives; what they say goes into a file.

    This process must not have computed anything: what runs in several threads does not survive.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    about = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(n)}
    sys.stdout.flush()
    return [_child(work, {**about, "RANK": str(rank), "LOCAL_RANK": str(rank)}, said_in) for rank in range(n)]


def _child(work: Callable[[], None], environment: dict[str, str], said_in: Path | None) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.environ.update(environment)
        if said_in is not None:
            said = os.open(said_in, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
        work()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    finally:
        kind, error, where = sys.exc_info()
        if kind is not None and error is not None and kind is not SystemExit:
            traceback.print_exception(kind, error, where)
        sys.stdout.flush()
        os._exit(status)


def ended(pids: list[int]) -> list[int]:
    """How each has ended, once all have."""
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
