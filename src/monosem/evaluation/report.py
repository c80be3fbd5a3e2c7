"""The result of an evaluation: prints as a table, saves as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from monosem.errors import FileError
from monosem.evaluation.intervals import Interval

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
        Path(path).write_text(json.dumps(content) + "\n")

    @staticmethod
    def load(path: str | Path) -> EvaluationReport:
        """Read what `save` has written.

        Raises:
            FileError: it is missing or damaged.
        """
        try:
            content = json.loads(Path(path).read_text())
            columns = {
                name: {m: Interval(**i) for m, i in metrics.items()} for name, metrics in content["columns"].items()
            }
            arrays = (np.array(content["firing_rates"]), np.array(content["l0_counts"], dtype=np.int64))
            return EvaluationReport(columns, content["facts"], *arrays)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{path} is not a readable evaluation: {error}") from error


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}"


def _span(interval: Interval | None) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return ""
    return f"{_number(interval.low)} - {_number(interval.high)}"
