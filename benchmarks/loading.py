"""Loading: seconds and memory beside what reading the files' bytes takes, and bytes read of lazy decoders.

    python benchmarks/loading.py [FOLDER]

Writes an SAE of 65,536 x 2,304 in each format (1.2 GB each, removed afterwards) and a cross-layer set of 26 layers.
Each measurement is a process of its own, with the files in the system's cache; of the lazy set, with its files dropped
from it, so that the system counts what is read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LATENTS, WIDTH = 65_536, 2_304
LAYERS, OWN, LAYER_WIDTH, ACTIVE = 26, 10_080, 64, 1_000
TIMES = 3
FORMATS = ("native", "saelens", "sparsify", "dictionary_learning", "gemma_scope")
TURNED = {"saelens", "dictionary_learning", "gemma_scope"}


def write(folder: Path, name: str) -> None:
    """One SAE of random weights, in one format."""
    import torch

    import monosem as ms
    from monosem.sae import SAE

    options = {"subtract_b_dec": False} if name == "gemma_scope" else {"k": 32}
    kind: type[SAE] = ms.JumpReLUSAE if name == "gemma_scope" else ms.TopKSAE
    sae = kind(WIDTH, LATENTS, transform="none", **options)
    with torch.no_grad():
        sae.b_enc.normal_()
    ms.export_sae(sae, folder, "monosem" if name == "native" else name)  # type: ignore[arg-type]


def read_bytes(folder: Path) -> None:
    """Seconds to read all bytes of the files into memory."""
    import numpy as np

    best = float("inf")
    for _ in range(TIMES):
        start = time.perf_counter()
        for path in folder.iterdir():
            with path.open("rb", buffering=0) as file:
                content, done = memoryview(np.empty(path.stat().st_size, np.uint8)), 0
                while n := file.readinto(content[done:]):
                    done += n
        best = min(best, time.perf_counter() - start)
    print(json.dumps({"seconds": best, "bytes": sum(path.stat().st_size for path in folder.iterdir())}))


def load(folder: Path) -> None:
    """Seconds to load it, and the memory that it takes at most, beyond the program's own."""
    import torch

    import monosem as ms

    small = ms.TopKSAE(8, 32, k=4, transform="none")
    with tempfile.TemporaryDirectory() as other:
        small.save(other)
        ms.load_sae(other)
    before, best = resident("VmRSS"), float("inf")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    for _ in range(TIMES):
        sae = None
        start = time.perf_counter()
        sae = ms.load_sae(folder)
        best = min(best, time.perf_counter() - start)
        assert sae.W_enc.dtype == torch.float32
    print(json.dumps({"seconds": best, "bytes": resident("VmHWM") - before}))


def resident(name: str) -> int:
    """Bytes, of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def write_layers(folder: Path) -> None:
    """A set in the layout of Gemma Scope 2, of which so many latents in all are on for an input of zeros."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    for layer in range(LAYERS):
        b_enc = torch.full((OWN,), -1.0)
        b_enc[torch.randperm(OWN, generator=torch.Generator().manual_seed(layer))[: ACTIVE // LAYERS + 1]] = 1.0
        tensors = {"w_enc": torch.zeros(LAYER_WIDTH, OWN), "b_enc": b_enc, "b_dec": torch.zeros(LAYER_WIDTH)}
        tensors |= {"w_dec": torch.randn(OWN, LAYERS, LAYER_WIDTH), "threshold": torch.zeros(OWN)}
        save_file(tensors, folder / f"params_layer_{layer}.safetensors")


def read_rows(folder: Path) -> None:
    """The share of the decoders' bytes that is read from disk when so many latents are on."""
    import torch

    import monosem as ms

    sae = ms.load_sae(folder, lazy=True)
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = disk()
    with torch.no_grad():
        out = sae(torch.zeros(1, LAYERS, LAYER_WIDTH))
    whole = LAYERS * OWN * LAYERS * LAYER_WIDTH * 4
    print(json.dumps({"on": int(out.codes.l0()[0]), "read": disk() - before, "of": whole}))


def disk() -> int:
    """Bytes that this process has had read from disk."""
    line = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes"))
    return int(line.split()[1])


def asked(*arguments: str) -> dict[str, float]:
    """What another process of this script says."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else {}


def main(home: Path) -> None:
    """All of it, one after another."""
    size = 4 * (2 * LATENTS * WIDTH + LATENTS + WIDTH)
    print(f"{'layout':<20} {'reading':>9} {'loading':>9} {'times':>6} {'bar':>4} {'memory':>7} {'bar':>4}")
    for name in FORMATS:
        folder = home / name
        asked("write", str(folder), name)
        bytes_alone, loaded = asked("read_bytes", str(folder)), asked("load", str(folder))
        bar = 2.0 if name in TURNED else 1.2
        times, memory = loaded["seconds"] / bytes_alone["seconds"], loaded["bytes"] / size
        print(
            f"{name:<20} {bytes_alone['seconds']:>8.2f}s {loaded['seconds']:>8.2f}s {times:>6.2f} {bar:>4} "
            f"{memory:>7.2f} {2.0 if name in TURNED else 1.1:>4}"
        )
        shutil.rmtree(folder)
    asked("write_layers", str(home / "set"))
    lazy = asked("read_rows", str(home / "set"))
    share = lazy["read"] / lazy["of"]
    print(f"lazy set of {LAYERS} layers: {lazy['on']:,} latents on, {share:.2%} of the decoders' bytes read (bar 1%)")


if __name__ == "__main__":
    step = sys.argv[1] if len(sys.argv) > 2 else ""
    if step == "write":
        write(Path(sys.argv[2]), sys.argv[3])
    elif step in ("read_bytes", "load", "write_layers", "read_rows"):
        {"read_bytes": read_bytes, "load": load, "write_layers": write_layers, "read_rows": read_rows}[step](
            Path(sys.argv[2])
        )
    else:
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as made:
            main(Path(made))
