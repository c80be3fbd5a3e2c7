"""`monosem plan` against real runs: predicted memory and time beside measured, each run in a process of its own.

    python benchmarks/plan.py            # four runs, about three minutes
    python benchmarks/plan.py --all      # seven
    python benchmarks/plan.py --model smollm2 --hook resid_post.15     # and one of a model of yours

Memory is the process's largest resident set, time from its start to its end. Each plan is calibrated first. Bars:
memory within 15 %, time within 30 %.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers

import monosem as ms
from monosem.models import BUNDLED
from monosem.runs import RunConfig

MEMORY, TIME = 0.15, 0.30
RUN = """
import sys
from pathlib import Path
from monosem.cli.main import app
app(sys.argv[1:], standalone_mode=False)
lines = Path("/proc/self/status").read_text().splitlines()
print(1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""


def small_llama(folder: Path) -> Path:
    """A Llama of 29 M random weights that reads the bundled tokens."""
    config = transformers.LlamaConfig(
        vocab_size=transformers.AutoTokenizer.from_pretrained(BUNDLED).vocab_size + 8,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(BUNDLED).save_pretrained(folder)
    return folder


def measured(command: list[str]) -> tuple[float, float]:
    """Bytes and seconds of a command."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", RUN, *command], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.strip().rpartition("\n")[2]), seconds


def main() -> None:
    """Plan, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="seven runs")
    parser.add_argument("--model", help="a model of yours: a folder")
    parser.add_argument("--hook", default="resid_post.2")
    parser.add_argument("--only", help="the one whose name has this in it")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        llama, store = str(small_llama(folder / "llama")), str(folder / "acts")
        train, wide = ["train", "--no-evaluation"], {"sae.n_latents": 32_768, "sae.k": 32}
        small = {"activations.buffer_tokens": 32_768}
        evaluated = {"evaluation.tokens": 100_000, "evaluation.loss_tokens": 16_384, "tokens": 100_000}
        cases: list[tuple[str, list[str], dict[str, Any]]] = [
            ("the defaults", train, {"tokens": 300_000}),
            ("wide: 32,768 latents", train, {**wide, **small, "tokens": 60_000}),
            ("a Llama of 8 layers", train, {"model": llama, "hook": "resid_post.5", **small, "tokens": 60_000}),
            ("trained and evaluated", ["train"], {**small, **evaluated}),
        ]
        if chosen.all:
            llama_store = {"model": llama, "hook": "resid_post.5", "store": store, "tokens": 100_000}
            cases += [
                ("storing", ["store"], llama_store),
                ("trained from the store", train, {**llama_store, "tokens": 400_000}),
                ("relu", train, {"sae.architecture": "relu", **small, "tokens": 60_000}),
            ]
        if chosen.model:
            cases.append((chosen.model, train, {"model": chosen.model, "hook": chosen.hook, **small, "tokens": 40_000}))
        if chosen.only:
            cases = [case for case in cases if chosen.only in case[0]]
        print(f"{'':<26}{'memory, GiB':>24}{'':>8}{'seconds':>22}\n{'':<26}", end="")
        print(f"{'planned':>12}{'measured':>12}{'error':>8}{'planned':>11}{'measured':>11}{'error':>8}")
        worst = [0.0, 0.0]
        for number, (what, command, values) in enumerate(cases):
            values = {**values, "output": str(folder / f"run{number}")}
            settings = [f"--set={key}={value}" for key, value in values.items()]
            config = RunConfig.read(None, [setting.removeprefix("--set=") for setting in settings])
            kind = {"store": command == ["store"], "evaluation": command == ["train"]}
            made = ms.plan(config, **kind, calibrate=True, hardware="cpu", progress=False)
            size, seconds = measured([*command, *settings])
            errors = (made.memory_bytes / size - 1, made.seconds / seconds - 1)
            worst = [max(old, abs(new)) for old, new in zip(worst, errors, strict=True)]
            print(
                f"{what:<26}{made.memory_bytes / 2**30:12.2f}{size / 2**30:12.2f}{errors[0]:+8.0%}"
                f"{made.seconds:11.1f}{seconds:11.1f}{errors[1]:+8.0%}",
                flush=True,
            )
            if command != ["store"]:
                shutil.rmtree(values["output"], ignore_errors=True)
    print(f"worst: memory {worst[0]:.0%} (bar {MEMORY:.0%}), time {worst[1]:.0%} (bar {TIME:.0%})")


if __name__ == "__main__":
    main()
