"""graph.verify(n): interventions on nodes, edges and groups, predicted by the graph and measured in the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags, eye
from scipy.sparse.linalg import spsolve_triangular
from torch import Tensor

from monosem.circuits.frozen.intervened import REGIMES, Intervened, Regime
from monosem.circuits.graph.core import GraphCore
from monosem.circuits.graph.show import name_of
from monosem.circuits.graph.traced import Traced
from monosem.errors import ConfigError
from monosem.work.progress import doing

GROUP = 8
"""Features in a group."""
NOTHING = 1e-6
"""An intervention that moves its number by less than this share of the number's row is said to do nothing."""


@dataclass(frozen=True)
class Tested:
    """One intervention: by how much a number should move, and by how much it did."""

    kind: str
    """node, edge or group."""
    label: str
    direct: float
    """Predicted, everything else held still: an edge; of nodes and groups the largest that they have."""
    total: float
    """Predicted of the target with all paths through the graph's features."""
    frozen: float
    iterative: float
    free: float
    scales: tuple[float, float]
    """The absolute sums of the rows: of the direct effect, and of the total one."""

    def predicted(self, regime: Regime) -> float:
        return self.direct if regime == "frozen" else self.total

    def measured(self, regime: Regime) -> float:
        return {"frozen": self.frozen, "iterative": self.iterative, "free": self.free}[regime]

    def did_something(self, regime: Regime) -> bool:
        return max(abs(self.predicted(regime)), abs(self.measured(regime))) > NOTHING * self.scale(regime)

    def scale(self, regime: Regime) -> float:
        return self.scales[regime != "frozen"]


@dataclass(frozen=True)
class Agreement:
    """Of interventions of a kind under one regime."""

    kind: str
    regime: Regime
    n: int
    nothing: int
    """Of these, how many did nothing and were predicted to do nothing: they count for nothing."""
    r: float
    """Correlation of predicted and measured (1 where all are equal); NaN of fewer than two."""
    slope: float
    """Of measured by predicted, through 0."""
    worst: float
    """The largest difference, as a share of the row's absolute sum."""


@dataclass(frozen=True)
class Verification:
    """Predicted and measured, intervention by intervention."""

    tests: list[Tested]

    def agreement(self, kind: str, regime: Regime) -> Agreement:
        """How well they agree."""
        of_kind = [test for test in self.tests if test.kind == kind]
        real = [test for test in of_kind if test.did_something(regime)]
        x = np.array([test.predicted(regime) for test in real])
        y = np.array([test.measured(regime) for test in real])
        scales = np.array([test.scale(regime) for test in real])
        r = float("nan")
        if len(real) > 1:
            spread = float(x.std() * y.std())
            r = float(np.mean((x - x.mean()) * (y - y.mean())) / spread) if spread > 0 else float(np.allclose(x, y))
        slope = float(x @ y / (x @ x)) if len(real) and float(x @ x) > 0 else float("nan")
        worst = float((np.abs(x - y) / scales).max()) if len(real) else 0.0
        return Agreement(kind, regime, len(of_kind), len(of_kind) - len(real), r, slope, worst)

    def __str__(self) -> str:
        lines = [f"{'':7}{'regime':11}{'tests':>6}{'no effect':>11}{'r':>8}{'slope':>8}{'largest difference':>20}"]
        for kind in dict.fromkeys(test.kind for test in self.tests):
            for regime in REGIMES:
                a = self.agreement(kind, regime)
                name = f"{kind}s" if regime == "frozen" else ""
                lines.append(f"{name:7}{regime:11}{a.n:>6}{a.nothing:>11}{a.r:>8.3f}{a.slope:>8.3f}{a.worst:>20.1e}")
        return "\n".join(lines)


def verify(graph: GraphCore, n: int = 20, *, factor: float = 0.0, seed: int = 0) -> Verification:
    """Multiply sources by a factor in the model, and compare what moves with what the graph says.

    Nodes: n sources, on what they give most (frozen) and on the first target (iterative, free). Edges: n edges between
    features, on the feature that they lead to. Groups: n groups of eight features, or the graph's own, as nodes.
    Sources are drawn by their influence, edges by their size.

    Args:
        graph: a graph that was traced in this process.
        n: interventions of each kind.
        factor: by which sources are multiplied; 0 takes them away.
        seed: of the draw.

    Raises:
        ConfigError: the graph was read from a file, and its model is not here.
    """
    traced: Traced | None = graph.traced
    if traced is None:
        raise ConfigError("this graph was read from a file, without its model: trace the prompt again, then verify")
    if n < 1 or factor == 1:
        raise ConfigError(f"n is at least 1 and factor not 1 (which changes nothing), got {n} and {factor}")
    return _Verifier(graph, traced, factor, np.random.default_rng(seed)).run(n)


