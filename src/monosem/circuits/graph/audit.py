"""graph.audit(): how exactly each row adds up to what was measured, and what explains it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from monosem.circuits.graph.core import GraphCore
from monosem.circuits.graph.influence import sums

PARTS = ("feature", "error", "token", "position", "bias", "beginning", "remainder")


@dataclass(frozen=True)
class Audit:
    """Of every row the difference to its total, and the shares of its absolute sum by kind of source."""

    errors: np.ndarray
    """(F + K,) |sum of the row - total|, divided by the row's absolute sum."""
    shares: dict[str, np.ndarray]
    """Of each kind of source, (F + K,)."""
    signed: dict[str, np.ndarray]
    """Of each kind what it adds, (F + K,)."""
    labels: list[str]
    totals: np.ndarray
    """Of the targets."""
    replacement_score: float
    completeness_score: float

    @property
    def largest_error(self) -> float:
        return float(self.errors.max()) if len(self.errors) else 0.0

    def __str__(self) -> str:
        k = len(self.labels)
        lines = [
            f"{len(self.errors):,} rows, largest conservation error {self.largest_error:.1e} of the row's absolute sum",
            f"replacement {self.replacement_score:.3f}, completeness {self.completeness_score:.3f}",
            "",
            f"{'explained by':14}" + "".join(f"{part:>11}" for part in PARTS) + f"{'total':>11}",
        ]
        if len(self.errors) > k:
            shares = (f"{self.shares[part][:-k].mean():>11.1%}" for part in PARTS)
            lines.append(f"{'features (mean)':14}" + "".join(shares))
        for number, label in enumerate(self.labels):
            row = number - k
            numbers = (f"{self.signed[part][row]:>+11.3f}" for part in PARTS)
            lines.append(f"{label[:13]!r:14.14}" + "".join(numbers) + f"{self.totals[number]:>+11.3f}")
        return "\n".join(lines)


def audit(graph: GraphCore) -> Audit:
    """Add every row up."""
    matrix, kinds = graph.matrix(), graph.nodes.kind[: graph.n_sources]
    chosen = [kinds == part for part in PARTS]
    sizes, *of_kind = sums(matrix, np.ones(len(kinds)), *chosen)
    whole, *signed = sums(matrix, np.ones(len(kinds)), *chosen, absolute=False)
    safe = np.maximum(sizes, 1e-30)
    return Audit(
        np.abs(whole - graph.row_total) / safe,
        {part: found / safe for part, found in zip(PARTS, of_kind, strict=True)},
        dict(zip(PARTS, signed, strict=True)),
        [target["label"] for target in graph.targets],
        np.array([target["value"] for target in graph.targets]),
        graph.replacement_score,
        graph.completeness_score,
    )
