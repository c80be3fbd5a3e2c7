"""The figures of a comparison of runs, as PNG."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monosem.evaluation import EvaluationReport
from monosem.evaluation.definitions import DEFINITIONS, GROUPS
from monosem.evaluation.directions import max_cosines, sampled, unit_rows
from monosem.evaluation.firing import DENSE
from monosem.evaluation.stability import MOST_LATENTS, SAME, seed_stability
from monosem.files import replacing
from monosem.intervals import Interval
from monosem.runs.comparison import Comparison
from monosem.runs.results import COLOURS
from monosem.sae import SAE
from monosem.work import each

LOSSES = {"fvu": "FVU, share of variance unexplained", "loss_recovered_mean": "loss recovered against the mean, share"}
GREY = "#777777"
CHANCE = 0.5
"""What a probe that knows nothing has, of AUROC and of accuracy on both sides alike."""


def draw_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the figures that the evaluations have data for; returns their paths.

    pareto, firing_rates, loss_by_position, probing, clusters, and of two or more dictionaries of one width stability.
    """
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    saes = {name: run.sae() for name, run in comparison.runs.items()}
    figures: dict[str, Callable[[Any, Comparison, dict[str, SAE]], bool]] = {
        "pareto": _pareto,
        "firing_rates": _firing_rates,
        "loss_by_position": _loss_by_position,
        "probing": _probing,
        "clusters": _clusters,
        "stability": _stability,
    }
    written: list[Path] = []
    for name, draw in each("drawing figures", list(figures.items()), unit="figures"):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4.2), layout="constrained")
        if draw(figure, comparison, saes):
            with replacing(folder / f"{name}.png") as new:
                figure.savefig(new, dpi=130, format="png")
            written.append(folder / f"{name}.png")
    return written


def _colours(comparison: Comparison) -> dict[str, str]:
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(comparison.runs)}


def _axes(figure: Any, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    return axes[0]


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, ncols=4, loc="outside lower center")


def _error(interval: Interval) -> list[list[float]]:
    value, low, high = interval
    return [[0.0 if low is None else value - low], [0.0 if high is None else high - value]]


def _pareto(figure: Any, comparison: Comparison, _: dict[str, SAE]) -> bool:
    reports, colours = comparison.reports, _colours(comparison)
    shown = [metric for metric in LOSSES if any(metric in report.metrics for report in reports.values())]
    if not shown:
        return False
    panels = _axes(figure, columns=len(shown))
    for axes, metric in zip(panels, shown, strict=True):
        for name, report in reports.items():
            if metric in report.metrics:
                x, y = report["l0"], report[metric]
                axes.errorbar(
                    x.value,
                    y.value,
                    xerr=_error(x),
                    yerr=_error(y),
                    fmt="o",
                    capsize=3,
                    color=colours[name],
                    label=name,
                )
        axes.set(xlabel="L0, latents on per token", ylabel=LOSSES[metric])
        axes.margins(0.15)
    figure.suptitle("How well with how few: 95 % intervals over documents", fontsize=11, x=0.01, ha="left")
    _legend(figure, panels[0])
    return True


def _firing_rates(figure: Any, comparison: Comparison, _: dict[str, SAE]) -> bool:
    axes = _axes(figure)[0]
    rows = [int(report.facts["rows"]) for report in comparison.reports.values()]
    bins = np.linspace(np.log10(1 / max(rows)), 0, 36)
    for name, report in comparison.reports.items():
        alive = report.firing_rates[report.firing_rates > 0]
        dead = len(report.firing_rates) - len(alive)
        shares = np.histogram(np.log10(alive), bins)[0] / max(1, len(report.firing_rates))
        axes.stairs(
            shares, 10**bins, color=_colours(comparison)[name], label=f"{name} ({dead:,} never on)", linewidth=1.6
        )
    axes.axvline(DENSE, color=GREY, linewidth=1, linestyle=":")
    axes.text(DENSE, 0.98, " dense", color=GREY, fontsize=8, va="top", transform=axes.get_xaxis_transform())
    axes.set(xscale="log", xlabel="firing rate, share of tokens", ylabel="share of latents")
    axes.set_title("How often latents are on", fontsize=11, loc="left")
    _legend(figure, axes)
    return True


def _loss_by_position(figure: Any, comparison: Comparison, _: dict[str, SAE]) -> bool:
    curves = {
        name: table.columns
        for name, report in comparison.reports.items()
        for table in [report.tables.get(report.saes[0], {}).get("loss_by_position")]
        if table is not None
    }
    if not curves:
        return False
    axes = _axes(figure)[0]
    for number, (name, curve) in enumerate(curves.items()):
        x, colour = curve["position"], _colours(comparison)[name]
        loss, low, high = (
            np.array([np.nan if v is None else v for v in curve[key]], float)
            for key in ("loss", "loss low", "loss high")
        )
        clean = np.array(curve["clean loss"], float)
        if not number:
            axes.plot(x, clean, color=GREY, linestyle="--", label="clean model")
        axes.plot(x, loss, color=colour, marker=".", label=name)
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel="position in the context, tokens", ylabel="cross-entropy of the next token, nats")
    axes.set_title("What reading through the dictionary costs, by position (95 % intervals)", fontsize=11, loc="left")
    _legend(figure, axes)
    return True


