"""The results of several dictionaries: one table, one figure, one file."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from rich import box
from rich.table import Table

from monosem.evaluation import EvaluationReport
from monosem.files import read_json, replacing, write_json
from monosem.ranks import everyone
from monosem.runs.config import EvaluationConfig

METRICS = ("l0", "fvu", "loss_recovered_mean", "dead_share")
PANELS = {"fvu": "FVU, variance unexplained", "loss_recovered_mean": "loss recovered against the mean"}
COLOURS = ("#e07b00", "#2166ac", "#4d9221", "#8e0152", "#777777", "#01665e", "#762a83", "#b2182b", "#bf812d", "#35978f")

Row = dict[str, Any]
"""What is kept of a dictionary: where it reads, its architecture, and each metric as [value, low, high]."""


def _with_value(measured: list[float | None]) -> list[float | None]:
    """A value that is no number was written as null; an interval has two ends or none."""
    value, *ends = measured
    return [math.nan if value is None else value, *(ends if None not in ends else [None, None])]


Measured = Annotated[list[float | None], Field(min_length=3, max_length=3), AfterValidator(_with_value)]
"""Value, low, high."""


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    hook: str
    architecture: str
    n_latents: int
    l0: Measured
    fvu: Measured
    dead_share: Measured
    loss_recovered_mean: Measured | None = None


class _Saved(BaseModel):
    """What results.json says."""

    model_config = ConfigDict(strict=True)

    evaluation: dict[str, Any]
    dictionaries: dict[str, _Row]


@dataclass
class Results:
    """Held-out metrics of the dictionaries of one run, by name; written after every one."""

    folder: Path
    evaluation: Row
    """How they were measured."""
    rows: dict[str, Row] = field(default_factory=dict)

    @staticmethod
    def begin(folder: Path, config: EvaluationConfig) -> Results:
        """Those of a folder that were measured in the same way, to be completed; else none yet.

        Raises:
            FileError: results.json is damaged.
        """
        path, evaluation = folder / "results.json", config.model_dump()
        if path.is_file():
            content = read_json(path, _Saved, remedy="delete it to measure again")
            if content.evaluation == evaluation:
                rows = {name: row.model_dump(exclude_none=True) for name, row in content.dictionaries.items()}
                return Results(folder, evaluation, rows)
        return Results(folder, evaluation)

    def add(self, name: str, reads: str, report: EvaluationReport) -> None:
        """Take in one report, and write results.json and results.svg."""
        metrics = {metric: list(report[metric]) for metric in METRICS if metric in report.metrics}
        facts = {"hook": reads, **{key: report.facts[key] for key in ("architecture", "n_latents")}}
        self.rows[name] = {**facts, **metrics}
        if not everyone().first:
            return
        path = self.folder / "results.json"
        write_json(path, {"evaluation": self.evaluation, "dictionaries": self.rows}, indent=1)
        self.draw(self.folder / "results.svg")

    def table(self) -> Table:
        """One row a dictionary."""
        table = Table(title="Results on held-out data", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = "left"
        table.add_column("")
        table.add_column("hook")
        losses = (
            ("loss recovered", "95 % interval") if any("loss_recovered_mean" in r for r in self.rows.values()) else ()
        )
        for column in ("L0", "FVU", *losses, "alive"):
            table.add_column(column, justify="right", no_wrap=True)
        for name, row in self.rows.items():
            value, low, high = row.get("loss_recovered_mean", [None, None, None])
            recovered = ("-" if value is None else f"{value:.3f}", "" if low is None else f"{low:.3f} - {high:.3f}")
            numbers = (f"{row['l0'][0]:.1f}", f"{row['fvu'][0]:.4f}", *(recovered if losses else ()))
            table.add_row(name, row["hook"], *numbers, f"{1 - row['dead_share'][0]:.1%}")
        return table

    def draw(self, path: Path) -> None:
        """L0 to the right, FVU and loss recovered upwards; a line joins dictionaries of one kind and one place."""
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        kinds = self._kinds()
        shown = [metric for metric in PANELS if any(metric in row for row in self.rows.values())]
        figure = Figure(figsize=(11, 4.4 + 0.22 * -(-len(kinds) // 3)), layout="constrained")
        for axes, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            axes.spines[["top", "right"]].set_visible(False)
            for number, (label, rows) in enumerate(kinds.items()):
                own = sorted((row for row in rows if metric in row), key=lambda row: row["l0"][0])
                spans = [[[_span(row, key, end) for row in own] for end in (1, 2)] for key in ("l0", metric)]
                axes.errorbar(
                    [row["l0"][0] for row in own],
                    [row[metric][0] for row in own],
                    xerr=spans[0],
                    yerr=spans[1],
                    marker="os^D"[number // len(COLOURS) % 4],
                    markersize=4,
                    linewidth=1.2,
                    linestyle=("-", "--", ":", "-.")[number // len(COLOURS) % 4],
                    capsize=2,
                    color=COLOURS[number % len(COLOURS)],
                    label=label,
                )
            axes.set(xlabel="L0, latents on per token", ylabel=PANELS[metric])
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, fontsize=8, ncols=3, loc="outside lower center")
        with rc_context({"svg.hashsalt": "monosem"}), replacing(path) as new:
            figure.savefig(new, metadata={"Date": None}, format="svg")

    def _kinds(self) -> dict[str, list[Row]]:
        """Dictionaries of one architecture, place and width, under the words that tell them from the others."""
        places, widths = ({row[key] for row in self.rows.values()} for key in ("hook", "n_latents"))
        kinds: dict[str, list[Row]] = {}
        for row in self.rows.values():
            place = f" at {row['hook']}" if len(places) > 1 else ""
            width = f", {row['n_latents']:,}" if len(widths) > 1 else ""
            kinds.setdefault(f"{row['architecture']}{place}{width}", []).append(row)
        return kinds


def _span(row: Row, metric: str, end: int) -> float:
    value, edge = row[metric][0], row[metric][end]
    return 0.0 if edge is None else abs(value - edge)
