"""SynthSAEBench, small: every architecture of ours beside SAELens's, on the same rows, scored by the same truth.

    python benchmarks/synthetic.py [--samples 20000000] [--only batchtopk ...] [--no-peers] [--output docs/synthetic.md]

2,048 features in 96 dimensions under the published laws (`ms.SynthSAEBench("small")`), dictionaries of 512 latents: a
quarter of the features, as the published benchmark has it. k, or the target of L0, is the mean number of the 512
commonest features that are on.

Each trainer is trained at several learning rates, a half order of magnitude apart, and on past the end of the range
while the best of them is at that end. Ours begin at their default, 4e-3, theirs at `--their-rates`. Theirs have batches
of 1,024 as its benchmark has, and two recipes: its defaults, and what its documentation and the experiments of its
benchmark recommend. Of those of theirs that take a coefficient, that whose L0 comes within 10 % of the target is
sought (on a tenth of the rows first, if that is a million); a run that is not within 20 % does not count, where one is.

What is done is kept under `benchmarks/.results/synthetic`, and left out when it is called again; delete it to begin
anew. Seconds are those of a processor, training alone.
SAELens runs in an environment of its own (`python benchmarks/peers.py`, or `--saelens PYTHON`).
"""

import argparse
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable
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
OURS = ("batchtopk", "matryoshka", "jumprelu", "gated", "topk", "relu", "prolu", "switch", "matching_pursuit")
THEIRS = OURS[:6]
RECIPES = ("recommended", "defaults")
PENALISED = ("relu", "gated", "jumprelu")
APART, LOWEST, HIGHEST = math.sqrt(10), 1e-5, 0.3
"""Learning rates: their ratio, and where a search for the best ends."""
NEAR, ENOUGH = math.log(1.2), 1_000_000
"""How far a run may be from the target of L0; rows on which a coefficient is sought first, where there are more."""
Run = dict[str, Any]
"""One dictionary's scores, L0 and seconds, and how it was trained."""
COUNTED = ("f1", "matched_cosine")
SHOWN = ("f1", "matched_cosine", "precision", "recall", "absorption", "uniqueness")


def plain(values: dict[str, Interval]) -> dict[str, list[float | None]]:
    """As strict JSON has them."""
    return {key: [None if part is None or math.isnan(part) else part for part in one] for key, one in values.items()}


def measured(directions: torch.Tensor, codes: SparseCodes, bench: Any, seconds: float) -> Run:
    """The scores of one dictionary, as they are kept."""
    score = score_codes(directions, codes, bench, bench.sample(TEST_ROWS, TEST_SEED).codes)
    return {**plain(score.values), "l0": codes.l0().double().mean().item(), "seconds": seconds}


def ours(bench: Any, architecture: str, samples: int, sparsity: float, lr: float | None, seed: int) -> Run:
    """Train one of ours at its defaults, but for the rate."""
    kind, seconds = SAE.registry[architecture], 0.0
    named = "k" if "k" in kind.parameters_of() else "target_l0"
    settings: dict[str, Any] = {named: round(sparsity) if named == "k" else sparsity}
    sae = kind(bench.d, LATENTS, seed=seed, **settings)
    sae.initialise(bench.sample(16_384, seed).x)
    trainer = Trainer(sae, TrainingConfig(lr=lr), samples)
    batch = trainer.config.batch_size
    for done in range(0, samples, batch):
        x = bench.sample(min(batch, samples - done), seed, done).x
        start = time.process_time()
        trainer.step(x)
        seconds += time.process_time() - start
    with torch.no_grad():
        codes = [sae.encode(x) for x in bench.sample(TEST_ROWS, TEST_SEED).x.split(2048)]
    return measured(sae.decoder_directions().detach(), SparseCodes.cat(codes), bench, seconds)


class SAELens:
    """The process that trains SAELens's."""

    def __init__(self, bench: Any, python: Path) -> None:
        self.bench, self.python = bench, python
        self.process: subprocess.Popen[bytes] | None = None

    def __call__(self, architecture: str, recipe: str, samples: int, sparsity: float, lr: float, seed: int) -> Run:
        """Train one of them on the same rows."""
        bench, result = self.bench, RESULTS / f"part_{time.time_ns()}.npz"
        task = {"architecture": architecture, "recipe": recipe, "d": bench.d, "latents": LATENTS, "samples": samples}
        task |= {"sparsity": sparsity, "lr": lr, "batch": THEIR_BATCH, "test_rows": TEST_ROWS, "seed": seed}
        if self.process is None or self.process.poll() is not None:
            self.said = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
            command = [str(self.python), str(HERE / "synthetic_saelens.py")]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):  # of a process that failed: what it says of it is read below
            self.process.stdin.write(json.dumps(task | {"result": str(result)}).encode() + b"\n")
            for done in range(0, samples, 16_384):
                self.process.stdin.write(bench.sample(min(16_384, samples - done), seed, done).x.numpy().tobytes())
            self.process.stdin.write(bench.sample(TEST_ROWS, TEST_SEED).x.numpy().tobytes())
            self.process.stdin.flush()
        if not self.process.stdout.readline():
            self.process.wait()
            self.said.seek(0)
            lines = self.said.read().decode(errors="replace").splitlines()
            raise RuntimeError(next((line for line in reversed(lines) if "Error" in line), lines[-1]))
        with np.load(result) as found:
            directions, values, indices = (torch.from_numpy(found[key]) for key in ("directions", "values", "indices"))
            offsets = torch.from_numpy(np.concatenate([[0], found["counts"].cumsum()]))
            seconds = float(found["seconds"])
        result.unlink()
        return measured(directions, SparseCodes(values, indices, offsets, LATENTS), bench, seconds)


