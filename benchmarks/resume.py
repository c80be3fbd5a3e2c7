"""Going on: seconds from a killed run on a store to its first step, and what checkpoints take of a run's time.

    python benchmarks/resume.py [--width 768] [--latents 24576] [--rows 524288]

A run of a TopK dictionary on a store of random numbers is killed (kill -9) soon after a checkpoint, and begun again by
the same command: counted are the seconds from the start of the process, Python and torch included, to the end of the
first step that is new. A checkpoint's seconds are those that the library itself takes for one, over the five minutes
between two.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from store import SHARD_ROWS, show, written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--latents", type=int, default=24_576)
    parser.add_argument("--rows", type=int, default=524_288)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        train(Path(options.run), options)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        block = np.random.default_rng(0).normal(size=(SHARD_ROWS, options.width)).astype(np.float32)
        written(folder / "acts", (block.view(np.uint32) >> 16).astype(np.uint16), options.rows)
        command = [sys.executable, __file__, "--run", name, "--width", str(options.width)]
        command += ["--latents", str(options.latents)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not list((folder / "run" / "checkpoints").glob("step_*")):
            if process.poll() is not None:
                raise SystemExit("the run failed: see above")
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        begun = time.time()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        first = json.loads(done.stdout.splitlines()[0])
        checkpoint = max((folder / "run" / "checkpoints").glob("step_*"))
        size = sum(file.stat().st_size for file in checkpoint.iterdir()) / 2**20
    assert first["step"] > 1, "it did not go on"
    resumed = first["at"] - begun
    show("from the start of the process to its first step", f"{resumed:.1f} s", -resumed, -10)
    share = first["checkpoint"] / (5 * 60 + first["checkpoint"])
    what = f"{share:.2%} ({first['checkpoint']:.1f} s, {size:,.0f} MiB)"
    show("checkpoints' share of the time", what, -share, -0.02)


def train(folder: Path, options: argparse.Namespace) -> None:
    """Two steps more than before; says when the first one ended, and what a checkpoint takes."""
    import monosem as ms
    from monosem.training import member

    spent, steps, original = list[float](), list[tuple[int, float]](), member.write_checkpoint

    def timed(*arguments: object) -> Path:
        begun = time.perf_counter()
        path = original(*arguments)  # pyright: ignore[reportArgumentType]
        spent.append(time.perf_counter() - begun)
        return path

    def after(trainer: ms.Trainer, _: object) -> None:
        steps.append((trainer.steps, time.time()))
        if len(spent) and steps[0][0] > 1:
            print(json.dumps({"step": steps[0][0], "at": steps[0][1], "checkpoint": min(spent)}), flush=True)
            os._exit(0)

    member.write_checkpoint = timed
    sae = ms.TopKSAE(options.width, options.latents, k=32)
    config = ms.TrainingConfig(checkpoint_minutes=0)
    ms.train(sae, ms.activations(folder / "acts"), tokens=10**6, config=config, path=folder / "run", callbacks=[after])


if __name__ == "__main__":
    main()
