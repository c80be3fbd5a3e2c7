"""Quality at everyone's defaults: the same activations of the bundled model, the same width and k, several seeds.

What is done is kept under `benchmarks/.results/quality`, and left out when it is called again; delete it to begin anew.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import peers
from rich import box
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
RESULTS = HERE / ".results" / "quality"
ROWS, HELD_OUT_ROWS = 1_000_000, 100_000
T_95 = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}


def write_activations(folder: Path) -> None:
    """Rows of resid_post.2 on the bundled text, and on its held-out part."""
    import monosem as ms

    model = ms.load_model("bundled")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text, wanted in (("train", "bundled", ROWS), ("held_out", "bundled:held_out", HELD_OUT_ROWS)):
        if (folder / f"{name}.npy").exists():
            continue
        source, parts, number, done = ms.activations(model, "resid_post.2", text), [], 0, 0
        while done < wanted:
            parts.append(source.pool(number).numpy())
            done, number = done + len(parts[-1]), number + 1
        np.save(folder / f"{name}.npy", np.concatenate(parts)[:wanted])


def run(console: Console, with_peers: bool, seeds: int = 5) -> None:
    """Print mean FVU with its 95 % interval over seeds, and latents alive."""
    libraries: dict[str, str | Path] = {"monosem": sys.executable}
    for peer in peers.INSTALLS if with_peers else ():
        if peers.set_up(peer):
            libraries[peer] = peers.python_of(peer) or ""
    table = Table(
        title="TopK at defaults: 1,000,000 tokens of resid_post.2, n=4096, k=32",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("", "FVU, held out", "95 % interval", "alive", "seconds"):
        table.add_column(column, justify="right")
    write_activations(RESULTS)
    for library, python in libraries.items():
        found = [f for seed in range(seeds) if (f := fit(library, python, seed, console)) is not None]
        if len(found) < 2:
            continue
        fvus = [f["fvu"] for f in found]
        mean, half = statistics.mean(fvus), T_95[len(fvus)] * statistics.stdev(fvus) / len(fvus) ** 0.5
        alive, seconds = (statistics.mean(f[key] for f in found) for key in ("alive", "seconds"))
        table.add_row(
            library, f"{mean:.4f}", f"{mean - half:.4f} - {mean + half:.4f}", f"{alive:.1%}", f"{seconds:.0f}"
        )
    console.print(table)


def fit(library: str, python: str | Path, seed: int, console: Console) -> dict[str, float] | None:
    """What fit.py measures, from an earlier call if there was one."""
    result = RESULTS / f"{library}_{seed}.json"
    if not result.exists():
        files = [str(RESULTS / f"{part}.npy") for part in ("train", "held_out")]
        command = [str(python), str(HERE / "fit.py"), library, *files, f"--seed={seed}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            console.print(f"{library}: {done.stderr.strip().splitlines()[-1]}", markup=False)
            return None
        result.write_text(done.stdout.strip().splitlines()[-1])
    return json.loads(result.read_text())
