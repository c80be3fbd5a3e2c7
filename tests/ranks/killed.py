"""One of two processes is killed at a certain call, and the other says so. Started by test_killed.py.

killed.py passes FOLDER MODEL               a store, a harvest and an evaluation; what each job says is in TASK.txt
killed.py MODULE.NAME CALL train ...        as the command line
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from forked import ended, forked

from monosem.activations import store_activations
from monosem.cli.main import run
from monosem.errors import MonosemError
from monosem.evaluation import evaluate
from monosem.features import harvest
from monosem.models import load_model
from monosem.ranks import first_to_fail, working_together
from monosem.sae import TopKSAE

HOOK = "resid_post.0"


def work(task: str, folder: Path, model_folder: str) -> Any:
    """What one process does, or several."""
    model = load_model(model_folder, device="cpu")
    if task == "store":
        options: dict[str, Any] = {"tokens": 5000, "shard_rows": 512, "window_shards": 2}
        return store_activations(model, HOOK, path=folder, progress=False, **options)
    model.contexts_at_once = lambda length: max(1, 512 // length)  # little text is several batches for each
    sae = TopKSAE(model.d_model, 64, k=4)
    sae.initialise(torch.randn(256, model.d_model, generator=torch.Generator().manual_seed(0)))
    if task == "harvest":
        return harvest(sae, folder, model, HOOK, tokens=3000, minutes=0, progress=False)
    return evaluate(sae, model, HOOK, tokens=3000, loss_tokens=700, progress=False)


def kill_at(name: str, call: int) -> None:
    """The second process ends without a word when it calls this function for so many times."""
    path, _, attribute = name.rpartition(".")
    owner: Any = importlib.import_module(path.partition(":")[0])
    for part in path.split(":")[1:]:
        owner = getattr(owner, part)
    original, calls = getattr(owner, attribute), [0]

    def counted(*args: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, attribute, counted)


READ = "read_rows"
AT = {
    "store": (f"monosem.activations.live.{READ}", 3),
    "harvest": (f"monosem.activations.reading.{READ}", 2),
    "evaluate": (f"monosem.activations.reading.{READ}", 2),
}


def together(task: str, folder: Path, model_folder: str) -> None:
    """The work of two, one of which is killed."""
    kill_at(*AT[task])
    try:
        with working_together():
            work(task, folder / task, model_folder)
    except (MonosemError, KeyboardInterrupt) as error:
        if first_to_fail():
            print(error)
        sys.exit(2)


def passes(folder: Path, model_folder: str) -> None:
    started = [
        pid
        for task in AT
        for pid in forked(2, lambda task=task: together(task, folder, model_folder), said_in=folder / f"{task}.txt")
    ]
    (folder / "ended").write_text(" ".join(map(str, ended(started))))


def main(name: str, call: str, *words: str) -> None:
    if name == "passes":
        load_model(*words)
        passes(Path(call), *words)
        return
    kill_at(name, int(call))
    sys.argv = ["monosem", *words]
    run()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
