"""How much memory this machine has, and how much of it is free."""

import os
import sys
from pathlib import Path

LIMIT = Path("/sys/fs/cgroup/memory.max")


def memory_here() -> int:
    """Bytes of memory of this machine, or of what this process may take of it; no bound where nothing says it."""
    if not hasattr(os, "sysconf"):  # Windows
        return sys.maxsize
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if LIMIT.is_file() and (text := LIMIT.read_text().strip()).isdigit():
        size = min(size, int(text))
    return size


def free_memory() -> int | None:
    """Bytes that are free here; None where nothing says it."""
    found: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = LIMIT.read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(LIMIT.with_name("memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found) if found else None
