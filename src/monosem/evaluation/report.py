"""The result of an evaluation: prints as a table, saves as JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from rich import box
from rich.table import Table

from monosem.errors import ConfigError
from monosem.evaluation.definitions import DEFINITIONS, GROUPS
from monosem.evaluation.tables import DataTable
from monosem.files import read_json, reading, write_json
from monosem.intervals import Interval
from monosem.spelling import listed
from monosem.text import printed

SECTIONS = 16
"""More metrics than these are shown in sections."""
SPAN = "95 % interval"
LABELS = {key: definition.label for key, definition in DEFINITIONS.items()}


class _Interval(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    value: float | None
    low: float | None = None
    high: float | None = None


class _Table(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    title: str
    columns: dict[str, list[str | bool | int | float | None]]
    units: dict[str, str] = {}


Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Saved(BaseModel):
    """What evaluation.json says."""

    model_config = ConfigDict(strict=True)

    facts: dict[str, str | bool | int | float | None]
    columns: dict[str, dict[str, _Interval]]
    firing_rates: dict[str, list[float]] | list[float]
    """By name of the SAE; a bare list is that of the only one."""
    l0_counts: dict[str, list[Count]] | list[Count]
    notes: dict[str, str] = {}
    tables: dict[str, dict[str, _Table]] = {}


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics of an SAE and of its controls, on text (or rows) that it was not trained on."""

    columns: dict[str, dict[str, Interval]]
    """By name of the column: "SAE" first, then the controls. What is of one source alone is "METRIC at SOURCE"."""
    facts: dict[str, str | int | float]
    """What was measured: model, hook, text, tokens, clean cross-entropy, ..."""
    rates: dict[str, np.ndarray] = field(repr=False)
    """By name of the SAE (n_latents,), share of tokens on which each latent was on."""
    counts: dict[str, np.ndarray] = field(repr=False)
    """By name of the SAE, number of tokens with 0, 1, 2, ... latents on."""
    notes: dict[str, str] = field(default_factory=dict[str, str], repr=False)
    """By metric, why it has no interval, or what else to know of it."""
    tables: dict[str, dict[str, DataTable]] = field(default_factory=dict[str, dict[str, DataTable]], repr=False)
    """Curves and tables, by name of the column, then by key."""

    @property
    def saes(self) -> list[str]:
        """Names of the SAEs; all other columns are controls."""
        return list(self.rates)

    @property
    def metrics(self) -> dict[str, Interval]:
        """Those of the first SAE."""
        return self.columns[self.saes[0]]

    @property
    def firing_rates(self) -> np.ndarray:
        """(n_latents,) of the first SAE."""
        return self.rates[self.saes[0]]

    @property
    def l0_counts(self) -> np.ndarray:
        """Of the first SAE."""
        return self.counts[self.saes[0]]

    def of(self, name: str) -> EvaluationReport:
        """The report of one of several SAEs, as if it had been evaluated alone, beside the same controls.

        Raises:
            ConfigError: there is none of that name.
        """
        if name not in self.saes:
            raise ConfigError(f"no SAE {name!r} was measured; there are {listed(name, self.saes)}")
        shown = {column: column for column in self.columns if column not in self.saes}
        shown = {name: "SAE", **shown}
        return EvaluationReport(
            {new: self.columns[old] for old, new in shown.items()},
            self.facts,
            {"SAE": self.rates[name]},
            {"SAE": self.counts[name]},
            self.notes,
            {new: self.tables[old] for old, new in shown.items() if old in self.tables},
        )

    def __getitem__(self, metric: str) -> Interval:
        """A metric of the SAE, by its key.

        Raises:
            ConfigError: it was not measured.
        """
        if metric not in self.metrics:
            raise ConfigError(f"no metric {metric!r} was measured; there are {listed(metric, self.metrics)}")
        return self.metrics[metric]

    def table(self) -> Table:
        """One row a metric, one column a dictionary or control."""
        return self.fitting(10_000)[0]

    def fitting(self, width: int) -> list[Table]:
        """The same for a terminal of that width: columns that find no room go on in tables below."""
        rows, reasons = self._rows(), self._reasons()
        columns = list(self.columns)
        if len(self.saes) == 1:
            columns.insert(1, SPAN)
        sizes = {name: max([len(name), *(len(cells.get(name, "")) for _, cells in rows)]) + 2 for name in columns}
        label = max((len(shown) for shown, _ in rows), default=0) + 3
        parts: list[list[str]] = [[]]
        for name in columns:
            if parts[-1] and label + sum(sizes[one] for one in [*parts[-1], name]) > width:
                parts.append([])
            parts[-1].append(name)
        found: list[Table] = []
        for names in parts:
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=None if found else self._title())
            table.title_justify = table.caption_justify = "left"
            table.add_column("", no_wrap=True)
            for name in names:
                table.add_column(name, justify="right", no_wrap=True, style="dim" if name == SPAN else None)
            for shown, cells in rows:
                if not cells and len(rows) > SECTIONS:
                    table.add_row(f"[bold]{shown}[/bold]")
                elif not found or any(cells.get(name, "-") != "-" for name in names):
                    table.add_row(shown, *(cells.get(name, "") for name in names))
            found.append(table)
        why = [f"({letter}) {reason}." for reason, letter in reasons.items()]
        found[-1].caption = "\n".join([self._caption(), *why])
        return found

    def _rows(self) -> list[tuple[str, dict[str, str]]]:
        """Names of metrics with their cells by column; names of groups without."""
        known = dict.fromkeys(metric for column in self.columns.values() for metric in column)
        reasons, found = self._reasons(), list[tuple[str, dict[str, str]]]()
        for group, definitions in GROUPS.items():
            rows = [
                (key, one.label, metric) for key, one in definitions.items() for metric in known if _is(metric, key)
            ]
            if rows and len(known) > SECTIONS:
                found.append((group, {}))
            for key, label, metric in rows:
                shown = label if metric == key else f"  {metric.removeprefix(key).strip()}"
                cells = {
                    name: number(own[metric].value) if metric in own else "-" for name, own in self.columns.items()
                }
                cells[SPAN] = span(self.metrics.get(metric))
                letter = reasons.get(self._why(key)) if key in self.notes else None
                if letter and not cells[SPAN] and metric in self.metrics:
                    cells[SPAN] = f"none ({letter})"
                found.append((shown, cells))
        return found

    def _why(self, key: str) -> str:
        return self.notes[key].removeprefix("no interval: ")

    def _reasons(self) -> dict[str, str]:
        """Why metrics of the only SAE have no interval, each with a letter."""
        if len(self.saes) != 1:
            return {}
        lacking = [
            key for key in DEFINITIONS if key in self.metrics and key in self.notes and not span(self.metrics[key])
        ]
        return {why: chr(ord("a") + i) for i, why in enumerate(dict.fromkeys(map(self._why, lacking)))}

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
        if "last_words" in self.facts:
            guessed = f"{self.facts['last_word_clean']:.1%} guessed by the model itself"
            lines.append(f"Last words of {self.facts['last_words']:,} passages: {guessed}.")
        if "longer_context" in self.facts:
            trained, longer = self.facts["trained_context"], self.facts["longer_context"]
            lines.append(f"Trained on contexts of {trained:,} tokens; past them, on contexts of {longer:,}.")
        if "untrained_tokens" in self.facts:
            tokens = f"{self.facts['untrained_tokens']:,} tokens"
            own, least = int(self.facts.get("tokens_trained", 0)), int(self.facts["untrained_tokens"])
            if own > 1.5 * least:
                tokens += f", {own / least:.0f} times fewer than the SAE ({own:,}): it is worse for that alone"
            lines.append(f"Untrained: an SAE of this kind of the model with shuffled weights, trained on {tokens}.")
        if "probed_features" in self.facts:
            lines.append(f"Probes: logistic ones, for the first {self.facts['probed_features']:,} features.")
        if "board_games" in self.facts:
            games = f"{self.facts['board_games']:,} games"
            lines.append(f"Board: on {games}; probes are linear ones, and mean says what is commonest.")
        if "sources" in self.facts:
            lines.append(f"They are means over {self.facts['sources']} sources, replaced one at a time.")
        if all(i.low is None for i in self.metrics.values()):
            lines.append("No intervals: all of it is one document. Give text of several.")
        alive = self.firing_rates[self.firing_rates > 0]
        if len(alive):
            lines.append(f"Median firing rate of the {len(alive):,} latents alive: {np.median(alive):.3%}.")
        return "\n".join(lines)

    def __str__(self) -> str:
        return printed(*self.fitting(120), width=120)

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        content = {
            "facts": self.facts,
            "columns": {name: {m: i._asdict() for m, i in metrics.items()} for name, metrics in self.columns.items()},
            "firing_rates": {name: [float(f"{rate:.6g}") for rate in rates] for name, rates in self.rates.items()},
            "l0_counts": {name: counts.tolist() for name, counts in self.counts.items()},
            "notes": self.notes,
            "tables": {name: {key: asdict(one) for key, one in own.items()} for name, own in self.tables.items()},
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
        rates, counts = (
            {name: np.array(own, kind) for name, own in (saved if isinstance(saved, dict) else {"SAE": saved}).items()}
            for saved, kind in ((content.firing_rates, float), (content.l0_counts, np.int64))
        )
        tables = {
            name: {key: DataTable(one.title, one.columns, one.units) for key, one in own.items()}
            for name, own in content.tables.items()
        }
        report = EvaluationReport(columns, facts, rates, counts, content.notes, tables)
        with reading(path, "evaluate the run again"):
            report.table()  # what it names is there
        return report


def _is(metric: str, key: str) -> bool:
    """Whether it is the metric of that key, or that metric at one source."""
    return metric.partition(" at ")[0] == key


def _known(value: Any) -> Any:
    """What is no number was written as null."""
    return math.nan if value is None else value


def number(value: float) -> str:
    if math.isnan(value):
        return "undefined"
    if abs(value) < 5e-5:
        return "0.0000" if value else "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:.4g}"


def span(interval: Interval | None) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return ""
    return f"{number(interval.low)} - {number(interval.high)}"


def report_schema() -> dict[str, Any]:
    """The JSON schema of what `save` writes."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **_Saved.model_json_schema()}
