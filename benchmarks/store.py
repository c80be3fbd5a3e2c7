"""A store of activations: bytes read a second in shuffled order, bytes written beside a plain write, a reader's memory.

    python benchmarks/store.py [--rows 2000000] [--width 768]

Shards of random numbers are written by the store's own writer; reading comes from the page cache, in an order that is
another one in every epoch, and ends in float32. A plain write of the same bytes with one fsync stands beside it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from monosem.activations import StoredActivations
from monosem.activations.shards import (
    FORMAT,
    PLACES,
    VERSION,
    ShardWriter,
    StoreIndex,
    Window,
    shard_name,
    write_index,
)
from monosem.files import write_json
from monosem.sae import SAEMetadata

SHARD_ROWS, WINDOW_SHARDS, LINKS = 65_536, 16, 30_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--width", type=int, default=768)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "acts"
        block = np.random.default_rng(0).integers(0, 2**15, (SHARD_ROWS, options.width), np.int16)
        writing, plain = [], []
        for _ in range(3):
            writing.append(written(path, block, options.rows))
            plain.append(plainly(Path(folder) / "plain", block, options.rows))
        ratio = np.median(np.array(plain) / np.array(writing))
        show("write, GB/s of stored bytes over a plain write", f"{ratio:.2f}x", ratio, 0.8)
        store = StoredActivations(path)
        size, before = options.rows * options.width * 2, memory()
        rates: list[float] = []
        for epoch in range(4):
            begun, n = time.perf_counter(), -(-options.rows // (2 * SHARD_ROWS))
            rows = sum(len(store.pool(epoch * n + i)) for i in range(n))
            assert rows == options.rows
            rates.append(size / 1e9 / (time.perf_counter() - begun))
        print(
            f"read, GB/s of every epoch: {', '.join(f'{rate:.2f}' for rate in rates)} (sums are compared in the first)"
        )
        show("read in shuffled order, from page cache, GB/s", f"{max(rates):.2f}", max(rates), 1.0)
        buffer = store.pool(0).nbytes / 2**20
        beyond = memory() - before - buffer
        show(f"memory beyond the buffer of {buffer:.0f} MiB", f"{beyond:.0f} MiB", -beyond, -300)
        large(Path(folder) / "large")


def written(path: Path, block: np.ndarray, rows: int) -> float:
    """Seconds that a store of so many rows takes, with fsync."""
    begun = time.perf_counter()
    places = np.zeros((SHARD_ROWS, 3), np.int32)
    for window, first in enumerate(range(0, rows, SHARD_ROWS * WINDOW_SHARDS)):
        counts = [min(SHARD_ROWS, rows - at) for at in range(first, rows, SHARD_ROWS)][:WINDOW_SHARDS]
        sums: dict[str, list[int]] = {"acts": [], PLACES: []}
        for i, count in enumerate(counts):
            for name, content, dtype in (("acts", block, "bfloat16"), (PLACES, places, "int32")):
                writer = ShardWriter(path / name / shard_name(window * WINDOW_SHARDS + i), content.shape[1], dtype)
                writer.append(content[:count])
                writer.close()
                sums[name].append(writer.sum)
        about = Window(rows=counts, sums=sums, context=0, row=0)
        write_json(path / "windows" / f"{window:06d}.json", about.model_dump())
    write_index(path, index(block.shape[1], rows))
    return time.perf_counter() - begun


def index(width: int, rows: int) -> StoreIndex:
    return StoreIndex(
        format=FORMAT,
        format_version=VERSION,
        monosem_version="benchmark",
        identity={},
        metadata=SAEMetadata(),
        hooks={"acts": width},
        n_models=1,
        dtype="bfloat16",
        tokens=rows,
        shard_rows=SHARD_ROWS,
        window_shards=WINDOW_SHARDS,
        complete=True,
    )


def plainly(path: Path, block: np.ndarray, rows: int) -> float:
    """Seconds that the same bytes take in one file."""
    begun = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for first in range(0, rows, SHARD_ROWS):
            file.write(block[: min(SHARD_ROWS, rows - first)].data)
        os.fsync(file.fileno())
    spent = time.perf_counter() - begun
    path.unlink()
    return spent


def large(path: Path) -> None:
    """A reader of 10 billion rows in 152,588 shards, one file under many names: its memory."""
    from monosem.activations.shards import window_file

    rows, width = 10**10, 64
    n_shards, last = -(-rows // SHARD_ROWS), rows % SHARD_ROWS or SHARD_ROWS
    block, sums = np.zeros((SHARD_ROWS, width), np.uint16), dict[str, int]()
    for name, count in (("whole", SHARD_ROWS), ("last", last)):
        writer = ShardWriter(path / f"{name}.safetensors", width, "bfloat16")
        writer.append(block[:count])
        writer.close()
        sums[name] = writer.sum
    for number in range(n_shards):
        if number % LINKS == 0:  # a file system allows so many names of one file
            original = path / f"whole{number}"
            original.write_bytes((path / "whole.safetensors").read_bytes())
        shard = path / "acts" / shard_name(number)
        shard.parent.mkdir(exist_ok=True)
        os.link(path / "last.safetensors" if number == n_shards - 1 else original, shard)
    for window, first in enumerate(range(0, n_shards, WINDOW_SHARDS)):
        counts = [SHARD_ROWS if i < n_shards - 1 else last for i in range(first, min(first + WINDOW_SHARDS, n_shards))]
        totals = [sums["whole"] if count == SHARD_ROWS else sums["last"] for count in counts]
        about = Window(rows=counts, sums={"acts": totals, PLACES: totals}, context=0, row=0)
        write_json(window_file(path, window), about.model_dump())
    write_index(path, index(width, rows))
    code = "import sys; from store import read_large; read_large(sys.argv[1])"
    folder = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=folder, stdout=subprocess.PIPE, check=True)
    beyond, buffer, opening, pools = json.loads(done.stdout)
    print(f"10,000,000,000 rows in {n_shards:,} shards: opened in {opening:.1f} s, a pool in {pools:.2f} s")
    show(f"its reader's memory beyond the buffer of {buffer:.0f} MiB", f"{beyond:.0f} MiB", -beyond, -300)


def read_large(path: str) -> None:
    """In a process of its own: memory before and after a few pools."""
    before, begun = memory(), time.perf_counter()
    store = StoredActivations(path)
    store.identity()
    opening = time.perf_counter() - begun
    numbers = [0, 1, 2, 40_000, 76_293]  # of the first epoch, and of the second
    buffer = max(store.make_pool(number).nbytes for number in numbers) / 2**20
    pools = (time.perf_counter() - begun - opening) / len(numbers)
    print(json.dumps([memory() - before - buffer, buffer, opening, pools]))


def memory() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def show(what: str, measured: str, value: float, bar: float) -> None:
    print(f"{what:<48} {measured:>16}   bar {abs(bar):g}: {'met' if value >= bar else 'missed'}")


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
