"""Processes that begin with everything imported: each is forked from one that has imported it, which takes no time.

They are processes as any: killed by signals, with files and environments of their own, ended as the interpreter ends.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

PATIENCE = 600  # seconds; the machine may be busy
PARENT = """
import json, os, runpy, sys, warnings
import torch, transformers.models.auto.tokenization_auto, transformers.models.gpt2.modeling_gpt2
import monosem.cli.main, monosem.ranks, monosem.runs.pipeline
from monosem.cli.main import run


def become(asked):
    for name, descriptor in (("out", 1), ("err", 2)):
        os.dup2(os.open(asked[name], os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    torch.set_num_threads(asked["threads"])
    program, *words = asked["words"]
    if program == "monosem":
        sys.argv = [program, *words]
        run()
    elif program == "-c":
        sys.argv = [program, *words[1:]]
        exec(words[0], {"__name__": "__main__"})
    else:
        sys.argv = [program, *words]
        sys.path.insert(0, os.path.dirname(program))
        runpy.run_path(program, run_name="__main__")


for line in sys.stdin:
    asked = json.loads(line)
    if "words" in asked:
        child = os.fork()
        if not child:
            break
        print(child, flush=True)
    else:
        found, status = os.waitpid(asked["pid"], os.WNOHANG)
        print(os.waitstatus_to_exitcode(status) if found else "null", flush=True)
else:
    asked = None
if asked:
    become(asked)
"""


class Parent:
    """The process that the others are forked from; begun when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None

    def ask(self, **words: Any) -> Any:
        """One line to it, one line from it."""
        if self.process is None:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen([sys.executable, "-c", PARENT], env=environment, **pipes)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(words), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


class Forked:
    """A running process, with what a test needs of `subprocess.Popen`."""

    def __init__(self, parent: Parent, out: Path, pid: int) -> None:
        self.parent, self.out, self.pid = parent, out, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.parent.ask(pid=self.pid)
        return self.returncode

    def wait(self) -> int:
        end = time.monotonic() + PATIENCE
        while (code := self.poll()) is None:
            assert time.monotonic() < end, f"not ended after {PATIENCE} s: {self.said}"
            time.sleep(0.01)
        return code

    def until(self, ready: Callable[[], object]) -> None:
        """Wait for something that it does, and be sure that it goes on."""
        end = time.monotonic() + PATIENCE
        while not ready():
            assert self.poll() is None, f"ended before: {self.said}"
            assert time.monotonic() < end, f"not so after {PATIENCE} s: {self.said}"
            time.sleep(0.002)

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, and see that it was at work until then."""
        self.send_signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL, self.said

    @property
    def said(self) -> str:
        """What it has printed and complained of so far."""
        return self.out.read_text() + self.complained

    @property
    def complained(self) -> str:
        return self.out.with_suffix(".err").read_text()


class Forks:
    """Begins processes: `forks("monosem", "train", ...)`, `forks("-c", code, ...)` or `forks("/a/script.py", ...)`."""

    def __init__(self, folder: Path) -> None:
        self.parent, self.begun = Parent(folder), list[Forked]()

    def __call__(self, program: str | Path, *words: str | Path, **environment: str) -> Forked:
        out = self.parent.folder / f"{len(self.begun)}.out"
        for file in (out, out.with_suffix(".err")):
            file.touch()
        asked = {"words": [str(program), *map(str, words)], "environment": environment, "folder": str(Path.cwd())}
        files = {"out": str(out), "err": str(out.with_suffix(".err"))}
        pid = self.parent.ask(**asked, **files, threads=torch.get_num_threads())
        self.begun.append(Forked(self.parent, out, pid))
        return self.begun[-1]

    def together(self, n: int, program: str | Path, *words: str | Path) -> list[Forked]:
        """So many processes of one job, as torchrun begins them; on CPUs, as there may be fewer GPUs."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        job = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(n), "CUDA_VISIBLE_DEVICES": ""}
        return [self(program, *words, **job, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(n)]


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Processes of the command line and of code, forked from one that has everything imported."""
    found = Forks(tmp_path_factory.mktemp("forks"))
    yield found
    for each in found.begun:
        if each.poll() is None:
            each.kill()
    if found.parent.process is not None:
        found.parent.process.communicate()
