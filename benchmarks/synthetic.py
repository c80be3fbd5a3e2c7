"""SynthSAEBench, small: every architecture of ours beside SAELens's, on the same rows, scored by the same truth.

    python benchmarks/synthetic.py [--samples 20000000] [--only batchtopk ...] [--no-peers] [--output docs/synthetic.md]

2,048 features in 96 dimensions under the published laws (`ms.SynthSAEBench("small")`), dictionaries of 512 latents: a
quarter of the features, as the published benchmark has it. k, or the target of L0, is the mean number of the 512
commonest features that are on. SAELens's are trained at its benchmark's settings (batches of 1,024), at each of
`--their-rates`, of which the best counts; of those that take a coefficient, the one whose L0 comes nearest is sought on
a tenth of the rows. Ours are at their defaults. Beside them stands the ceiling: logistic probes for the 512 commonest.

What is done is kept under `benchmarks/.results/synthetic`, and left out when it is called again; delete it to begin
anew.
SAELens runs in an environment of its own (`python benchmarks/peers.py`, or `--saelens PYTHON`).
"""

import argparse
import json
import math
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import python_of, set_up
from rich import box
from rich.console import Console
from rich.table import Table

import monosem as ms
from monosem.codes import SparseCodes
from monosem.evaluation import Interval, probe_ceiling, random_truth, score_codes
from monosem.sae import SAE
from monosem.training import Trainer, TrainingConfig

HERE = Path(__file__).parent
RESULTS = HERE / ".results" / "synthetic"
LATENTS, THEIR_BATCH, TEST_ROWS, TEST_SEED = 512, 1024, 50_000, 1_000_003
OURS = ("batchtopk", "gated", "jumprelu", "matching_pursuit", "matryoshka", "prolu", "relu", "switch", "topk")
THEIRS = ("topk", "batchtopk", "matryoshka", "relu", "gated", "jumprelu")
PENALISED = ("relu", "gated", "jumprelu")
Sides = dict[str, dict[str, dict[str, Any]]]
COUNTED = ("f1", "matched_cosine")
SHOWN = ("f1", "matched_cosine", "precision", "recall", "absorption", "uniqueness")


def plain(values: dict[str, Interval]) -> dict[str, list[float | None]]:
    """As strict JSON has them."""
    return {key: [None if part is None or math.isnan(part) else part for part in one] for key, one in values.items()}


def measured(directions: torch.Tensor, codes: SparseCodes, bench: Any, seconds: float) -> dict[str, Any]:
    """The scores of one dictionary, as they are kept."""
    score = score_codes(directions, codes, bench, bench.sample(TEST_ROWS, TEST_SEED).codes)
    return {**plain(score.values), "l0": codes.l0().double().mean().item(), "seconds": seconds}


def ours(bench: Any, architecture: str, samples: int, sparsity: float, seed: int) -> dict[str, Any]:
    """Train one of ours at its defaults."""
    kind, start = SAE.registry[architecture], time.perf_counter()
    named = "k" if "k" in kind.parameters_of() else "target_l0"
    settings: dict[str, Any] = {named: round(sparsity) if named == "k" else sparsity}
    sae = kind(bench.d, LATENTS, seed=seed, **settings)
    sae.initialise(bench.sample(16_384, seed).x)
    trainer = Trainer(sae, TrainingConfig(), samples)
    batch = trainer.config.batch_size
    for done in range(0, samples, batch):
        trainer.step(bench.sample(min(batch, samples - done), seed, done).x)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        codes = [sae.encode(x) for x in bench.sample(TEST_ROWS, TEST_SEED).x.split(2048)]
    return measured(sae.decoder_directions().detach(), SparseCodes.cat(codes), bench, seconds)


def theirs(
    bench: Any, python: Path, architecture: str, samples: int, sparsity: float, lr: float, seed: int
) -> dict[str, Any]:
    """Train one of SAELens's on the same rows, in its own process."""
    start, result = time.perf_counter(), RESULTS / f"part_{time.time_ns()}.npz"
    task = {"architecture": architecture, "d": bench.d, "latents": LATENTS, "samples": samples, "sparsity": sparsity}
    task |= {"lr": lr, "batch": THEIR_BATCH, "test_rows": TEST_ROWS, "seed": seed, "result": str(result)}
    command = [str(python), str(HERE / "synthetic_saelens.py")]
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said) as worker,
    ):
        assert worker.stdin is not None
        with suppress(BrokenPipeError):  # of a worker that failed: what it says of it is read below
            worker.stdin.write(json.dumps(task).encode() + b"\n")
            for done in range(0, samples, 16_384):
                worker.stdin.write(bench.sample(min(16_384, samples - done), seed, done).x.numpy().tobytes())
            worker.stdin.write(bench.sample(TEST_ROWS, TEST_SEED).x.numpy().tobytes())
            worker.stdin.close()
        if worker.wait():
            said.seek(0)
            raise RuntimeError(f"SAELens's {architecture}: {said.read().decode(errors='replace').splitlines()[-1]}")
    with np.load(result) as found:
        directions, values, indices = (torch.from_numpy(found[name]) for name in ("directions", "values", "indices"))
        offsets = torch.from_numpy(np.concatenate([[0], found["counts"].cumsum()]))
    result.unlink()
    codes = SparseCodes(values, indices, offsets, LATENTS)
    return measured(directions, codes, bench, time.perf_counter() - start)


