"""Do the latents of a model that plays Othello tell the squares of the board?

    python studies/board_state.py [--output studies] [--tokens 400000] [--games 2000]

The shipped model of Othello on 6 x 6 squares has seen moves alone; the board that they lead to is known at every
position. Trains a dictionary of 512 latents at every layer, 24 on at a time, and at one layer others of other sizes and
numbers, on random games; then asks which latents tell which squares (`ms.board_scores`), beside linear probes, random
dictionaries, and what knows nothing of the game. Latents and thresholds are chosen on half of the games.

Rules, written before looking: dictionaries know of the board if the best of them reconstructs it better than a random
one and than what knows nothing does, at any layer, intervals apart; they know all that is there to be read in straight
lines if they come within 0.05 of the linear probes. (Published, on 8 x 8: a reconstruction of 0.95 at most, below that
of linear probes: Karvonen and others, 2024, arXiv:2408.00113.)
Writes board_state.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import monosem as ms
from monosem.evaluation.board import KINDS, NOTHING, PROBES, BoardReport
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.synthetic.othello import SIDE

LATENTS, K, LAYER = 512, 24, 3
OTHERS = {"k = 8": (512, 8), "k = 72": (512, 72), "128 latents, k = 24": (128, 24), "2,048 latents, k = 24": (2048, 24)}
"""At `LAYER`, in place of 512 latents and k = 24."""
TRAINING, ASKED = 1, 2
"""Seeds of the games."""


def trained(model: SubjectModel, tokens: int) -> dict[tuple[int, str], SAE]:
    """By layer and name: all on one pass."""
    sizes = {(layer, f"k = {K}"): (LATENTS, K) for layer in range(model.n_layers)}
    sizes |= {(LAYER, name): size for name, size in OTHERS.items()}
    games = ms.othello_games(tokens // 31, TRAINING)
    hooks = [f"resid_post.{layer}" for layer in range(model.n_layers)]
    source: Any = ms.activations(model, hooks, text=games.text, packing=False, buffer_tokens=32_768)
    saes: dict[str, SAE] = {
        f"{layer} {name}": ms.TopKSAE(model.d_model, n, k=k) for (layer, name), (n, k) in sizes.items()
    }
    views = {f"{layer} {name}": source.select(f"resid_post.{layer}") for layer, name in sizes}
    ms.train_together(saes, views, tokens=tokens)
    return {key: saes[f"{key[0]} {key[1]}"] for key in sizes}


def asked(model: SubjectModel, saes: dict[tuple[int, str], SAE], games: int) -> dict[int, BoardReport]:
    """What is known at every layer."""
    return {
        layer: ms.board_scores(
            {name: sae for (at, name), sae in saes.items() if at == layer},
            model,
            f"resid_post.{layer}",
            games=games,
            seed=ASKED,
        )
        for layer in range(model.n_layers)
    }


def draw(path: Path, reports: dict[int, BoardReport]) -> None:
    """Reconstruction by layer; coverage and reconstruction at one; and where the latents of stones are."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 5, figsize=(15, 3.4), width_ratios=[1.5, 1.9, 1, 1, 1])
    layers = list(reports)
    for name, label in (
        (PROBES, "linear probes"),
        (f"k = {K}", "SAE"),
        (f"random k = {K}", "random SAE"),
        (NOTHING, "knows nothing"),
    ):
        found = [reports[layer].columns[name]["board_reconstruction"] for layer in layers]
        axes[0].errorbar(layers, [f.value for f in found], yerr=_bars(found), marker="o", markersize=3, label=label)
    axes[0].set(title="Board reconstruction by layer", xlabel="layer", ylabel="F1 of a board", ylim=(0, 1))
    axes[0].set_xticks(layers)
    axes[0].legend(frameon=False, fontsize=7, loc=(0.5, 0.52))
    columns = reports[LAYER].columns
    names = [name for name in columns if not name.startswith("random") or name == f"random k = {K}"]
    for offset, metric in ((0.2, "coverage"), (-0.2, "reconstruction")):
        found = [columns[name][f"board_{metric}"] for name in names]
        places = np.arange(len(names))[::-1] + offset
        axes[1].barh(places, [f.value for f in found], 0.38, xerr=_bars(found), label=metric)
    axes[1].set_yticks(np.arange(len(names))[::-1], names, fontsize=7)
    axes[1].set(title=f"After layer {LAYER}", xlabel="F1", xlim=(0, 1))
    axes[1].legend(frameon=False, fontsize=7)
    best = best_of(reports[LAYER])
    for axis, kind, f1 in zip(axes[2:], KINDS, reports[LAYER].scores[best].f1.reshape(3, SIDE, SIDE), strict=True):
        axis.imshow(f1, vmin=0, vmax=1, cmap="viridis")
        for place, value in np.ndenumerate(f1):
            shown = "" if np.isnan(value) else f"{value:.2f}".removeprefix("0")
            axis.text(*place[::-1], shown, ha="center", va="center", fontsize=6, color="w" if value < 0.6 else "k")
        axis.set_title(f"{kind}: F1 of its best latent\n({best})", fontsize=8)
        axis.set_xticks(range(SIDE), list("abcdef"))
        axis.set_yticks(range(SIDE), [str(row + 1) for row in range(SIDE)])
    for axis in axes[:2]:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def _bars(found: list[Interval]) -> np.ndarray:
    ends = [(f.value - (f.low or f.value), (f.high or f.value) - f.value) for f in found]
    return np.array(ends).T


