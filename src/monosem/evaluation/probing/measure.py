"""All probes of one split of the texts, put into the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from monosem.evaluation.probing.columns import Choose, Columns
from monosem.evaluation.probing.labelled import Labelled
from monosem.evaluation.probing.pooled import Pooled
from monosem.evaluation.probing.report import Chosen, ProbeReport, ProbeRow
from monosem.evaluation.probing.scores import Draws, difference_of, interval_of, weights_of
from monosem.evaluation.probing.splits import Split
from monosem.evaluation.probing.trial import Sides, Trial, dense_trial, principal, shuffled, sparse_trials

RANDOM, SHUFFLED, DENSE = "random SAE", "shuffled labels", "all of x"
NEURONS, CHANNELS, PCA = "neurons", "channels of x", "PCA of x"


def measure(
    report: ProbeReport,
    read: Pooled,
    data: Labelled,
    split: Split,
    ks: Sequence[int],
    how: Choose,
    saes: Sequence[str],
    seed: int,
    advance: Callable[[float], None],
) -> None:
    """All probes of one split, put into the report."""
    full = CHANNELS in read.columns and len(read.columns) > len(saes) + 1
    parts = {name: (c.rows(split.train), c.rows(split.test)) for name, c in read.columns.items()}
    if full:
        turned = principal(parts[CHANNELS][0], read.columns[CHANNELS])
        parts[PCA] = (turned.rows(split.train), turned.rows(split.test))
    names = np.unique(data.labels).tolist()
    weights = weights_of(len(split.test), seed)
    mixed = shuffled(data.labels, np.concatenate([split.train, split.test]), seed)
    by_column: dict[str, dict[int | str, list[Trial]]] = {}
    for label in names[1:] if len(names) == 2 else names:
        sides = Sides(data.labels[split.train] == label, data.labels[split.test] == label, weights)
        null = Sides(mixed[split.train] == label, mixed[split.test] == label, weights)
        for column, trials in _columns(parts, sides, null, ks, how, saes, full):
            for trial in trials:
                by_column.setdefault(column, {}).setdefault(trial.k, []).append(trial)
                report.rows.append(_row(split, label, column, trial.k, [trial]))
                if column in saes and not split.name:
                    report.chosen.append(Chosen(column, label, trial.k, trial.columns, trial.weights))
        advance(1)
    for column, by_k in by_column.items():
        for number, trials in by_k.items():
            report.rows.append(_row(split, ProbeReport.MEAN, column, number, trials))
    if not split.name:
        _differences(report, by_column, saes)


def _columns(
    parts: Mapping[str, tuple[Columns, Columns]],
    sides: Sides,
    null: Sides,
    ks: Sequence[int],
    how: Choose,
    saes: Sequence[str],
    full: bool,
) -> Iterator[tuple[str, list[Trial]]]:
    """Name and trials of every column; of random SAEs, the means of their metrics."""
    for name in saes:
        yield name, list(sparse_trials(*parts[name], sides, ks, how))
    every = [list(sparse_trials(*part, sides, ks, how)) for name, part in parts.items() if name.startswith(RANDOM)]
    if every:
        yield RANDOM, [_mean(list(trials)) for trials in zip(*every, strict=True)]
    if full:
        for name in (NEURONS, CHANNELS, PCA):
            if name in parts:
                yield name, list(sparse_trials(*parts[name], sides, ks, how))
        yield SHUFFLED, list(sparse_trials(*parts[saes[0]], null, ks, how))
    yield DENSE, [dense_trial(*parts[CHANNELS], sides)]


def _mean(trials: Sequence[Trial]) -> Trial:
    return Trial(trials[0].k, _average([t.auroc for t in trials]), _average([t.accuracy for t in trials]), [], [])


def _average(drawn: Sequence[Draws]) -> Draws:
    return np.mean(drawn, axis=0)


def _row(split: Split, label: str, column: str, k: int | str, trials: Sequence[Trial]) -> ProbeRow:
    mean = _mean(trials)
    sizes = len(split.train), len(split.test)
    return ProbeRow(split.name, label, column, k, interval_of(mean.auroc), interval_of(mean.accuracy), *sizes)


def _differences(
    report: ProbeReport, by_column: Mapping[str, Mapping[int | str, Sequence[Trial]]], saes: Sequence[str]
) -> None:
    """By how much an SAE's AUROC is above that of every other column, on the same draws of test texts."""
    for name in saes:
        for number, own in by_column[name].items():
            for other, by_k in by_column.items():
                beside = by_k.get(number, by_k.get("all"))
                if other != name and beside is not None:
                    apart = _mean(own).auroc - _mean(beside).auroc
                    report.differences.append((name, other, number, difference_of(apart)))
