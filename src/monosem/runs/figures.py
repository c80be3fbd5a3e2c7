"""The figures of a run, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from monosem.evaluation import EvaluationReport
from monosem.files import replacing

ORANGE, BLUE, GREY = "#e07b00", "#2166ac", "#777777"
MARGINS = (0.14, 0.14, 0.82, 0.78)
"""Left, bottom, width and height of the axes: room for numbers of six letters."""


def write_figures(folder: Path, history: list[dict[str, float]], report: EvaluationReport) -> list[Path]:
    """Write loss.png, firing_rates.png and l0.png."""
    import matplotlib

    matplotlib.use("Agg")
    written: list[Path] = []
    figures = {"loss": _loss, "firing_rates": _firing_rates, "l0": _l0}
    for name, draw in figures.items():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 3.6))  # with a layout that is reckoned each would take twice as long
        axes = figure.add_axes(MARGINS)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, history, report)
        with replacing(folder / f"{name}.png") as new:
            figure.savefig(new, dpi=150, format="png")
        written.append(folder / f"{name}.png")
    return written


def _loss(axes: Any, history: list[dict[str, float]], report: EvaluationReport) -> None:
    from matplotlib.ticker import EngFormatter

    tokens = [row.get("tokens", np.nan) for row in history]
    axes.plot(tokens, [row.get("fvu", np.nan) for row in history], color=BLUE, label="FVU, training batches")
    axes.axhline(report["fvu"].value, color=ORANGE, linestyle="--", label="FVU, held-out text")
    if "PCA" in report.columns:
        axes.axhline(report.columns["PCA"]["fvu"].value, color=GREY, linestyle=":", label="PCA, as many components")
    axes.set(xlabel="tokens", ylabel="fraction of variance unexplained", yscale="log")
    for axis_ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        axis_ticks("{x:.3g}")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.legend(frameon=False)


def _firing_rates(axes: Any, _: list[dict[str, float]], report: EvaluationReport) -> None:
    alive = report.firing_rates[report.firing_rates > 0]
    rows = int(report.facts["rows"])
    bins = np.logspace(np.log10(1 / rows), 0, 60)
    counts, edges = np.histogram(alive, bins)
    axes.stairs(counts, edges, fill=True, color=ORANGE)
    dead = int((report.firing_rates == 0).sum())
    axes.set(xscale="log", xlabel=f"firing rate ({rows:,} tokens)", ylabel="latents")
    axes.set_title(f"{len(alive):,} latents alive, {dead:,} never fired", fontsize=10, loc="left")


def _l0(axes: Any, _: list[dict[str, float]], report: EvaluationReport) -> None:
    counts = report.l0_counts
    used = np.flatnonzero(counts)
    share = counts / counts.sum()
    axes.stairs(share, np.arange(len(counts) + 1) - 0.5, fill=True, color=ORANGE)
    axes.set(xlabel="latents on per token (L0)", ylabel="share of tokens", xlim=(used.min() - 1.5, used.max() + 1.5))
    axes.set_title(f"mean L0 {report['l0'].value:.1f}", fontsize=10, loc="left")
