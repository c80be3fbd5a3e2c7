"""Of two processes the second is slow and then is stopped, hangs, or waits elsewhere. Started by test_killed.py.

What the first says of it stands in a file of each name.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
from forked import ended, forked
from torch import distributed as dist

from monosem.ranks import Group, alive, at_work, working_together

alive.BEAT, alive.LONG, alive.SILENT, alive.HANGS, alive.TIMES = 0.2, 1.0, 4.0, 1.0, 10


def stopped(every: Group) -> None:
    """Slow for longer than silence would be borne, then silent."""
    every.sum_(torch.ones(1))
    if not every.first:
        time.sleep(6)  # at work
    every.sum_(torch.ones(1))
    if every.first:
        print("slow is not stopped", flush=True)
    else:
        os.kill(os.getpid(), signal.SIGSTOP)
    every.sum_(torch.ones(1))


def hangs(every: Group) -> None:
    """Twice a step, and then one that does not end."""
    for seconds in (0.1, 0.1, 3600):
        with at_work("a training step"):
            time.sleep(0 if every.first else seconds)
        every.sum_(torch.ones(1))


def waits_elsewhere(every: Group) -> None:
    """Each waits for the other in a group of its own."""
    again = Group(dist.group.WORLD)
    for group in (every, again):
        group.sum_(torch.ones(1))
    (every if every.first else again).sum_(torch.ones(1))


def main(folder: Path) -> None:
    started = list[int]()
    for case in (stopped, hangs, waits_elsewhere):

        def work(case=case) -> None:
            with working_together() as every:
                case(every)

        started += forked(2, work, said_in=folder / case.__name__)
    ended(started[::2])
    for pid in started[1::2]:
        os.kill(pid, signal.SIGKILL)
    ended(started[1::2])
    (folder / "seconds").write_text(" ".join(map(str, started[1::2])))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
