"""The second of two processes is slow, and then is stopped; the first waits for it. Started by test_killed.py."""

from __future__ import annotations

import os
import signal
import time

import torch

from monosem.ranks import alive, working_together

alive.BEAT, alive.LONG, alive.SILENT = 0.2, 1.0, 4.0

with working_together() as every:
    if not every.first:
        time.sleep(6)  # at work
    every.sum_(torch.ones(1))
    if every.first:
        print("slow is not stopped", flush=True)
    else:
        os.kill(os.getpid(), signal.SIGSTOP)
    every.sum_(torch.ones(1))
