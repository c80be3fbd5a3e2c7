"""A scaling law as a table and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table

from monosem.analysis.scaling.best import rounded
from monosem.files import replacing

ScalingLaw = Any
"""That of law.py, which shows itself by what is here."""
ORANGE, BLUE, GREY = "#e07b00", "#2166ac", "#777777"
MOST_CURVES = 7
WIDTH = 80
"""Of a table, so that its title is one line."""


def table(law: ScalingLaw) -> Table:
    """The parameters, with intervals, and how well they fit."""
    n0, d0 = (rounded(x) for x in law.middle)
    found = Table(
        title=f"loss = floor + a (latents / {n0})^-alpha + b (tokens / {d0})^-beta",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        min_width=WIDTH,
    )
    found.title_justify = found.caption_justify = "left"
    for column in ("", "value", "95 % interval"):
        found.add_column(column, justify="left" if not column else "right", no_wrap=True)
    words = {
        "floor": "floor, the loss without end",
        "a": f"a, lost for want of latents at {n0}",
        "alpha": "alpha",
        "b": f"b, lost for want of tokens at {d0}",
        "beta": "beta",
    }
    for name, said in words.items():
        value, low, high = law[name]
        found.add_row(said, f"{value:.4g}", f"{low:.4g} - {high:.4g}")
    missed = "too few smaller runs to tell" if np.isnan(law.held_out_error) else f"{law.held_out_error:.1%}"
    found.caption = (
        f"{len(law.losses)} dictionaries; {law.explained:.1%} of the variance of log loss explained; the largest, "
        f"foretold by the smaller: error {missed}."
    )
    return found


def draw(law: ScalingLaw, path: Path) -> None:
    """Left: loss by width, a curve for each compute that was swept. Right: the plane of width and tokens."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    _iso_compute(left, law)
    _plane(right, law)
    verdict = f"too poor to recommend: {law.too_poor}" if law.too_poor else f"{law.explained:.1%} explained"
    figure.suptitle(f"Scaling of {len(law.losses)} dictionaries: {verdict}", x=0.01, ha="left", fontsize=11)
    with rc_context({"svg.hashsalt": "monosem"}), replacing(path) as new:
        figure.savefig(new, metadata={"Date": None}, format="svg")


def _levels(law: ScalingLaw) -> list[float]:
    """Each compute of the sweep that several dictionaries have, from small to large; of many, some."""
    values, counts = np.unique(np.round(np.log2(law.compute), 2), return_counts=True)
    shared = values[counts > 1] if (counts > 1).any() else values
    some = shared[np.unique(np.linspace(0, len(shared) - 1, MOST_CURVES).round().astype(int))]
    return [float(2.0**x) for x in some]


def _iso_compute(axes: Any, law: ScalingLaw) -> None:
    from matplotlib import colormaps

    levels = _levels(law)
    widths = np.geomspace(law.n_latents.min() / 2, law.n_latents.max() * 2, 100)
    for place, compute in enumerate(levels):
        colour = colormaps["viridis"](0.85 * place / max(1, len(levels) - 1))
        axes.plot(widths, law.loss(widths, compute / widths), color=colour, linewidth=1.2)
        own = np.abs(np.log2(law.compute / compute)) < 0.02
        axes.plot(law.n_latents[own], law.losses[own], "o", color=colour, markersize=5, label=f"{compute:.2g}")
    lowest, highest = law.losses.min(), law.losses.max()
    axes.set(xscale="log", yscale="log", xlabel="latents", ylabel="held-out loss")
    axes.set_ylim(lowest / 1.15, highest * 1.15)
    ticks = np.unique(law.n_latents)
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks], minor=False)
    axes.set_xticks([], minor=True)
    _plain(axes.yaxis)
    axes.legend(frameon=False, fontsize=8, title="compute, latents x tokens", title_fontsize=8)


def _plane(axes: Any, law: ScalingLaw) -> None:
    widths = np.geomspace(law.n_latents.min() / 2, law.n_latents.max() * 2, 80)
    lengths = np.geomspace(law.tokens.min() / 2, law.tokens.max() * 2, 80)
    loss = law.loss(widths[:, None], lengths[None, :])
    lines = axes.contour(widths, lengths, loss.T, levels=8, colors=GREY, linewidths=0.7)
    axes.clabel(lines, fmt="%.3g", fontsize=7)
    axes.plot(law.n_latents, law.tokens, "o", color=BLUE, markersize=4, label="trained")
    if law.too_poor is None:
        budgets = np.geomspace(law.compute.min(), law.compute.max() * 4, 24)
        best = [law.best_at(float(c)) for c in budgets]
        path = np.array([[one.n_latents.value, one.tokens.value] for one in best])
        axes.plot(path[:, 0], path[:, 1], color=ORANGE, linewidth=1.6, label="best for its compute")
        ends = np.array([[one.n_latents.low, one.n_latents.high] for one in best], float)
        for side in ends.T:
            axes.plot(side, budgets / side, color=ORANGE, linewidth=0.7, linestyle=":")
    axes.set(xscale="log", yscale="log", xlabel="latents", ylabel="tokens")
    axes.set(xlim=(widths[0], widths[-1]), ylim=(lengths[0], lengths[-1]))
    ticks = np.unique(law.n_latents)
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
    axes.set_xticks([], minor=True)
    ticks = np.unique(law.tokens)
    axes.set_yticks(ticks, [rounded(n) for n in ticks])
    axes.set_yticks([], minor=True)
    axes.legend(frameon=False, fontsize=8, loc="upper left")


def _plain(axis: Any) -> None:
    for formatter in (axis.set_major_formatter, axis.set_minor_formatter):
        formatter("{x:.2g}")
    axis.set_tick_params(which="both", labelsize=8)
