"""Clusters in the plane: which latent claims which region, and are rare clusters missed?

    python studies/clusters.py [--output studies] [--rows 200000]

Eight clusters on a circle (`ms.Clusters`), drawn equally often and by a power law (the rarest in 2.3 % of rows). TopK
with k = 1 and ReLU (L1), of four, eight and sixteen latents, three seeds each. A cluster is found if the latent that
tells it best from the others has an F1 over a half.
Rule, written before looking: rare clusters are missed if, of eight latents on the skewed data, the four commonest are
found more often than the four rarest, with the interval of the difference (over seeds and clusters) above 0.
Writes clusters.svg, in which every region has the colour of the latent that is strongest there, and clusters.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import monosem as ms
from monosem.evaluation import Interval, claimed_regions
from monosem.sae import SAE

WIDTHS, SEEDS, BATCH = (4, 8, 16), 3, 512
WORLDS = {"equally often": 0.0, "by a power law": 1.5}
KINDS: dict[str, Any] = {
    "TopK, k = 1": lambda width, seed: ms.TopKSAE(2, width, k=1, seed=seed),
    "ReLU, L1": lambda width, seed: ms.ReLUSAE(2, width, target_l0=1.0, seed=seed),
}


def trained(planted: ms.Clusters, make: Any, width: int, seed: int, rows: int) -> SAE:
    sae = make(width, seed)
    trainer = ms.Trainer(sae, ms.TrainingConfig(batch_size=BATCH, lr=2e-3), rows)
    sae.initialise(planted.sample(8192, seed=seed + 10).x)
    for done, batch in zip(range(0, rows, BATCH), planted.batches(BATCH, seed=seed), strict=False):
        trainer.step(batch.x[: rows - done])
    return sae


def best_f1(sae: SAE, planted: ms.Clusters) -> np.ndarray:
    """For each cluster, that of the latent which tells it best."""
    x, codes = planted.sample(8000, seed=99)
    with torch.no_grad():
        fired = (sae.encode(x).to_dense() > 0).double()
    on = (codes.to_dense() > 0).double()
    both = on.T @ fired
    return (2 * both / (on.sum(0)[:, None] + fired.sum(0)).clamp_min(1)).amax(1).numpy()


def over(values: np.ndarray, seed: int = 0) -> Interval:
    """A mean and its bootstrap interval."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--rows", type=int, default=200_000)
    options = parser.parse_args()
    found: dict[tuple[str, str, int], np.ndarray] = {}
    shown: dict[tuple[str, str, int], SAE] = {}
    worlds = {name: ms.Clusters(8, skew=skew) for name, skew in WORLDS.items()}
    for world, planted in worlds.items():
        for kind, make in KINDS.items():
            for width in WIDTHS:
                saes = [trained(planted, make, width, seed, options.rows) for seed in range(SEEDS)]
                key = (world, kind, width)
                shown[key], found[key] = saes[0], np.stack([best_f1(sae, planted) for sae in saes])
                print(*key, f"found {(found[key] > 0.5).mean():.2f}", flush=True)
    draw(options.output / "clusters.svg", worlds, shown)
    (options.output / "clusters.md").write_text(page(found, options.rows))
    print(verdict(found))


def apart(found: dict[tuple[str, str, int], np.ndarray], kind: str) -> Interval:
    """How much more often the commoner half is found than the rarer, of eight latents on skewed data."""
    of = (found["by a power law", kind, 8] > 0.5).astype(float)
    return over((of[:, :4] - of[:, 4:]).ravel())


def verdict(found: dict[tuple[str, str, int], np.ndarray]) -> str:
    parts = []
    for kind in KINDS:
        value = apart(found, kind)
        missed = value.low is not None and value.low > 0
        parts.append(
            f"{kind}: rare clusters are {'missed' if missed else 'not missed by the rule'}, the commoner four found "
            f"{value.value:+.2f} ({value.low:+.2f} to {value.high:+.2f}) more often than the rarer four"
        )
    return "; ".join(parts) + "."


def page(found: dict[tuple[str, str, int], np.ndarray], rows: int) -> str:
    lines = [f"| | | {' | '.join(f'{width} latents' for width in WIDTHS)} |", "|---" * (len(WIDTHS) + 2) + "|"]
    for world in WORLDS:
        for kind in KINDS:
            cells = []
            for width in WIDTHS:
                value = over((found[world, kind, width] > 0.5).astype(float).ravel())
                cells.append(f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})")
            lines.append(f"| {world} | {kind} | {' | '.join(cells)} |")
    table = "\n".join(lines)
    return f"""# Which latent claims which cluster?

Written by `python studies/clusters.py`, as it came out.

**{verdict(found)}**

![regions by the latent that claims them](clusters.svg)

Eight clusters on a circle, {rows:,} rows, {SEEDS} seeds; a region has the colour of the latent that is strongest there,
white where none fires; the points are of the data, the crosses where the decoder's rows point. In brackets 95 %
intervals, by drawing clusters and seeds anew.

## Share of clusters found

{table}
"""


def draw(path: Path, worlds: dict[str, ms.Clusters], shown: dict[tuple[str, str, int], SAE]) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(len(WORLDS) * len(KINDS), len(WIDTHS), figsize=(9, 12))
    rows = [(world, kind) for world in WORLDS for kind in KINDS]
    colours = plt.get_cmap("tab20")(range(20))
    for line, (world, kind) in zip(axes, rows, strict=True):
        for axis, width in zip(line, WIDTHS, strict=True):
            sae = shown[world, kind, width]
            latent = claimed_regions(sae, 1.5, 150).numpy()
            picture = np.where((latent >= 0)[..., None], colours[latent % 20], 1.0)
            axis.imshow(picture, extent=(-1.5, 1.5, -1.5, 1.5), origin="lower", alpha=0.45, rasterized=True)
            points = worlds[world].sample(600, seed=5).x
            axis.plot(*points.T, ".", color="0.15", markersize=1.5, rasterized=True)
            arrows = torch.nn.functional.normalize(sae.decoder_directions().detach())
            axis.plot(*arrows.T, "x", color="0.1", markersize=5)
            axis.set(xticks=[], yticks=[], title=f"{kind}, {width} latents", xlim=(-1.5, 1.5), ylim=(-1.5, 1.5))
        line[0].set_ylabel(world)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None}, dpi=80)


if __name__ == "__main__":
    main()
