"""Several runs side by side: their metrics, and by how much each differs from the first on the same documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.table import Table

from monosem.errors import ConfigError
from monosem.evaluation import EvaluationReport
from monosem.evaluation.definitions import DEFINITIONS
from monosem.evaluation.paired import Difference, paired_difference, why_not_paired
from monosem.evaluation.report import number, span
from monosem.intervals import Interval
from monosem.runs.folder import Run
from monosem.spelling import listed

MAIN = ("l0", "fvu", "loss_recovered_mean", "ce", "kl", "kl_over_random", "dead_share", "dense_share")
"""Shown where they were measured, if nothing else is asked for."""


@dataclass(frozen=True)
class Comparison:
    """Evaluated runs by name, the one that others are compared with first."""

    runs: dict[str, Run]
    reports: dict[str, EvaluationReport]

    @property
    def first(self) -> str:
        return next(iter(self.runs))

    def differences(self, metric: str) -> dict[str, Difference | str]:
        """By run, how far it is from the first; of one that cannot be paired with it, why, in words."""
        first, found = self.reports[self.first], dict[str, Difference | str]()
        for name, report in list(self.reports.items())[1:]:
            a, b = first.metrics.get(metric), report.metrics.get(metric)
            if a is None or b is None:
                found[name] = "it was not measured of both"
            elif [first.facts.get(key) for key in ("model", "data")] != [
                report.facts.get(key) for key in ("model", "data")
            ]:
                found[name] = "they were measured on other documents"
            else:
                found[name] = paired_difference(a, b) or why_not_paired(a, b)
        return found

    def measured(self) -> list[str]:
        """Every metric that any of them has, in the order of the table of definitions."""
        keys = {key for report in self.reports.values() for key in report.metrics}
        return [key for key in DEFINITIONS if key in keys] + sorted(key for key in keys if key not in DEFINITIONS)

    def table(self, metrics: Sequence[str] = ()) -> Table:
        """One row a metric and run, with intervals; of all but the first also the paired difference to it.

        Args:
            metrics: which; the main ones if not given, "all" for all.

        Raises:
            ConfigError: one was not measured.
        """
        have = self.measured()
        unknown = [metric for metric in metrics if metric not in have and metric != "all"]
        if unknown:
            raise ConfigError(f"no metric {unknown[0]!r} was measured; there are {listed(unknown[0], have)}")
        shown = have if "all" in metrics else list(metrics) or [metric for metric in MAIN if metric in have]
        table = Table(title=self._title(), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = table.caption_justify = "left"
        for head in ("", "value", "95 % interval", f"less {self.first}", "95 % interval", "can show"):
            table.add_column(
                head, justify="right" if head else "left", no_wrap=True, style="dim" if "%" in head else ""
            )
        why: dict[str, list[str]] = {}
        for metric in shown:
            table.add_row(f"[bold]{DEFINITIONS[metric].label.strip() if metric in DEFINITIONS else metric}[/bold]")
            apart = self.differences(metric)
            for name, report in self.reports.items():
                interval, other = report.metrics.get(metric), apart.get(name)
                if isinstance(other, str):
                    why.setdefault(other, []).append(metric)
                table.add_row(f"  {name}", *_measured(interval), *_apart(other))
        table.caption = self._caption(why)
        return table

    def _title(self) -> str:
        facts = [self.reports[name].facts for name in self.runs]
        where = {f"{one['hook']} of {one['model']}" for one in facts if "hook" in one}
        return f"{len(self.runs)} runs" + (f" at {where.pop()}" if len(where) == 1 else "")

    def _caption(self, why: dict[str, list[str]]) -> str:
        lines = []
        if len(self.runs) > 1:
            lines.append(
                f"* told from 0. Differences to {self.first} are paired by document; 'can show': a true difference of "
                "that size is told from 0 in 80 % of texts as long as this one."
            )
        lines += [f"No difference, {reason}: {', '.join(dict.fromkeys(keys))}." for reason, keys in why.items()]
        lines += [
            f"{name}: {report.facts['rows']:,} {report.facts.get('things', 'tokens')} of {report.facts['data']}."
            for name, report in self.reports.items()
        ]
        return "\n".join(lines)


def compare_runs(paths: Sequence[str | Path]) -> Comparison:
    """Read the evaluations of runs; of a run of several dictionaries, of each.

    Raises:
        FileError: there is no run, or it has not been evaluated.
        ConfigError: a run is named twice.
    """
    runs: dict[str, Run] = {}
    for path in paths:
        run = Run(path)
        for member, one in run.members.items():
            name = f"{run.path.name}/{member}" if member else run.path.name
            if any(one.path.resolve() == other.path.resolve() for other in runs.values()):
                raise ConfigError(f"{one.path} is named twice: compare other runs")
            runs[name if name not in runs else str(one.path)] = one
    return Comparison(runs, {name: run.evaluation() for name, run in runs.items()})


def _measured(interval: Interval | None) -> tuple[str, str]:
    return ("-", "") if interval is None else (number(interval.value), span(interval))


def _apart(found: Difference | str | None) -> tuple[str, str, str]:
    if not isinstance(found, Difference):
        return "", "", ""
    mark = " *" if found.told else "  "
    return (
        f"{found.value:+.4g}{mark}",
        f"{found.low:+.3g} to {found.high:+.3g}",
        f"{found.smallest:.2g}" if found.smallest else "",
    )