def sought(train: Callable[[float], Run], target: float, coefficient: float, tries: int) -> Run:
    """Of a penalty, the run whose L0 comes within 10 % of the target, or the nearest of so many."""
    low, high, runs = 0.0, math.inf, list[tuple[float, Run]]()
    for _ in range(tries):
        run = train(coefficient)
        runs.append((beside(run), run | {"coefficient": coefficient}))
        if runs[-1][0] < 0.1:
            break
        reached = max(run.get("l0", 0.0), 0.1)
        low, high = (coefficient, high) if reached > target else (low, coefficient)
        between = math.sqrt(low * high) if low and high < math.inf else coefficient * (reached / target) ** 0.7
        coefficient = float(f"{between:.4g}")
    return min(runs, key=lambda pair: pair[0])[1]


def kept(name: str, make: Callable[[], Run], console: Console) -> Run:
    """From an earlier call, or made now; of what fails, why."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        try:
            found = make()
        except (ms.MonosemError, RuntimeError) as error:
            found = {"failed": str(error)}
        path.write_text(json.dumps(found))
        console.print(f"{name}: {found.get('failed') or spelled(found, 'f1')}", markup=False, highlight=False)
    return json.loads(path.read_text())


def swept(train: Callable[[float], Run], rates: list[float]) -> list[Run]:
    """At all these rates, and on past an end of them while the best is there."""
    done = {rate: train(rate) | {"lr": rate} for rate in sorted(rates)}
    while True:
        best = max(done, key=lambda rate: good(done[rate]))
        further = [best / APART] if best == min(done) else []
        further += [best * APART] if best == max(done) else []
        rates = [rate for rate in (float(f"{rate:.2g}") for rate in further) if LOWEST <= rate <= HIGHEST]
        if not rates:
            return list(done.values())
        done |= {rate: train(rate) | {"lr": rate} for rate in rates}


def good(run: Run) -> float:
    """What makes a run the best: its F1; a failed one is worse than any, and one beside the target than all others."""
    if "failed" in run or run["f1"][0] is None:
        return -2.0
    return run["f1"][0] - (beside(run) > NEAR)


def beside(run: Run) -> float:
    """How far its L0 is from the target, as a logarithm."""
    return abs(math.log(max(run.get("l0", 0.0), 0.1) / run["target"]))


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
    parser.add_argument("--our-rates", nargs="*", type=float, default=[4e-3])
    parser.add_argument("--their-rates", nargs="*", type=float, default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--no-peers", action="store_true", help="leave SAELens out")
    parser.add_argument("--saelens", type=Path, help="the Python of an environment that has sae-lens")
    parser.add_argument("--output", type=Path, help="a file for the table, which is written as it grows")
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    console, bench = Console(width=160), ms.SynthSAEBench("small")
    target = bench.probabilities[:LATENTS].sum().item()
    ceiling = kept(f"ceiling_{LATENTS}", lambda: ceiling_of(bench), console)
    chance = kept(f"chance_{LATENTS}", lambda: plain(random_truth(LATENTS, bench).values), console)
    python = options.saelens or (None if options.no_peers or not set_up("saelens") else python_of("saelens"))
    saelens = SAELens(bench, python) if python and not options.no_peers else None
    runs: dict[tuple[str, str], list[Run]] = {}
    for architecture in (name for name in OURS if name in (options.only or OURS)):
        runs["monosem", architecture] = our_runs(bench, architecture, target, options, console)
        report(runs, ceiling, chance, target, options, Console(quiet=True))
        if saelens and architecture in THEIRS:
            runs["SAELens", architecture] = their_runs(saelens, architecture, target, options, console)
            report(runs, ceiling, chance, target, options, Console(quiet=True))
    report(runs, ceiling, chance, target, options, console)


def our_runs(bench: Any, architecture: str, target: float, options: Any, console: Console) -> list[Run]:
    def train(lr: float) -> Run:
        return kept(
            f"monosem_{architecture}_{lr:g}_{options.samples}_{options.seed}",
            lambda: ours(bench, architecture, options.samples, target, lr, options.seed),
            console,
        ) | {"target": target, "recipe": "defaults"}

    return swept(train, options.our_rates)


def their_runs(saelens: SAELens, architecture: str, target: float, options: Any, console: Console) -> list[Run]:
    sparsity, runs = round(target), []
    for recipe in RECIPES:
        near, found = 1.0, Run()

        def at(lr: float, samples: int, sparsity: float, recipe: str = recipe) -> Run:
            return kept(
                f"saelens_{architecture}_{recipe}_{lr:g}_{sparsity:g}_{samples}_{options.seed}",
                lambda: saelens(architecture, recipe, samples, sparsity, lr, options.seed),
                console,
            ) | {"target": target, "recipe": recipe}

        def train(lr: float, at: Any = at) -> Run:
            nonlocal near, found
            if architecture not in PENALISED:
                return at(lr, options.samples, sparsity)
            lengths = [short] if (short := max(options.samples // 10, ENOUGH)) < options.samples else []
            for rows in [*lengths, options.samples]:
                found = sought(lambda coefficient, rows=rows: at(lr, rows, coefficient), target, near, 6)
                near = found["coefficient"] if beside(found) < NEAR else 1.0
            return found

        runs += swept(train, options.their_rates)
    return runs


def ceiling_of(bench: Any) -> Run:
    found = probe_ceiling(bench, LATENTS)
    return {"f1": list(found.f1), "precision": list(found.precision), "recall": list(found.recall)}


def how(run: Run) -> str:
    """How it was trained."""
    return f"{run['recipe']}, {run['lr']:g}" + (f", {run['coefficient']:g}" if "coefficient" in run else "")


def report(
    runs: dict[tuple[str, str], list[Run]], ceiling: Run, chance: Run, target: float, options: Any, console: Console
) -> None:
    """The table, who is above whom, and all runs."""
    header = ("", "", "trained", "F1", "matched cosine", "precision", "recall", "absorption", "uniqueness", "L0", "s")
    best = {key: max(of, key=good) for key, of in runs.items()}
    lines = [
        [*key, how(one), *(spelled(one, name) for name in SHOWN), f"{one['l0']:.1f}", f"{one['seconds']:.0f}"]
        for key, one in sorted(best.items(), key=lambda item: (item[0][0] == "SAELens", -good(item[1])))
        if good(one) > -2
    ]
    lines.append(["probes", "ceiling", "", *(spelled(ceiling, key) if key in ceiling else "" for key in SHOWN), "", ""])
    lines.append(["random", "directions", "", *(spelled(chance, key) for key in SHOWN), "", ""])
    title = f"SynthSAEBench, small: {options.samples:,} rows, {LATENTS} latents, L0 {target:.2f} of the commonest"
    table = Table(*header, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    said = verdicts(best, ceiling)
    for line in said:
        console.print(line, markup=False, highlight=False)
    if options.output:
        all_runs = [
            [*key, how(one), spelled(one, "f1"), spelled(one, "matched_cosine"), f"{one['l0']:.1f}"]
            for key, of in runs.items()
            for one in sorted(of, key=lambda one: (one["recipe"], one["lr"]))
            if "failed" not in one
        ]
        failed = [
            f"{' '.join(key)} ({how(one)}): {one['failed']}"
            for key, of in runs.items()
            for one in of
            if "failed" in one
        ]
        parts = [title, cells(header, lines), *said, "All runs:", cells((*header[:5], "L0"), all_runs), *failed]
        options.output.write_text("\n\n".join(parts) + "\n")


def cells(header: tuple[str, ...], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in [list(header), ["---"] * len(header), *lines])


def verdicts(best: dict[tuple[str, str], Run], ceiling: Run) -> list[str]:
    """Of each score that counts, the best of both libraries; and the gap to the ceiling."""
    lines = []
    for key in COUNTED:
        firsts = {}
        for library in ("monosem", "SAELens"):
            of = {name: run for (whose, name), run in best.items() if whose == library and good(run) > -2}
            if of:
                firsts[library] = max(of.items(), key=lambda item: item[1][key][0])
        said = [f"{library}'s best {name} {spelled(one, key)}" for library, (name, one) in firsts.items()]
        verdict = ""
        if len(firsts) == 2:
            apart = firsts["monosem"][1][key][0] - firsts["SAELens"][1][key][0]
            verdict = f": ours is {'above' if apart > 0 else 'BELOW'} by {abs(apart):.3f}"
        lines.append(f"{key}: {', '.join(said)}{verdict}")
    mine = [run["f1"][0] for (library, _), run in best.items() if library == "monosem" and good(run) > -2]
    if mine:
        lines.append(f"gap of ours to the ceiling of probes in F1: {ceiling['f1'][0] - max(mine):.3f}")
    return lines


if __name__ == "__main__":
    main()
