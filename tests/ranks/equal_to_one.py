"""What four processes find out together; each writes what it saw into a file of its own. Started by test_ranks.py.

    equal_to_one.py FOLDER MODEL

They are forked, and so import nothing.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from forked import ended, forked

from monosem.activations import store_activations
from monosem.errors import MonosemError
from monosem.evaluation import evaluate
from monosem.features import harvest
from monosem.models import load_model
from monosem.ranks import Division, Group, by_itself, working_together
from monosem.sae import (
    SAE,
    BatchTopKSAE,
    Crosscoder,
    CrossLayerTranscoder,
    GatedSAE,
    JumpReLUSAE,
    MatryoshkaSAE,
    ReLUSAE,
    SkipTranscoder,
    TopKSAE,
)
from monosem.training import Trainer, TrainingConfig, fit, trainer
from monosem.training.divided import restore

trainer.MIN_DEAD_STEPS = 2
ROWS = 16
CASES: dict[str, tuple[type[SAE], dict[str, Any], dict[str, Any]]] = {
    "topk": (TopKSAE, {"k": 3, "multi_coefficient": 0.125}, {"clip_gradient": 0.05}),
    "batchtopk": (BatchTopKSAE, {"k": 3}, {}),
    "matryoshka": (MatryoshkaSAE, {"k": 3}, {}),
    "jumprelu": (JumpReLUSAE, {"target_l0": 3.0}, {}),
    "jumprelu, dense, by frequency": (JumpReLUSAE, {"penalty": "frequency"}, {}),
    "gated": (GatedSAE, {}, {}),
    "relu, with p falling": (ReLUSAE, {"p_end": 0.2, "target_l0": 3.0}, {}),
    "transcoder": (SkipTranscoder, {"k": 3, "d_out": 5}, {}),
    "crosscoder": (Crosscoder, {"k": 3}, {}),
    "cross-layer transcoder": (CrossLayerTranscoder, {"k": 3, "n_layers": 2}, {}),
}
RESAMPLED = {"revival": {"method": "resample", "resample_at": (0.5, 0.7)}}
ALONE: dict[Any, dict[str, Any]] = {}
"""What one process came to."""
GHOSTS = {"revival": {"method": "ghost_scaled"}}


def trained(case: tuple[type[SAE], Any, Any], dtype: torch.dtype, steps: int, division: Division) -> dict[str, Any]:
    """State and metrics after some steps on this rank's part of each batch."""
    kind, options, settings = case
    sae: SAE = kind(8, 48, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    x, y = (
        3 * torch.randn(ROWS * steps, *shape, generator=generator, dtype=torch.float64).to(dtype) + 1
        for shape in (sae.in_shape, sae.out_shape)
    )
    sae.initialise(x[:64], None if sae.autoencodes else y[:64])
    running = Trainer(sae, TrainingConfig(batch_size=ROWS, **settings), ROWS * steps)
    running.divide(division)
    for start in range(0, ROWS * steps, ROWS):
        rows, target = x[start : start + ROWS], y[start : start + ROWS]
        own = division.own_rows(ROWS)
        running.step(rows[own], None if sae.autoencodes else target[own])
    assert running.last is not None
    metrics = running.last.metrics
    held = sum(t.numel() for t in sae.parameters()) + sum(t.numel() for t in running.optimizer.state().values())
    alike = all(bool((one == p).all()) for p in sae.parameters() for one in division.rows.gather(p.data))
    assert (running.parts is None) == (division.rows.size == 1), "matrices are in common where rows are divided"
    running.undivide()
    restore(sae, division)
    widths = getattr(sae, "widths", None)
    return {"state": sae.state_dict(), "metrics": metrics, "held": held, "widths": widths, "alike": alike}


def farthest(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of any parameter, buffer or figure, relative where it is large."""
    assert found["widths"] == expected["widths"]
    pairs = [(t, expected["state"][name]) for name, t in found["state"].items()]
    figures = [(found["metrics"][name], figure) for name, figure in expected["metrics"].items()]
    pairs += [(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)) for a, b in figures]
    return max(((a - b).abs() / b.abs().clamp_min(1)).max().item() for a, b in pairs)


def compare(name: str, case: Any, grid: str, division: Division, found: dict[str, Any]) -> None:
    """Into `found`: how far several processes are from one."""
    for dtype, steps in ((torch.float64, 10), (torch.float32, 4)):
        several = trained(case, dtype, steps, division)
        if (name, dtype) not in ALONE:
            ALONE[name, dtype] = trained(case, dtype, steps, Division())
        alone = ALONE[name, dtype]
        found["differences"].append([name, grid, str(dtype), farthest(several, alone)])
        found["alike"].append([name, grid, several["alike"]])
        if dtype == torch.float64:
            found["held"].append([name, grid, several["held"], alone["held"]])
            found["dead"].append([name, alone["metrics"]["dead"]])


def sent_a_step(n_latents: int, division: Division) -> int:
    """Bytes that this rank hands over in a step of a TopK SAE whose latents are divided."""
    running = Trainer(TopKSAE(8, n_latents, k=3), TrainingConfig(batch_size=ROWS), 100 * ROWS)
    x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(0))
    running.sae.initialise(x)
    running.divide(division)
    running.step(x)
    groups = {id(group): group for group in (division.rows, division.latents, division.every)}.values()
    before = sum(group.sent for group in groups)
    running.step(x)
    return sum(group.sent for group in groups) - before


def said(call: Any) -> str:
    try:
        call()
    except MonosemError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main(folder: Path) -> None:
    with working_together() as every:
        found: dict[str, Any] = {"differences": [], "held": [], "dead": [], "alike": []}
        pair = every.subgroup([[0, 1], [2, 3]])
        of_two = "two, by rows" if every.rank < 2 else "two, by latents"
        two, four = Division.of(pair, 1 if every.rank < 2 else 2), Division.of(every, 2)
        for name, case in CASES.items():
            compare(name, case, of_two, two, found)
            compare(name, case, "four, two by two", four, found)
        by_rows, by_latents = Division.of(every, 1), Division.of(every, 4)
        for name in ("topk", "batchtopk"):
            compare(name, CASES[name], "four, by rows", by_rows, found)
            compare(name, CASES[name], "four, by latents", by_latents, found)
        for name, settings in (("resampled", RESAMPLED), ("ghosts", GHOSTS)):
            compare(name, (TopKSAE, {"k": 3}, settings), "four, by rows", by_rows, found)
        found["sent"] = [sent_a_step(n, by_latents) for n in (64, 64, 4096)]
        (folder / f"{every.rank}.json").write_text(json.dumps(found))
        passes(every, found, folder)
        bad_input(every, found, folder)


def passes(every: Group, found: dict[str, Any], folder: Path) -> None:
    """Into `found`: whether a store, a harvest and an evaluation of all are those of one process."""
    model, hook, quiet = load_model(sys.argv[2]), "resid_post.0", {"progress": False}
    model.contexts_at_once = lambda length: max(1, 256 // length)  # little text is several batches for each
    sae = TopKSAE(model.d_model, 64, k=4)
    sae.initialise(torch.randn(256, model.d_model, generator=torch.Generator().manual_seed(0)))

    def all_of(where: Path) -> tuple[Any, Any]:
        store_activations(model, hook, path=where / "acts", tokens=3000, shard_rows=256, window_shards=4, **quiet)
        features = harvest(sae, where / "features", model, hook, tokens=3000, minutes=0, **quiet)
        return features, evaluate(sae, model, hook, tokens=3000, loss_tokens=700, **quiet)

    features, report = all_of(folder / "several")
    if every.first:
        with by_itself():
            expected, report_of_one = all_of(folder / "one")
        names = sorted(path.relative_to(folder / "one") for path in (folder / "one" / "acts").rglob("*.safetensors"))
        pairs = [[folder / which / name for which in ("one", "several")] for name in names]
        found["same bytes"] = [one.read_bytes() == other.read_bytes() for one, other in pairs]
        stores = [features.path, expected.path]
        (counted, examples), (counted_by_one, examples_of_one) = (
            [pq.read_table(path / name) for name in ("features", "examples")] for path in stores
        )
        found["features"] = counted["count"].equals(counted_by_one["count"]) and examples.equals(examples_of_one)
        found["fired"] = sum(counted["count"].to_pylist())
        found["reports"] = [{name: list(one[name]) for name in one.metrics} for one in (report, report_of_one)]
    every.wait()


def bad_input(every: Group, found: dict[str, Any], folder: Path) -> None:
    """What is said of what cannot be done; the last of it ends the job."""
    x, other = (torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, every.rank // 3))

    def trying(n_latents: int = 24, x: torch.Tensor = x, path: Path | None = None, **settings: Any) -> str:
        config = TrainingConfig(**{"batch_size": 16, **settings})
        return said(lambda: fit(TopKSAE(8, n_latents, k=3), x, tokens=32, config=config, path=path, progress=False))

    tries = {
        "three": lambda: trying(latent_ranks=3),
        "batch": lambda: trying(batch_size=18),
        "width": lambda: trying(26, latent_ranks=4),
        "files": lambda: trying(x=other),
        "in use": lambda: trying(path=folder / "used"),
    }
    found["said"] = {}
    for name, attempt in tries.items():
        found["said"][name] = attempt()
        (folder / f"{every.rank}.json").write_text(json.dumps(found))
        if name == "in use":
            os._exit(2)  # as the command line ends


if __name__ == "__main__":
    torch.set_num_threads(1)
    load_model(sys.argv[2])
    ended(forked(4, lambda: main(Path(sys.argv[1]))))
