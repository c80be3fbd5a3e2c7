"""Two columns of one text: how far apart, and which difference this text could have shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from monosem.arguments import checked
from monosem.evaluation.report import EvaluationReport
from monosem.files import read_safetensors, write_safetensors
from monosem.intervals import Drawn, Interval

DRAWS = "evaluation_draws.safetensors"
"""Beside evaluation.json: what paired comparisons need of it."""

POWER = 0.8
SHOWN = 1.959964 + 0.841621
"""Standard errors that a true difference must have, to be told from 0 at 95 % in `POWER` of all samples."""


class Difference(NamedTuple):
    """b - a, with its 95 % interval over the documents that both were measured on."""

    value: float
    low: float
    high: float
    smallest: float
    """The smallest difference that a text of this size can show: one as large is told from 0 in 80 % of such texts."""

    @property
    def told(self) -> bool:
        """Whether it is told from 0."""
        return self.low > 0 or self.high < 0


@checked
def paired_difference(a: Interval, b: Interval) -> Difference | None:
    """The difference b - a of a metric measured twice on the same documents.

    Both were drawn anew with the same documents, so that what is hard for both cancels: the interval is that of the
    difference, narrower than two intervals side by side let one think.

    Returns:
        None where there is nothing to pair: one of them has no interval, or they are of other documents.
    """
    if not isinstance(a, Drawn) or not isinstance(b, Drawn) or a.documents != b.documents:
        return None
    draws = b.draws - a.draws
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return Difference(b.value - a.value, float(low), float(high), SHOWN * float(draws.std()))


def save_draws(report: EvaluationReport, folder: Path) -> None:
    """Write the draws of the SAEs' intervals: tensors (draws,) called DOCUMENTS/METRIC/COLUMN."""
    write_safetensors(
        folder / DRAWS,
        {
            f"{interval.documents}/{metric}/{name}": interval.draws.astype(np.float32)
            for name in report.saes
            for metric, interval in report.columns[name].items()
            if isinstance(interval, Drawn)
        },
    )


def with_draws(report: EvaluationReport, folder: Path) -> EvaluationReport:
    """A report that was read, its intervals with their draws, where `save_draws` has written those of this report.

    Raises:
        FileError: the file is damaged.
    """
    if not (folder / DRAWS).is_file():
        return report
    columns = {name: dict(own) for name, own in report.columns.items()}
    for key, tensor in read_safetensors(folder / DRAWS, remedy="evaluate the run again").items():
        documents, _, rest = key.partition("/")
        metric, _, name = rest.partition("/")
        interval, draws = columns.get(name, {}).get(metric), tensor.numpy().astype(np.float64)
        if interval is not None and interval.low is not None and _is_of(draws, interval):
            found = Drawn(*interval)
            found.draws, found.documents = draws, documents
            columns[name][metric] = found
    return replace(report, columns=columns)


def _is_of(draws: np.ndarray, interval: Interval) -> bool:
    """Whether an interval is that of these draws, and not of an older evaluation."""
    finite = draws[np.isfinite(draws)]
    if draws.ndim != 1 or not len(finite):
        return False
    given = np.array([interval.low, interval.high], float)
    return bool(np.allclose(np.quantile(finite, [0.025, 0.975]), given, rtol=1e-4, atol=1e-4 * float(np.ptp(finite))))


def why_not_paired(a: Interval, b: Interval) -> str:
    """Of two that cannot be paired: why, in words."""
    if not isinstance(a, Drawn) or not isinstance(b, Drawn):
        return "one of them has no interval"
    return "they were measured on other documents"