class _Verifier:
    def __init__(self, graph: GraphCore, traced: Traced, factor: float, draw: np.random.Generator) -> None:
        self.graph, self.traced, self.change, self.draw = graph, traced, factor - 1, draw
        self.matrix = csr_matrix(graph.matrix(), dtype=np.float64)
        self.sizes = np.asarray(abs(self.matrix).sum(1)).ravel()
        self.model = Intervened(traced.frozen)
        self.clean = {regime: self.model.run({}, regime) for regime in REGIMES}
        n_features = graph.n_features
        totals = graph.row_total[:n_features]
        safe = np.where(totals == 0, np.inf, totals)
        self.relative = csr_matrix(diags(1 / safe) @ self.matrix[:n_features]) if n_features else None

    def run(self, n: int) -> Verification:
        graph = self.graph
        varies = np.flatnonzero(np.isin(graph.nodes.kind[: graph.n_sources], ("feature", "error", "token", "position")))
        nodes = self._drawn(varies, graph.influence[varies], n)
        features = np.arange(graph.n_features)
        jobs: list[tuple[str, list[int], int]] = [("node", [node], graph.n_features) for node in nodes]
        jobs += [("edge", [source], row) for source, row in self._edges(n)]
        ids = {name: number for number, name in enumerate(graph.nodes.ids())}
        groups = [[ids[i] for i in group["nodes"] if i in ids] for group in graph.supernodes][:n]
        while len(groups) < n and len(features) > 1:
            groups.append(self._drawn(features, graph.influence[features], min(GROUP, len(features))))
        jobs += [("group", group, graph.n_features) for group in groups]
        with doing("verifying", len(jobs), unit="interventions") as work:
            tests: list[Tested] = []
            for kind, sources, row in jobs:
                tests.append(self._test(kind, sources, row))
                work.advance(1)
        return Verification(tests)

    def _drawn(self, numbers: np.ndarray, weights: np.ndarray, n: int) -> list[int]:
        able = numbers[weights > 0]
        if not len(able):
            return []
        chances = weights[weights > 0] / weights[weights > 0].sum()
        return self.draw.choice(able, min(n, len(able)), replace=False, p=chances).tolist()

    def _edges(self, n: int) -> list[tuple[int, int]]:
        """Source and row of edges between features, drawn by their size; of edges from errors where there are none."""
        part = self.matrix[: self.graph.n_features].tocoo()
        kinds = self.graph.nodes.kind
        for wanted in (("feature",), ("error", "token")):
            among = np.isin(kinds[part.col], wanted) & (part.data != 0)
            if among.any():
                sizes = np.abs(part.data[among]) / self.sizes[part.row[among]]
                chosen = self.draw.choice(
                    int(among.sum()), min(n, int(among.sum())), replace=False, p=sizes / sizes.sum()
                )
                return list(zip(part.col[among][chosen].tolist(), part.row[among][chosen].tolist(), strict=True))
        return []

    def _test(self, kind: str, sources: list[int], row: int) -> Tested:
        graph = self.graph
        changed = self._changes(sources)
        sums = np.asarray(self.matrix[:, sources].sum(1)).ravel()
        nearest = row if kind == "edge" else int(np.abs(sums).argmax())  # what it gives most, itself
        values: dict[str, float] = {}
        for regime in REGIMES:
            found, at = self.model.run(changed, regime), nearest if regime == "frozen" else row
            values[regime] = self._read(found, at) - self._read(self.clean[regime], at)
        label = " + ".join(name_of(graph, source) for source in sources[:2])
        label += f" + {len(sources) - 2} more" if len(sources) > 2 else ""
        label += f" -> {name_of(graph, int(graph.rows[row]))}"
        total = self._total(sources, row)
        scales = (float(self.sizes[nearest]), float(self.sizes[row]))
        return Tested(kind, label, self.change * float(sums[nearest]), total, **values, scales=scales)

    def _changes(self, sources: list[int]) -> dict[int, Tensor]:
        columns = [int(column) for source in sources for column in self.traced.columns[source]]
        moved = self.traced.sources.changes(columns, self.change)
        return {number: change.sum(0) for number, change in moved.items()}

    def _read(self, values: dict[int, Tensor], row: int) -> float:
        """The row's number, in a run."""
        graph, traced = self.graph, self.traced
        if row >= graph.n_features:
            goal = traced.goals[row - graph.n_features]
            site, positions, vectors = goal.site, goal.positions, goal.vectors
        else:
            column = torch.from_numpy(traced.columns[row])
            ((number, entries, _),) = traced.sources.feature(column)
            unit = traced.frozen.units[number]
            site, positions = traced.frozen.read_at[number], unit.positions[entries]
            vectors = unit.readers(entries).to(traced.frozen.dtype)
        return float((values[site][positions].double() * vectors.double()).sum())

    def _total(self, sources: list[int], row: int) -> float:
        """Along all paths through features, each answering in proportion to what it reads."""
        n = self.graph.n_features
        moved = np.zeros(self.graph.n_sources)
        moved[sources] = self.change
        if self.relative is not None:
            square = self.relative[:, :n]
            first = np.asarray(self.relative @ moved).ravel()
            held = np.zeros(n)
            held[[source for source in sources if source < n]] = 1
            system = csr_matrix(eye(n) - diags(1 - held) @ square)
            answers = spsolve_triangular(system, first * (1 - held), lower=True, unit_diagonal=True)
            moved[:n] += answers
        return float((self.matrix[row] @ moved)[0])
