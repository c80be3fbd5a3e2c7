"""Threads that have nothing to do leave the processor to others."""

import os
import subprocess
import sys

import pytest

READ = """
import os, sys
import monosem
assert "torch" not in sys.modules and "numba" not in sys.modules
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
"""
SPENT = """
import time, torch
from monosem.kernels import cpu
torch.set_num_threads(2)
x, weight = torch.randn(512, 64), torch.randn(512, 64)
spent = []
for _ in range(15):
    cpu.top_k(x, weight, torch.zeros(512), 8)
    before = time.process_time()
    time.sleep(0.03)
    spent.append(time.process_time() - before)
print(sorted(spent)[7])
"""


def printed(code: str, **settings: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = clean | {"NUMBA_NUM_THREADS": "2"} | settings
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads of GNU's OpenMP")
def test_they_sleep_at_once() -> None:
    read, spent = printed(READ + SPENT)
    assert read == "500 None"
    assert float(spent) < 1.5e-3  # seconds of the processor after each call; 10e-3 where nothing is said


def test_who_says_how_they_wait_is_heard() -> None:
    assert printed(READ, OMP_WAIT_POLICY="passive") == ["None passive"]
    assert printed(READ, GOMP_SPINCOUNT="7") == ["7 None"]
