"""Two processes on two cores beside one process with two threads: tokens a second, and processor time, of the same run.

    python benchmarks/ranks.py [--cores 2] [--steps 40]

Rows are drawn at random and stand in memory, so that training alone is timed. Each way is begun three times, in turn,
and the median counts. The bar: by rows or by latents, whichever is faster, at least 0.9 times one process. Processor
time is that of all processes and threads together, a step, of one process with one thread too: it says what work is
added, and changes less where other work goes on (several threads that wait for each other use it up, then).
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

BAR, REPEATS, WARM = 0.9, 3, 5
SIZES = {"d": 256, "n_latents": 4096, "k": 32, "batch": 2048}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--timed", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.timed:
        timed(options.timed, options.steps)
        return
    cores, steps = options.cores, options.steps
    ways = {
        f"one process, {cores} threads": (1, 1, cores),
        f"{cores} processes, rows divided": (cores, 1, 1),
        f"{cores} processes, latents divided": (cores, cores, 1),
        "one process, one thread": (1, 1, 1),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, way in ways.items():
            found[name].append(measured(*way, steps))
    medians = {name: [statistics.median(column) for column in zip(*each, strict=True)] for name, each in found.items()}
    (one, _), *several, (_, least) = medians.values()
    for name, (tokens, milliseconds) in medians.items():
        speed = f"{tokens:10,.0f} tokens/s {tokens / one:5.2f}"
        print(f"{name:32} {speed}   {milliseconds:6.1f} ms of processor time a step {milliseconds / least:5.2f}")
    share = max(tokens for tokens, _ in several) / one
    print(f"{share:.2f} times one process; the bar is {BAR}: {'met' if share >= BAR else 'missed'}")


def measured(processes: int, latent_ranks: int, threads: int, steps: int) -> tuple[float, float]:
    """Tokens a second, and milliseconds of processor time a step, of one way, in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = [str(Path(__file__).resolve()), "--timed", str(latent_ranks), "--steps", str(steps)]
    command = [sys.executable, *(launcher if processes > 1 else []), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return said[0]["tokens"], sum(each["milliseconds"] for each in said)


def timed(latent_ranks: int, steps: int) -> None:
    """One way, in this process and those beside it."""
    from monosem.activations import activations
    from monosem.ranks import working_together
    from monosem.sae import TopKSAE
    from monosem.training import TrainingConfig, train

    batch = SIZES["batch"]
    x = torch.randn(4 * batch, SIZES["d"], generator=torch.Generator().manual_seed(0))
    ticks: list[float] = []
    used: list[float] = []

    def note(*_: object) -> None:
        ticks.append(time.perf_counter())
        usage = resource.getrusage(resource.RUSAGE_SELF)
        used.append(usage.ru_utime + usage.ru_stime)

    with working_together():
        train(
            TopKSAE(SIZES["d"], SIZES["n_latents"], k=SIZES["k"]),
            activations(x),
            tokens=(steps + WARM) * batch,
            config=TrainingConfig(batch_size=batch, latent_ranks=latent_ranks),
            callbacks=[note],
            progress=False,
        )
    timed_steps = len(ticks) - WARM
    tokens = timed_steps * batch / (ticks[-1] - ticks[WARM - 1])
    milliseconds = 1000 * (used[-1] - used[WARM - 1]) / timed_steps
    sys.stdout.write(json.dumps({"tokens": tokens, "milliseconds": milliseconds}) + "\n")  # at once: two write


if __name__ == "__main__":
    main()
