"""Two processes on two cores beside one process with two threads: tokens a second of training, the same run.

    python benchmarks/ranks.py [--cores 2] [--steps 40]

Rows are drawn at random and stand in memory, so that training alone is timed. Each way is begun three times, in turn,
and the median counts. The bar: by rows or by latents, whichever is faster, at least 0.9 times one process.
"""

import argparse
import json
import os
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
        f"one process, {cores} threads": (1, 1),
        f"{cores} processes, rows divided": (cores, 1),
        f"{cores} processes, latents divided": (cores, cores),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS):
        for name, (processes, latent_ranks) in ways.items():
            found[name].append(speed(processes, latent_ranks, cores // processes, steps))
    speeds = {name: statistics.median(each) for name, each in found.items()}
    one, *several = speeds.values()
    for name, tokens in speeds.items():
        print(f"{name:32} {tokens:10,.0f} tokens/s  {tokens / one:5.2f}")
    share = max(several) / one
    print(f"{share:.2f} times one process; the bar is {BAR}: {'met' if share >= BAR else 'missed'}")


def speed(processes: int, latent_ranks: int, threads: int, steps: int) -> float:
    """Tokens a second of one way, in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = [str(Path(__file__).resolve()), "--timed", str(latent_ranks), "--steps", str(steps)]
    command = [sys.executable, *(launcher if processes > 1 else []), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))["tokens"]


def timed(latent_ranks: int, steps: int) -> None:
    """One way, in this process and those beside it."""
    from monosem.activations import activations
    from monosem.ranks import working_together
    from monosem.sae import TopKSAE
    from monosem.training import TrainingConfig, train

    batch = SIZES["batch"]
    x = torch.randn(4 * batch, SIZES["d"], generator=torch.Generator().manual_seed(0))
    ticks: list[float] = []
    with working_together() as every:
        train(
            TopKSAE(SIZES["d"], SIZES["n_latents"], k=SIZES["k"]),
            activations(x),
            tokens=(steps + WARM) * batch,
            config=TrainingConfig(batch_size=batch, latent_ranks=latent_ranks),
            callbacks=[lambda *_: ticks.append(time.perf_counter())],
            progress=False,
        )
        if every.first:
            print(json.dumps({"tokens": (len(ticks) - WARM) * batch / (ticks[-1] - ticks[WARM - 1])}), flush=True)


if __name__ == "__main__":
    main()