def dictionaries(report: BoardReport) -> list[str]:
    return [name for name in report.columns if name not in (PROBES, NOTHING) and not name.startswith("random")]


def best_of(report: BoardReport) -> str:
    return max(dictionaries(report), key=lambda name: report.columns[name]["board_reconstruction"].value)


def said(interval: Interval) -> str:
    return f"{interval.value:.2f} ({interval.low or interval.value:.2f} to {interval.high or interval.value:.2f})"


def verdict(reports: dict[int, BoardReport]) -> str:
    """What the figures say, whichever way they have come out."""
    layer = max(reports, key=lambda at: reports[at].columns[best_of(reports[at])]["board_reconstruction"].value)
    columns, name = reports[layer].columns, best_of(reports[layer])
    sae, chance, nothing, probe = (
        columns[column]["board_reconstruction"] for column in (name, f"random {name}", NOTHING, PROBES)
    )
    knows = sae.low is not None and sae.low > max(chance.high or 1, nothing.high or 1)
    gap = probe.value - sae.value
    covered = {column: columns[column]["board_coverage"] for column in (name, f"random {name}", NOTHING, PROBES)}
    stones = {column: columns[column]["board_reconstruction_stones"].value for column in (name, PROBES)}
    found = (
        "Dictionaries know of the board"
        if knows
        else "Dictionaries do not tell the board better than what knows nothing"
    )
    as_probes = "within 0.05 of the linear probes" if gap <= 0.05 else f"{gap:.2f} below the linear probes"
    over = "above" if covered[name].value > covered[NOTHING].value else "below"
    return (
        f"{found}: the best ({name}, after layer {layer}) reconstructs it with an F1 of {said(sae)}, a random one with "
        f"{said(chance)}, what knows nothing with {said(nothing)}; that is {as_probes} ({said(probe)}). Of stones "
        f"alone {stones[name]:.2f}, probes {stones[PROBES]:.2f}. Its coverage is {said(covered[name])}, a random one's "
        f"{said(covered[f'random {name}'])}, {over} that of classifiers which are always on "
        f"({said(covered[NOTHING])}); probes have {said(covered[PROBES])}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--model", default="othello")
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--games", type=int, default=2000)
    given = parser.parse_args()
    start = time.perf_counter()
    model = ms.load_model(given.model)
    reports = asked(model, trained(model, given.tokens), given.games)
    seconds = time.perf_counter() - start
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "board_state.svg", reports)
    words = verdict(reports)
    rows = ["| after layer | | coverage | of stones | reconstruction | of stones |", "|---" * 6 + "|"]
    rows += [
        f"| {layer} | {name} | {' | '.join(said(interval) for interval in column.values())} |"
        for layer, report in reports.items()
        for name, column in report.columns.items()
    ]
    parts = [
        "# Do the latents of a model that plays Othello tell the squares of the board?",
        "Written by `python studies/board_state.py`, as it came out.",
        f"**{words}**",
        "![coverage and board reconstruction, beside probes and controls](board_state.svg)",
        f"TopK SAEs of the residual stream, {given.tokens:,} tokens of random games; k = {K} of {LATENTS} latents "
        f"where nothing else is said. Asked on {given.games // 2:,} games, chosen on as many others; in brackets 95 % "
        "intervals over games. Coverage: mean F1, over 36 squares of mine, of theirs, and empty, of the best latent "
        "above a threshold; reconstruction: F1 of the board that all classifiers of precision 0.95 draw. Knows "
        "nothing: always on, and the commonest state of every square. A latent that is on one time in ten where a "
        "property holds has a low F1 however precise it is: sparse dictionaries fall below what is always on, random "
        "ones most, and "
        "the reconstruction is the fairer test.",
        "\n".join(rows),
    ]
    (given.output / "board_state.md").write_text("\n\n".join(parts) + "\n")
    print(f"{words}\n{seconds:.0f} s; {given.output / 'board_state.md'}")


if __name__ == "__main__":
    main()
