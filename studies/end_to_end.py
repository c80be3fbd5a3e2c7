"""Fewer features end to end at equal cross-entropy, and how does their geometry differ?

    python studies/end_to_end.py [--output studies] [--tokens 60000] [--quick]

One pass over the bundled text trains dictionaries of one place of the bundled model on the same batches: by squared
error (local, the control), end to end (KL), and end to end + downstream (KL and later activations, weights as
published), at several k; at one k with a second seed. All are then spliced in on held-out text.

Rules, written before looking. At equal cross-entropy a kind needs fewer features if the number of features a token with
which local dictionaries (interpolated in log k) reach its cross-entropy is larger than its own, with the whole 95 %
interval (documents drawn anew), at every k; "half as many" if the lower ends are above 2. The published claim is fewer
than half (Braun et al., Identifying Functionally Important Features with End-to-End Sparse Dictionary Learning, 2024).
Geometry: for every living latent the largest cosine with a living latent of another dictionary, both seeds different.
A kind finds other directions than local ones if these cosines with a local dictionary are below those of two local
dictionaries, and is less stable if those of its own two seeds are, with whole intervals (latents drawn anew); as many
random directions are the null. Writes end_to_end.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from smollm2 import Estimate, difference, estimate

import monosem as ms
from monosem.evaluation.report import EvaluationReport
from monosem.intervals import Drawn

HOOK, LATENTS, BATCH = "resid_post.1", 768, 512
KINDS = {"local": (2, 4, 8, 16, 32, 64), "end to end": (4, 8, 16), "+ downstream": (4, 8, 16)}
TWICE = 8
COLOURS = {"local": "#555555", "end to end": "#1f6f8b", "+ downstream": "#b5532a"}


def trained(model: Any, kinds: dict[str, tuple[int, ...]], tokens: int) -> dict[str, ms.SAE]:
    """All of them, from one pass."""
    losses = {
        "local": None,
        "end to end": ms.EndToEnd(model),
        "+ downstream": ms.EndToEnd(model, downstream=True),
    }
    saes: dict[str, ms.SAE] = {}
    loss: dict[str, ms.EndToEnd | None] = {}
    for kind, ks in kinds.items():
        for k, seed in [*((k, 0) for k in ks), (TWICE, 1)]:
            name = f"{kind} {k}" + (" again" if seed else "")
            saes[name], loss[name] = ms.TopKSAE(model.d_model, LATENTS, k=k, seed=seed), losses[kind]
    config = ms.TrainingConfig(batch_size=BATCH)
    ms.train_together(saes, ms.activations(model, HOOK, buffer_tokens=32_768), tokens=tokens, loss=loss, config=config)
    return saes


def draws(report: EvaluationReport, name: str) -> np.ndarray:
    """The cross-entropy of a column, for documents drawn anew; the value itself first."""
    found = report.columns[name]["ce"]
    assert isinstance(found, Drawn)
    return np.concatenate([[found.value], found.draws])


def needed(report: EvaluationReport, kind: str, k: int, ks: tuple[int, ...]) -> Estimate:
    """For one feature of a kind, how many local ones reach its cross-entropy; infinite where none of them does."""
    own, local = draws(report, f"{kind} {k}"), np.stack([draws(report, f"local {other}") for other in ks])
    reached = np.array(
        [
            np.inf if y < line.min() else 2 ** np.interp(-y, -line, np.log2(ks))
            for y, line in zip(own, np.minimum.accumulate(local.T, axis=1), strict=True)
        ]
    )
    low, high = np.quantile(reached[1:], [0.025, 0.975], method="lower")
    return Estimate(reached[0] / k, low / k, high / k)


def directions(report: EvaluationReport, sae: ms.SAE, name: str) -> torch.Tensor:
    """Unit directions of living latents."""
    alive = torch.from_numpy(report.rates[name] > 0)
    return torch.nn.functional.normalize(sae.decoder_directions()[alive], dim=-1)


def nearest(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    """For every row of a, the largest cosine with a row of b."""
    return (a @ b.T).amax(1).numpy()


def cosines(report: EvaluationReport, saes: dict[str, ms.SAE]) -> dict[str, np.ndarray]:
    """Largest cosines of pairs of dictionaries of different seeds."""
    rows = {
        (kind, again): directions(report, saes[name := f"{kind} {TWICE}{again}"], name)
        for kind in KINDS
        for again in ("", " again")
    }
    local = rows["local", ""]
    random = torch.nn.functional.normalize(torch.randn(local.shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = {f"{kind}, two seeds": nearest(rows[kind, " again"], rows[kind, ""]) for kind in KINDS}
    found |= {f"{kind} and local": nearest(rows[kind, " again"], local) for kind in KINDS if kind != "local"}
    return found | {"local and random": nearest(local, random)}


def shown(value: Estimate) -> str:
    return (
        "more than the largest" if np.isinf(value.mean) else f"{value.mean:.2f} ({value.low:.2f} to {value.high:.2f})"
    )


def verdict(ratios: dict[str, dict[int, Estimate]], found: dict[str, np.ndarray]) -> str:
    """What the figures say, whichever way they have come out."""
    parts: list[str] = []
    for kind, by_k in ratios.items():
        lows = [one.low for one in by_k.values()]
        fewer = "fewer than half as many" if min(lows) > 2 else "fewer" if min(lows) > 1 else "not at every k fewer"
        said = "; ".join(f"k = {k}: {shown(one)}" for k, one in by_k.items())
        parts.append(
            f"{kind} needs {fewer} features a token than local at equal cross-entropy (local ones for one: {said})"
        )
    for kind in ratios:
        others = difference(found[f"{kind} and local"], found["local, two seeds"])
        seeds = difference(found[f"{kind}, two seeds"], found["local, two seeds"])
        finds = "finds other directions" if others.high < 0 else "does not find other directions"
        stable = "is less stable" if seeds.high < 0 else "is not less stable"
        parts.append(
            f"{kind} {finds} than local (largest cosines with it {others.text('+.2f')} against two local ones), and "
            f"{stable} over seeds ({seeds.text('+.2f')})"
        )
    return ". ".join(part[0].upper() + part[1:] for part in parts) + "."


def draw(path: Path, report: EvaluationReport, kinds: dict[str, tuple[int, ...]], found: dict[str, np.ndarray]) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.4))
    clean = float(report.facts["ce_clean"])
    for kind, ks in kinds.items():
        values = [report.columns[f"{kind} {k}"]["ce"] for k in ks]
        ends = np.array([[v.value - (v.low or v.value), (v.high or v.value) - v.value] for v in values]).T
        axes[0].errorbar(ks, [v.value - clean for v in values], ends, fmt="o-", ms=4, color=COLOURS[kind], label=kind)
    axes[0].set(xscale="log", ylim=(0, None), xlabel="features a token", ylabel="cross-entropy above the model's, nats")
    axes[0].set_xticks(kinds["local"], [str(k) for k in kinds["local"]])
    axes[0].minorticks_off()
    axes[0].legend(frameon=False, fontsize=8)
    for row, (name, values) in enumerate(reversed(found.items())):
        one = estimate(values)
        colour = COLOURS.get(name.split(",")[0].split(" and")[0], "0.7")
        axes[1].barh(row, one.mean, xerr=[[one.mean - one.low], [one.high - one.mean]], color=colour, height=0.6)
    axes[1].set_yticks(range(len(found)), list(reversed(found)), fontsize=8)
    axes[1].set(xlabel="largest cosine, mean over living latents", xlim=(0, 1))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=int, default=60_000)
    parser.add_argument("--quick", action="store_true", help="a few of everything, to try whether it runs")
    given = parser.parse_args()
    start, model = time.perf_counter(), ms.load_model("bundled")
    kinds = {kind: tuple(k for k in ks if not given.quick or k in (4, TWICE)) for kind, ks in KINDS.items()}
    tokens = 4 * BATCH if given.quick else given.tokens
    saes = trained(model, kinds, tokens)
    measured = 2048 if given.quick else 16_384
    report = ms.evaluate(saes, model, tokens=2 * measured, loss_tokens=measured, controls=False)
    ratios = {
        kind: {k: needed(report, kind, k, kinds["local"]) for k in ks} for kind, ks in kinds.items() if kind != "local"
    }
    found = cosines(report, saes)
    said = verdict(ratios, found)
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "end_to_end.svg", report, kinds, found)
    lines = [
        "| | features a token | cross-entropy | FVU | living latents | local ones for one |",
        "|---|---|---|---|---|---|",
    ]
    for name in saes:
        kind, k = name.removesuffix(" again").rsplit(" ", 1)
        one, alive = report.columns[name], int((report.rates[name] > 0).sum())
        ratio = shown(ratios[kind][int(k)]) if kind in ratios and not name.endswith("again") else ""
        ce = one["ce"]
        lines.append(
            f"| {name} | {k} | {ce.value:.3f} ({ce.low:.3f} to {ce.high:.3f}) | {one['fvu'].value:.3f} | {alive} "
            f"| {ratio} |"
        )
    cosine = ["| | largest cosine, mean | above 0.9 |", "|---|---|---|"]
    cosine += [f"| {name} | {estimate(v).text('.3f')} | {(v > 0.9).mean():.0%} |" for name, v in found.items()]
    ends = {name: float(report.facts[f"ce_{name}"]) for name in ("clean", "mean")}
    parts = [
        "# Fewer features end to end at equal cross-entropy, and how does their geometry differ?",
        "Written by `python studies/end_to_end.py`, as it came out.",
        f"**{said}**",
        "![cross-entropy by features a token, and cosines between dictionaries](end_to_end.svg)",
        f"{len(saes)} TopK dictionaries of {LATENTS} latents at {HOOK} of the bundled model, {tokens:,} tokens each "
        f"(few: `--tokens` gives more), on the same batches. The model's cross-entropy is {ends['clean']:.3f} nats, "
        f"with the mean in that place {ends['mean']:.3f}; {measured:,} held-out tokens. Intervals: 95 %, "
        "documents or latents drawn anew. `again`: another seed.",
        "## Cross-entropy\n\n" + "\n".join(lines),
        "The last column says how many features a token a local dictionary needs for each of this one's, to reach its "
        "cross-entropy; `more than the largest`: none of them does.",
        "## Directions\n\n" + "\n".join(cosine),
        f"k = {TWICE}; of every living latent the largest cosine with a living one of a dictionary of another seed.",
    ]  # fmt: skip
    (given.output / "end_to_end.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{time.perf_counter() - start:.0f} s; {given.output / 'end_to_end.md'}")


if __name__ == "__main__":
    main()
