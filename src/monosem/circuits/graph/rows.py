"""Rows of a graph as they are made: what each keeps, influence through them, and all of them put together.

Of every row all is kept that does not come from a feature; of features the largest edges, as many as there is room for.
What the others add is summed. So long as the selection of features goes on, a row holds edges from any that is on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

ROOM = 2**25
"""Edges from features that all rows together may hold."""
LEAST = 4_096
"""Edges from features that each row may hold whatever their number."""
ROUNDS = 16
"""In so many rounds the most influential features are chosen; after each, influence is counted anew."""
BATCH_NUMBERS = 2**20
"""Numbers of the stream (targets x positions x width) that go through the pass at a time, ..."""
AT_LEAST = 8
"""... but of targets no fewer than these: a pattern is read, or made again, for all of them at once."""


@dataclass
class Rows:
    """Some rows: of features that read one site, or of targets."""

    site: int
    features: Int[np.ndarray, " n"]
    """Their columns; -1 of targets."""
    values: Float[np.ndarray, " edges"]
    columns: Int[np.ndarray, " edges"]
    offsets: Int[np.ndarray, " n_and_1"]
    """Edges from features, row after row."""
    others: list[tuple[np.ndarray, np.ndarray]]
    """Of each row what comes from anything else: numbers of nodes behind the features, and values."""
    sizes: np.ndarray
    """Absolute sums of each row over what can vary."""
    totals: np.ndarray

    def pass_on(self, influence: Float[np.ndarray, " features"], passing: Float[np.ndarray, " n"]) -> None:
        """Add to the influence of sources what passes these rows."""
        shares = np.repeat(passing / self.sizes, np.diff(self.offsets))
        np.add.at(influence, self.columns, np.abs(self.values) * shares)


def a_round(most: int) -> int:
    """How many features are chosen at a time."""
    return max(64, -(-most // ROUNDS))


def edges_a_row(n_rows: int) -> int:
    """How many edges from features each of so many rows may hold."""
    return max(LEAST, ROOM // max(1, n_rows))


def kept_rows(
    dense: Float[np.ndarray, "n columns"],
    n_features: int,
    varies: Float[np.ndarray, " columns"],
    to: Int[np.ndarray, " others"],
    n_others: int,
    share: float,
    most: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """What is kept of some rows, in the order of the fields of `Rows`: edges from features, others, sizes.

    Args:
        dense: the rows, features first.
        n_features: how many columns are features.
        varies: 1 of columns that count in a row's size, else 0.
        to: of each other column its node, behind the features.
        n_others: number of these nodes, of which the last is the remainder.
        share: of a row's absolute sum that its edges make up, at least.
        most: edges from features.
    """
    sizes = (np.abs(dense) @ varies.astype(dense.dtype)).astype(np.float64)
    values, columns, counts = list[np.ndarray](), list[np.ndarray](), list[int]()
    others: list[tuple[np.ndarray, np.ndarray]] = []
    for row, size in zip(dense, sizes.tolist(), strict=True):
        there = np.flatnonzero(row[:n_features])
        found = row[there]
        large = _large(np.abs(found), size, share, most)
        values.append(found[large])
        columns.append(there[large].astype(np.int32))
        counts.append(len(columns[-1]))
        sums = np.bincount(to, weights=row[n_features:], minlength=n_others)
        sums[-1] += found[~large].sum(dtype=np.float64)
        nodes = np.flatnonzero(sums)
        others.append((nodes.astype(np.int32), sums[nodes].astype(dense.dtype)))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return np.concatenate(values), np.concatenate(columns), offsets, others, np.maximum(sizes, 1e-30)


def _large(sizes: Float[np.ndarray, " n"], whole: float, share: float, most: int) -> np.ndarray:
    """Which edges are kept: the largest, so many at most, and no more of the small than leave the share."""
    large = np.ones(len(sizes), dtype=bool)
    if len(sizes) > most:
        large = np.zeros(len(sizes), dtype=bool)
        large[np.argpartition(sizes, len(sizes) - most)[-most:]] = True
    if share < 1:
        order = np.argsort(sizes)
        large[order[np.cumsum(sizes[order], dtype=np.float64) <= (1 - share) * whole]] = False
    return large


def put_together(
    done: list[Rows], order: Int[np.ndarray, " rows"], number: Int[np.ndarray, " features"], n_kept: int, n_others: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, columns and offsets of all rows; empties `done` as it goes, so that no edge is held twice.

    Args:
        done: the rows as they were made.
        order: of each row of the graph its place among these.
        number: of each feature its node, -1 of those that are none: what these add goes to the remainder.
        n_kept: nodes that are features; others come behind.
        n_others: number of those, of which the last is the remainder.
    """
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    counts = np.zeros(len(order), dtype=np.int64)
    first = 0
    for rows in done:
        _without(rows, number, n_others)
        own = [len(nodes) for nodes, _ in rows.others]
        counts[place[first : first + len(own)]] = np.diff(rows.offsets) + own
        first += len(own)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    values, columns = np.empty(offsets[-1], dtype=_type_of(done)), np.empty(offsets[-1], dtype=np.int32)
    first = 0
    while done:
        rows = done.pop(0)
        for i, (nodes, others) in enumerate(rows.others):
            to, own = offsets[place[first + i]], slice(rows.offsets[i], rows.offsets[i + 1])
            found = np.concatenate([rows.columns[own], nodes + n_kept])
            sorted_ = np.argsort(found)
            columns[to : to + len(found)] = found[sorted_]
            values[to : to + len(found)] = np.concatenate([rows.values[own], others])[sorted_]
        first += len(rows.others)
    return values, columns, offsets


def _type_of(done: list[Rows]) -> np.dtype:
    return done[0].values.dtype if done else np.dtype(np.float32)


def _without(rows: Rows, number: Int[np.ndarray, " features"], n_others: int) -> None:
    """Leave out edges from features that are no nodes, and number the others as nodes are."""
    nodes = number[rows.columns]
    kept = nodes >= 0
    of_row = np.repeat(np.arange(len(rows.others)), np.diff(rows.offsets))
    more = np.bincount(of_row[~kept], weights=rows.values[~kept], minlength=len(rows.others))
    counts = np.bincount(of_row[kept], minlength=len(rows.others))
    rows.values, rows.columns = rows.values[kept], nodes[kept].astype(np.int32)
    rows.offsets = np.concatenate([[0], np.cumsum(counts)])
    for i in np.flatnonzero(more).tolist():
        known, values = rows.others[i]
        if not len(known) or known[-1] != n_others - 1:
            known, values = np.append(known, np.int32(n_others - 1)), np.append(values, values.dtype.type(0))
        values[-1] += more[i]
        rows.others[i] = known, values
