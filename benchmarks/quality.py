"""Quality at everyone's defaults: the same activations of the bundled model, the same width and k, several seeds.

What is done is kept under `benchmarks/.results/quality`, and left out when it is called again; delete it to begin anew.
"""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import peers
from rich import box
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
RESULTS = HERE / ".results" / "quality"
ROWS, HELD_OUT_ROWS = 1_000_000, 100_000
ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "relu", "gated", "jumprelu")
PENALISED = ("relu", "gated", "jumprelu")
"""Those of which SAELens wants a coefficient, not an L0."""
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
    for peer in peers.TRAINERS if with_peers else ():
        if peers.set_up(peer):
            libraries[peer] = peers.python_of(peer) or ""
    table = new_table("TopK at defaults: 1,000,000 tokens of resid_post.2, n=4096, k=32", "")
    write_activations(RESULTS)
    for library, python in libraries.items():
        add_row(table, [library], [fit(library, python, seed, console) for seed in range(seeds)])
    console.print(table)


def architectures(console: Console, with_peers: bool, seeds: int = 5) -> None:
    """The same for each architecture of ours and SAELens's of that name, at a mean L0 of 32; smaller, as it is long."""
    python = peers.python_of("saelens") if with_peers and peers.set_up("saelens") else None
    table = new_table(
        "At L0 = 32, defaults otherwise: 500,000 tokens of resid_post.2, n=2048", "architecture", "library"
    )
    write_activations(RESULTS)
    for architecture in ARCHITECTURES:
        size = [f"--architecture={architecture}", "--n=2048", "--tokens=500000"]
        ours = [fit("monosem", sys.executable, seed, console, size) for seed in range(seeds)]
        add_row(table, [architecture, "monosem"], ours)
        if python is not None:
            if architecture in PENALISED:
                coefficient = coefficient_for(32, "saelens", python, console, size)
                if coefficient is None:
                    continue
                size.append(f"--coefficient={coefficient}")
            theirs = [fit("saelens", python, seed, console, size) for seed in range(seeds)]
            add_row(table, [architecture, "saelens"], theirs)
    console.print(table)


def coefficient_for(l0: float, library: str, python: str | Path, console: Console, size: list[str]) -> float | None:
    """The coefficient with which a peer without a target comes within 5 % of that L0; the nearest of 10 tries.

    None where a coefficient many times larger leaves L0 as it was.
    """
    tried: list[tuple[float, float]] = []
    coefficient, too_low, too_high, before = 1.0, 0.0, math.inf, math.inf
    for _ in range(10):
        found = fit(library, python, 0, console, [*size, f"--coefficient={coefficient}"])
        reached = max(found["l0"], 0.1) if found else 0.1
        tried.append((abs(math.log(reached / l0)), coefficient))
        if tried[-1][0] < 0.05:
            break
        too_low, too_high = (coefficient, too_high) if reached > l0 else (too_low, coefficient)
        if too_high == math.inf and abs(reached / before - 1) < 0.01:
            console.print(f"{library} {size[0]}: L0 is {reached:,.0f} at coefficients up to {coefficient:g}")
            return None
        before, between = reached, too_low > 0 and too_high < math.inf
        following = math.sqrt(too_low * too_high) if between else coefficient * (reached / l0) ** 0.7
        coefficient = float(f"{following:.4g}")
    return min(tried)[1]


def new_table(title: str, *names: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in (*names, "FVU, held out", "95 % interval", "alive", "L0", "seconds"):
        table.add_column(column, justify="left" if column in names else "right")
    return table


def add_row(table: Table, names: list[str], found: Sequence[dict[str, float] | None]) -> None:
    """Means over seeds, and the interval of the mean FVU by Student's t."""
    done = [f for f in found if f is not None]
    if len(done) < 2:
        return
    fvus = [f["fvu"] for f in done]
    mean, half = statistics.mean(fvus), T_95[len(fvus)] * statistics.stdev(fvus) / len(fvus) ** 0.5
    alive, l0, seconds = (statistics.mean(f[key] for f in done) for key in ("alive", "l0", "seconds"))
    figures = (f"{mean:.4f}", f"{mean - half:.4f} - {mean + half:.4f}", f"{alive:.1%}", f"{l0:.1f}", f"{seconds:.0f}")
    table.add_row(*names, *figures)


def fit(
    library: str, python: str | Path, seed: int, console: Console, settings: Sequence[str] = ()
) -> dict[str, float] | None:
    """What fit.py measures, from an earlier call if there was one."""
    name = "_".join([library, str(seed), *(setting.lstrip("-") for setting in settings)])
    result = RESULTS / f"{name}.json"
    if not result.exists():
        files = [str(RESULTS / f"{part}.npy") for part in ("train", "held_out")]
        command = [str(python), str(HERE / "fit.py"), library, *files, f"--seed={seed}", *settings]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            console.print(f"{name}: {done.stderr.strip().splitlines()[-1]}", markup=False)
            return None
        result.write_text(done.stdout.strip().splitlines()[-1])
    return json.loads(result.read_text())
