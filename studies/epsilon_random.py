"""Are the errors of dictionaries worse than random errors of the same size, layer by layer?

    python studies/epsilon_random.py [--output studies] [--tokens 200000] [--measured 16000]

Trains a dictionary at every layer of the bundled model, on one pass, and puts in its place on held-out text: its
reconstruction; a random point as far from the activation; a random point as far away, of the same norm and at the same
angle (what random errors lack is shrinkage); the reconstruction at the norm of the activation. Compared is how far the
predictions move (KL from the clean ones), by layer and by position.

Rule, written before looking: errors are called pathological at a layer if their KL is more than that of both random
errors, with the interval of the ratio above 1. (Published, GPT-2 small, residual stream: 2.2 to 4.5 times a random
error of the same length: Gurnee, 2024.)
Writes epsilon_random.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import monosem as ms
from monosem.evaluation import EvaluationReport
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.sae import SAE

LATENTS, K = 1024, 24
RATIOS = {"kl_over_random": "as far away", "kl_over_random_cosine": "as far away, at the same angle"}
KLS = {
    "kl": "reconstruction",
    "kl_norm_corrected": "at the norm of x",
    "kl_random": "random, as far away",
    "kl_random_cosine": "random, same angle too",
}


def trained(model: SubjectModel, tokens: int) -> dict[str, SAE]:
    """By hook point, all on one pass."""
    hooks = [f"resid_post.{layer}" for layer in range(model.n_layers)]
    source: Any = ms.activations(model, hooks, text="bundled", buffer_tokens=32_768)
    saes: dict[str, SAE] = {hook: ms.TopKSAE(model.d_model, LATENTS, k=K) for hook in hooks}
    ms.train_together(saes, {hook: source.select(hook) for hook in hooks}, tokens=tokens)
    return saes


def draw(path: Path, reports: dict[str, EvaluationReport]) -> None:
    """Ratios and KLs by layer, ratios by position."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.5))
    layers = np.arange(len(reports))
    for offset, (key, label) in zip((-0.08, 0.08), RATIOS.items(), strict=True):
        found = [report[key] for report in reports.values()]
        axes[0].errorbar(
            layers + offset, [f.value for f in found], yerr=bars(found), fmt="o", capsize=3, label=f"random: {label}"
        )
    axes[0].axhline(1, color="0.7", linewidth=1)
    axes[0].set(title="KL over that of a random error", xlabel="layer", ylabel="ratio of KLs", ylim=(0, None))
    for number, (key, label) in enumerate(KLS.items()):
        found = [report[key] for report in reports.values()]
        places = layers + 0.2 * (number - 1.5)
        axes[1].bar(places, [f.value for f in found], 0.19, yerr=bars(found), label=label)
    axes[1].set(title="How far predictions move", xlabel="layer", ylabel="KL, nats")
    for layer, report in enumerate(reports.values()):
        columns = report.tables["SAE"]["loss_by_position"].columns
        axes[2].plot(columns["position"], columns["KL over random"], label=f"layer {layer}")
    axes[2].axhline(1, color="0.7", linewidth=1)
    axes[2].set(title="By position", xlabel="position in the context", ylabel="ratio of KLs", ylim=(0, None))
    for axis in axes:
        axis.legend(frameon=False, fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:2]:
        axis.set_xticks(layers)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def bars(found: list[Interval]) -> np.ndarray:
    ends = [(f.value - (f.low or f.value), (f.high or f.value) - f.value) for f in found]
    return np.array(ends).T


def said(interval: Interval) -> str:
    return f"{interval.value:.2f} ({interval.low or interval.value:.2f} to {interval.high or interval.value:.2f})"


def verdict(reports: dict[str, EvaluationReport]) -> str:
    """What the figures say, whichever way they have come out."""
    worse = [
        layer for layer, report in enumerate(reports.values()) if all((report[key].low or 0) > 1 for key in RATIOS)
    ]
    ratios = [report["kl_over_random"].value for report in reports.values()]
    angles = [report["kl_over_random_cosine"].value for report in reports.values()]
    shrinkage = [1 - report["kl_norm_corrected"].value / report["kl"].value for report in reports.values()]
    n = len(reports)
    where = "at every layer" if len(worse) == n else f"at {len(worse)} of {n} layers ({', '.join(map(str, worse))})"
    called = f"Errors are pathological {where}" if worse else "Errors are at no layer worse than both random ones"
    return (
        f"{called}: their KL is {min(ratios):.1f} to {max(ratios):.1f} times that of a random error as large (by layer "
        f"{', '.join(f'{r:.1f}' for r in ratios)}), and {min(angles):.1f} to {max(angles):.1f} times that of one "
        f"at the same angle to the activation too. Reconstructions at the norm of the activation change that by "
        f"{min(shrinkage):.0%} to {max(shrinkage):.0%}, so that shrinkage is "
        f"{'not the cause' if max(shrinkage) < 0.3 else 'part of the cause'}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--measured", type=int, default=16_000)
    given = parser.parse_args()
    start = time.perf_counter()
    model = ms.load_model("bundled")
    reports = {
        hook: ms.evaluate(sae, model, tokens=given.measured, loss_tokens=given.measured, controls=False)
        for hook, sae in trained(model, given.tokens).items()
    }
    seconds = time.perf_counter() - start
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "epsilon_random.svg", reports)
    words = verdict(reports)
    rows = [f"| layer | FVU | {' | '.join(f'KL, {label}' for label in KLS.values())} | ratio | ratio, same angle |"]
    rows.append("|---" * (len(KLS) + 4) + "|")
    for layer, report in enumerate(reports.values()):
        cells = [f"{report['fvu'].value:.3f}", *(f"{report[key].value:.3f}" for key in KLS)]
        rows.append(f"| {layer} | {' | '.join([*cells, *(said(report[key]) for key in RATIOS)])} |")
    last = list(reports)[-1]
    table = reports[last].tables["SAE"].get("error_tokens")
    tokens = [] if table is None else table.columns["token"][:15]
    parts = [
        "# Are the errors of dictionaries worse than random errors of the same size?",
        "Written by `python studies/epsilon_random.py`, as it came out.",
        f"**{words}**",
        "![ratios of KLs by layer and position](epsilon_random.svg)",
        f"TopK SAEs of {LATENTS:,} latents, {K} on at a token, of the residual stream of the bundled model, "
        f"{given.tokens:,} tokens of training; {given.measured:,} tokens of held-out text; in brackets 95 % intervals "
        "over documents. Published (GPT-2 small): ratios of 2.2 to 4.5.",
        "\n".join(rows),
        f"At {last}, the error costs most beyond a random one after the tokens "
        + ", ".join(f"`{token.strip() or repr(token)}`" for token in tokens)
        + ".",
    ]
    (given.output / "epsilon_random.md").write_text("\n\n".join(parts) + "\n")
    print(f"{words}\n{seconds:.0f} s; {given.output / 'epsilon_random.md'}")


if __name__ == "__main__":
    main()