def _probing(figure: Any, comparison: Comparison, _: dict[str, SAE]) -> bool:
    first = comparison.reports[comparison.first]
    bars = {name: report.metrics for name, report in comparison.reports.items()}
    bars |= {name: first.columns[name] for name in first.columns if name not in first.saes}
    keys = [key for key in GROUPS["Usefulness"] if sum(key in own for own in bars.values()) > len(comparison.reports)]
    if not keys:
        return False
    bars = {name: own for name, own in bars.items() if any(key in own for key in keys)}
    axes, colours = _axes(figure)[0], _colours(comparison)
    width, greys = 0.8 / len(bars), iter(("#444444", "#777777", "#a0a0a0", "#c8c8c8", "#e0e0e0"))
    for number, (name, own) in enumerate(bars.items()):
        places = [i + (number - (len(bars) - 1) / 2) * width for i, key in enumerate(keys) if key in own]
        values = [own[key] for key in keys if key in own]
        errors = np.array([_error(interval) for interval in values])[:, :, 0].T
        heights, colour = [one.value - CHANCE for one in values], colours.get(name) or next(greys, GREY)
        axes.bar(places, heights, width, bottom=CHANCE, yerr=errors, capsize=2, color=colour, label=name)
    axes.axhline(CHANCE, color=GREY, linewidth=1)
    axes.set_xticks(range(len(keys)), [DEFINITIONS[key].label.strip().replace(": ", "\n") for key in keys], fontsize=8)
    axes.set_ylabel(f"share ({CHANCE} is chance)")
    axes.set_title("How useful: beside baselines (grey), 95 % intervals", fontsize=11, loc="left")
    _legend(figure, axes)
    return True


@torch.no_grad()
def _clusters(figure: Any, comparison: Comparison, saes: dict[str, SAE]) -> bool:
    columns = min(3, len(saes))
    rows = -(-len(saes) // columns)
    figure.set_size_inches(4.2 * columns + 0.6, 3.4 * rows + 0.5)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in panels.flat[len(saes) :]:
        axes.set_visible(False)
    for axes, (name, sae) in zip(panels.flat, saes.items(), strict=False):
        axes.spines[["top", "right"]].set_visible(False)
        report = comparison.reports[name]
        directions, chosen = unit_rows(sae.decoder_directions()), sampled(sae.n_latents)
        nearest = max_cosines(directions, chosen=chosen).cpu().numpy()
        rates = report.firing_rates if chosen is None else report.firing_rates[chosen.numpy()]
        floor = 0.3 / int(report.facts["rows"])
        axes.scatter(np.maximum(rates, floor), nearest, s=3, alpha=0.35, linewidths=0, color=_colours(comparison)[name])
        axes.axvline(DENSE, color=GREY, linewidth=1, linestyle=":")
        axes.axvline(2 * floor, color=GREY, linewidth=1, linestyle=":")
        dense, dead = int((rates > DENSE).sum()), int((rates == 0).sum())
        axes.set(xscale="log", ylim=(min(0.0, float(nearest.min())), 1.02))
        of = "" if chosen is None else f" of a sample of {len(nearest):,}"
        axes.set_title(f"{name}: {dead:,} never on (left), {dense:,} dense (right){of}", fontsize=8, loc="left")
    figure.suptitle("Clusters of latents: how often on, and how near another", fontsize=11, x=0.01, ha="left")
    figure.supxlabel("firing rate, share of tokens", fontsize=9)
    figure.supylabel("largest cosine with another decoder row", fontsize=9)
    return True


def _stability(figure: Any, comparison: Comparison, saes: dict[str, SAE]) -> bool:
    shapes = {name: sae.out_shape for name, sae in saes.items()}
    alive = {name: torch.from_numpy(_alive(comparison.reports[name])) for name in saes}
    same = [name for name in saes if shapes[name] == shapes[comparison.first] and alive[name].sum() <= MOST_LATENTS]
    places = {comparison.reports[name].facts.get("hook") for name in same}
    if len(same) < 2 or len(places) > 1:
        return False
    found = seed_stability({name: saes[name] for name in same}, alive=[alive[name] for name in same], progress=False)
    axes = _axes(figure)[0]
    for number, pair in enumerate(combinations(same, 2)):
        cosines = found.pairs[pair]
        shares, colour = np.arange(1, len(cosines) + 1) / len(cosines), COLOURS[number % len(COLOURS)]
        axes.plot(shares, cosines, color=colour, label=f"{pair[0]} and {pair[1]}")
    axes.axhline(found.chance, color=GREY, linestyle="--", linewidth=1, label="random directions, mean")
    axes.axhline(SAME, color=GREY, linestyle=":", linewidth=1, label=f"{SAME}: the same feature")
    value, low, high = found.shared
    over = "runs" if found.over == "seeds" else found.over
    span = "" if low is None else f" ({low:.0%} to {high:.0%} over {over})"
    axes.set(
        xlabel="share of the latents alive, best matched first", ylabel="cosine of matched decoder rows", ylim=(0, 1.02)
    )
    axes.set_title(f"Matched one to one, {value:.0%} are the same feature{span}", fontsize=11, loc="left")
    _legend(figure, axes)
    return True


def _alive(report: EvaluationReport) -> np.ndarray:
    return report.firing_rates > 0
