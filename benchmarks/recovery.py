"""Every architecture on the same planted dictionary: how much of the truth does each recover?

    python benchmarks/recovery.py [--tokens 1000000] [--output docs/recovery.md] [--only topk relu ...]

New architectures appear by themselves. Prints a table and writes it as a page.
"""

import argparse
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from monosem.errors import MonosemError
from monosem.evaluation import Interval, random_recovery, recovery
from monosem.sae import SAE, SkipTranscoder, Transcoder
from monosem.synthetic import PlantedBatch, PlantedDictionary
from monosem.training import Trainer, TrainingConfig

N_FEATURES, D, L0 = 256, 64, 5
PLANTED: dict[str, Any] = {"l0": L0, "skew": 0.5, "correlation": 0.3, "noise": 0.02, "mean_norm": 2.0}
BATCH, HELD_OUT = 1024, 20_000
WISHES: dict[str, Any] = {"k": L0, "target_l0": L0}
"""Given to every architecture that has such a parameter."""
SETTINGS: dict[str, dict[str, Any]] = {
    "relu": {"coefficient": 0.025},
    "transcoder": {"d_out": D},
    "skip_transcoder": {"d_out": D},
    "cross_layer_transcoder": {"n_layers": 1},
}
"""Given to these beside the wishes, where they have such a parameter."""
COLUMNS = ("", "features found", "latents true", "matched at 0.9", "L0", "FVU", "seconds")


def settings_of(kind: type[SAE]) -> dict[str, Any]:
    """What this architecture is made with, beside its size."""
    wanted = {**WISHES, **SETTINGS.get(kind.architecture, {})}
    return {name: value for name, value in wanted.items() if name in {*kind.parameters_of(), "d_out"}}


def shaped(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The same rows for every source, where an architecture reads several."""
    return x if len(shape) == 1 else x[:, None].expand(len(x), *shape)


def measure(kind: type[SAE], planted: PlantedDictionary, tokens: int, seed: int) -> list[str]:
    """Train one architecture; its row of the table."""
    start = time.perf_counter()
    sae = kind(D, N_FEATURES, seed=seed, **settings_of(kind))
    transcoder = isinstance(sae, Transcoder)
    written = PlantedDictionary(N_FEATURES, D, seed=seed + 1).features if transcoder else planted.features

    def sides(batch: PlantedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        target = batch.codes.to_dense() @ written if transcoder else batch.x
        return shaped(batch.x, sae.in_shape), shaped(target, sae.out_shape)

    predicts = not sae.subtract_b_dec
    trainer = Trainer(sae, TrainingConfig(batch_size=BATCH), tokens)
    x, target = sides(planted.sample(16_384, seed=seed))
    sae.initialise(x, target if predicts else None)
    for batch in islice(planted.batches(BATCH, seed=seed), tokens // BATCH):
        x, target = sides(batch)
        trainer.step(x, target if predicts else None)
    seconds = time.perf_counter() - start
    x, target = sides(planted.sample(HELD_OUT, seed=seed + 1_000_000))
    with torch.no_grad():
        out = sae(x)
        fvu = (out.reconstruction - target).pow(2).sum() / (target - target.mean(0)).pow(2).sum()
        truth = written - skipped(sae, planted.features)
    found = recovery(sae.decoder_directions().flatten(1)[:, :D], truth)  # of several sources the first
    figures = [spelled(i) for i in (found.features, found.latents, found.matched)]
    return [*figures, f"{out.codes.l0().double().mean().item():.1f}", f"{fvu.item():.3f}", f"{seconds:.0f}"]


def skipped(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    """What a skip transcoder's linear path writes for these directions of its input; of others nothing."""
    if not isinstance(sae, SkipTranscoder):
        return torch.zeros(())
    rows = torch.cat([torch.zeros_like(x[:1]), x])
    codes = sae.encode(rows)
    path = sae.decode(codes, rows) - sae.decode(codes)
    return path[1:] - path[:1]


def spelled(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low:.3f} - {interval.high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", choices=sorted(SAE.registry), default=sorted(SAE.registry))
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs" / "recovery.md")
    options = parser.parse_args()
    planted = PlantedDictionary(N_FEATURES, D, seed=options.seed, **PLANTED)
    console, rows = Console(width=130), dict[str, list[str]]()
    for name in options.only:
        try:
            rows[name] = measure(SAE.registry[name], planted, options.tokens, options.seed)
        except MonosemError as error:
            rows[name] = [f"left out: {error}", *[""] * (len(COLUMNS) - 2)]
        console.print(f"{name}: {', '.join(rows[name])}", highlight=False, markup=False)
    chance = random_recovery(N_FEATURES, planted.features)
    rows["random directions"] = [*(spelled(i) for i in (chance.features, chance.latents, chance.matched)), "", "", ""]
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)
    options.output.write_text(page(rows, options.tokens))


def page(rows: dict[str, list[str]], tokens: int) -> str:
    """The table as a page."""
    lines = [f"| {' | '.join(cells)} |" for cells in (COLUMNS, ["---"] * len(COLUMNS))]
    lines += [f"| {' | '.join([name, *cells])} |" for name, cells in rows.items()]
    facts = ", ".join(f"{name} {value}" for name, value in PLANTED.items())
    return f"""# Recovery of planted dictionaries

{N_FEATURES} features in {D} dimensions ({facts}; `monosem.PlantedDictionary`);
every architecture with {N_FEATURES} latents, trained on the same {tokens:,} rows at default settings, with k or target
L0 = {L0} where it has one.
Written by `python benchmarks/recovery.py`.

Transcoders read the same rows and predict others: each feature writes another direction, which is what their decoder
must find; the skip transcoder's, less what its linear path already writes of it. A cross-layer transcoder of one layer
and a crosscoder of two equal sources are asked for the features themselves.

- *features found*: mean over true features of the largest cosine with any decoder row.
- *latents true*: mean over latents of the largest cosine with any true feature.
- *matched at 0.9*: share of true features that a latent of their own matches with a cosine of 0.9 or more, paired one
  to one (Hungarian method).

In brackets 95 % bootstrap intervals, over features or latents.

{chr(10).join(lines)}
"""


if __name__ == "__main__":
    main()