def coefficient_for(bench: Any, python: Path, architecture: str, samples: int, target: float, lr: float) -> float:
    """Of a penalty, the coefficient whose L0 comes nearest to the target; within 5 %, or the nearest of 8 tries."""
    low, high, coefficient, tried = 0.0, math.inf, 1.0, []
    for _ in range(8):
        reached = max(theirs(bench, python, architecture, samples, coefficient, lr, 0)["l0"], 0.1)
        tried.append((abs(math.log(reached / target)), coefficient))
        if tried[-1][0] < 0.05:
            break
        low, high = (coefficient, high) if reached > target else (low, coefficient)
        between = math.sqrt(low * high) if low and high < math.inf else coefficient * (reached / target) ** 0.7
        coefficient = float(f"{between:.4g}")
    return min(tried)[1]


def kept(name: str, make: Any, console: Console) -> dict[str, Any] | None:
    """From an earlier call, or made now."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        try:
            path.write_text(json.dumps(make()))
        except (ms.MonosemError, RuntimeError) as error:
            console.print(f"{name}: {error}", markup=False)
            return None
        console.print(f"{name}: {spelled(json.loads(path.read_text()), 'f1')}", markup=False, highlight=False)
    return json.loads(path.read_text())


def spelled(found: dict[str, Any], key: str) -> str:
    """A value, and of the two that count its interval."""
    value, low, high = (*found[key], None, None)[:3]
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if low is None or key not in COUNTED else f" ({low:.3f} - {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=sorted({*OURS, *THEIRS}), help="these architectures")
    parser.add_argument("--their-rates", nargs="*", type=float, default=[3e-4, 1e-3])
    parser.add_argument("--no-peers", action="store_true", help="leave SAELens out")
    parser.add_argument("--saelens", type=Path, help="the Python of an environment that has sae-lens")
    parser.add_argument("--output", type=Path, help="a file for the table")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    console, bench = Console(width=150), ms.SynthSAEBench("small")
    target = bench.probabilities[:LATENTS].sum().item()
    bench.sample(1024)
    start = time.perf_counter()
    bench.sample(100_000)
    console.print(f"rows drawn a second: {100_000 / (time.perf_counter() - start):,.0f}", highlight=False)
    wanted, ending = set(options.only or {*OURS, *THEIRS}), f"{options.samples}_{options.seed}"
    sides: Sides = {"monosem": {}, "SAELens": {}}
    for architecture in (name for name in OURS if name in wanted):
        found = kept(
            f"monosem_{architecture}_{ending}",
            lambda name=architecture: ours(bench, name, options.samples, target, options.seed),
            console,
        )
        if found:
            sides["monosem"][architecture] = found
    python = options.saelens or (None if options.no_peers or not set_up("saelens") else python_of("saelens"))
    for architecture in (name for name in THEIRS if name in wanted and python is not None):
        tries = []
        for lr in options.their_rates:

            def train(name: str = architecture, lr: float = lr) -> dict[str, Any]:
                assert python is not None
                short = max(options.samples // 10, THEIR_BATCH)
                penalised = name in PENALISED
                sparsity = coefficient_for(bench, python, name, short, target, lr) if penalised else round(target)
                return theirs(bench, python, name, options.samples, sparsity, lr, options.seed)

            tries.append(kept(f"saelens_{architecture}_{lr:g}_{ending}", train, console))
        done = [one for one in tries if one]
        if done:
            sides["SAELens"][architecture] = max(done, key=lambda one: one["f1"][0])
    ceiling = kept(f"ceiling_{LATENTS}", lambda: ceiling_of(bench), console)
    chance = kept(f"chance_{LATENTS}", lambda: chance_of(bench), console)
    assert ceiling is not None
    assert chance is not None
    show(console, sides, ceiling, chance, target, options)


def ceiling_of(bench: Any) -> dict[str, Any]:
    found = probe_ceiling(bench, LATENTS)
    return {"f1": list(found.f1), "precision": list(found.precision), "recall": list(found.recall)}


def chance_of(bench: Any) -> dict[str, Any]:
    return plain(random_truth(LATENTS, bench).values)


def show(console: Console, sides: Sides, ceiling: Any, chance: Any, target: float, options: Any) -> None:
    """The table, and who is above whom."""
    header = ("", "", "F1", "matched cosine", "precision", "recall", "absorption", "uniqueness", "L0", "seconds")
    rows = [
        [library, name, *(spelled(one, key) for key in SHOWN), f"{one['l0']:.1f}", f"{one['seconds']:.0f}"]
        for library, of in sides.items()
        for name, one in sorted(of.items(), key=lambda item: -item[1]["f1"][0])
    ]
    rows.append(["probes", "ceiling", *(spelled(ceiling, key) if key in ceiling else "" for key in SHOWN), "", ""])
    rows.append(["random", "directions", *(spelled(chance, key) for key in SHOWN), "", ""])
    title = f"SynthSAEBench, small: {options.samples:,} rows, {LATENTS} latents, L0 {target:.2f} of the commonest"
    table = Table(*header, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    lines = []
    for key in COUNTED:
        best = {library: max(of.items(), key=lambda item: item[1][key][0]) for library, of in sides.items() if of}
        said = [f"{library}'s best {name} {spelled(one, key)}" for library, (name, one) in best.items()]
        verdict = ""
        if len(best) == 2:
            apart = best["monosem"][1][key][0] - best["SAELens"][1][key][0]
            verdict = f": ours is {'above' if apart > 0 else 'BELOW'} by {abs(apart):.3f}"
        lines.append(f"{key}: {', '.join(said)}{verdict}")
    mine = [one["f1"][0] for one in sides["monosem"].values()]
    if mine:
        lines.append(f"gap of ours to the ceiling of probes in F1: {ceiling['f1'][0] - max(mine):.3f}")
    for line in lines:
        console.print(line, markup=False, highlight=False)
    if options.output:
        cells = [header, ["---"] * len(header), *rows]
        text = "\n".join(f"| {' | '.join(row)} |" for row in cells)
        options.output.write_text(f"{title}\n\n{text}\n\n" + "\n\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
