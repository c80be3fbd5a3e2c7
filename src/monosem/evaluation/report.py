"""The result of an evaluation: prints as a table, saves as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich import box
from rich.console import Console
from rich.table import Table

from monosem.errors import ConfigError
from monosem.files import read_json, reading, write_json
from monosem.intervals import Interval
from monosem.spelling import listed

LABELS = {
    "l0": "L0, latents on per token",
    "fvu": "FVU, variance unexplained",
    "explained_variance": "explained variance",
    "cosine": "cosine with x",
    "norm_ratio": "norm ratio to x",
    "mse": "MSE per dimension",
    "ce": "cross-entropy, nats",
    "loss_recovered_mean": "loss recovered (mean)",
    "loss_recovered_zero": "loss recovered (zero)",
    "kl": "KL from clean, nats",
    "accuracy": "accuracy",
    "agreement": "same answer as clean",
    "dead_share": "share of dead latents",
}


class _Interval(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    value: float | None
    low: float | None = None
    high: float | None = None


class _Saved(BaseModel):
    """What evaluation.json says."""

    model_config = ConfigDict(strict=True)

    facts: dict[str, str | bool | int | float | None]
    columns: dict[str, dict[str, _Interval]]
    firing_rates: list[float]
    l0_counts: list[Annotated[int, Field(ge=0, lt=2**63)]]


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics of an SAE and of its controls, on text (or rows) that it was not trained on."""

    columns: dict[str, dict[str, Interval]]
    """By name of the column: "SAE" first, then the controls. What is of one source alone is "METRIC at SOURCE"."""
    facts: dict[str, str | int | float]
    """What was measured: model, hook, text, tokens, clean cross-entropy, ..."""
    firing_rates: np.ndarray = field(repr=False)
    """(n_latents,) share of tokens on which each latent was on."""
    l0_counts: np.ndarray = field(repr=False)
    """Number of tokens with 0, 1, 2, ... latents on."""

    @property
    def metrics(self) -> dict[str, Interval]:
        return self.columns["SAE"]

    def __getitem__(self, metric: str) -> Interval:
        """A metric of the SAE, by its key.

        Raises:
            ConfigError: it was not measured.
        """
        if metric not in self.metrics:
            raise ConfigError(f"no metric {metric!r} was measured; there are {listed(metric, self.metrics)}")
        return self.metrics[metric]

    def table(self) -> Table:
        """One row a metric; fits a terminal of 80 columns."""
        table = Table(title=self._title(), caption=self._caption(), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = table.caption_justify = "left"
        table.add_column("", no_wrap=True)
        for name in self.columns:
            table.add_column(name, justify="right", no_wrap=True)
            if name == "SAE":
                table.add_column("95 % interval", justify="right", no_wrap=True, style="dim")
        known = dict.fromkeys(metric for column in self.columns.values() for metric in column)
        for name, label in LABELS.items():
            for metric in (metric for metric in known if metric.partition(" at ")[0] == name):
                shown = label if metric == name else f"  {metric.removeprefix(name).strip()}"
                cells = [_number(c[metric].value) if metric in c else "-" for c in self.columns.values()]
                table.add_row(shown, cells[0], _span(self.metrics.get(metric)), *cells[1:])
        return table

    def _title(self) -> str:
        return "Evaluation" + (f" at {self.facts['hook']} of {self.facts['model']}" if "hook" in self.facts else "")

    def _caption(self) -> str:
        things = self.facts.get("things", "tokens")
        lines = [f"Measured on {self.facts['rows']:,} {things} of {self.facts['data']}."]
        if "ce_clean" in self.facts:
            clean, mean, zero = (f"{self.facts[name]:.3f}" for name in ("ce_clean", "ce_mean", "ce_zero"))
            counted = f"{self.facts['predictions']:,} predictions"
            lines.append(f"Losses on {counted}: clean {clean}, at the mean {mean}, at zero {zero}.")
            if "accuracy_clean" in self.facts:
                lines.append(f"Accuracy without the SAE: {self.facts['accuracy_clean']:.1%}.")
        elif "predictions" in self.facts:
            lines.append(f"Losses on {self.facts['predictions']:,} predictions: {self.facts['loss']}.")
        if "sources" in self.facts:
            lines.append(f"They are means over {self.facts['sources']} sources, replaced one at a time.")
        alive = self.firing_rates[self.firing_rates > 0]
        if len(alive):
            lines.append(f"Median firing rate of the {len(alive):,} latents alive: {np.median(alive):.3%}.")
        return "\n".join(lines)

    def __str__(self) -> str:
        console = Console(width=100)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get()

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        content = {
            "facts": self.facts,
            "columns": {name: {m: i._asdict() for m, i in metrics.items()} for name, metrics in self.columns.items()},
            "firing_rates": [float(f"{rate:.6g}") for rate in self.firing_rates],
            "l0_counts": self.l0_counts.tolist(),
        }
        write_json(path, content)

    @staticmethod
    def load(path: str | Path) -> EvaluationReport:
        """Read what `save` has written.

        Raises:
            FileError: it is missing or damaged.
        """
        content = read_json(path, _Saved, remedy="evaluate the run again")
        columns = {
            name: {metric: Interval(_known(saved.value), saved.low, saved.high) for metric, saved in metrics.items()}
            for name, metrics in content.columns.items()
        }
        facts = {name: _known(fact) for name, fact in content.facts.items()}
        rates, counts = np.array(content.firing_rates, float), np.array(content.l0_counts, np.int64)
        report = EvaluationReport(columns, facts, rates, counts)
        with reading(path, "evaluate the run again"):
            report.table()  # what it names is there
        return report


def _known(value: Any) -> Any:
    """What is no number was written as null."""
    return math.nan if value is None else value


def _number(value: float) -> str:
    if math.isnan(value):
        return "undefined"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}"


def _span(interval: Interval | None) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return ""
    return f"{_number(interval.low)} - {_number(interval.high)}"
