"""How much of a number do a few nodes keep, and how much is lost without them? Beside circuits that are no circuits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosem.circuits.feature_circuit.edge_runs import Link
from monosem.circuits.feature_circuit.edges import OUTPUT, Edge
from monosem.circuits.feature_circuit.parts import Parts
from monosem.circuits.sites import neurons_like
from monosem.errors import ConfigError
from monosem.intervals import DocumentSums, Interval
from monosem.sae import SAE
from monosem.sae.control import random_sae
from monosem.work import doing

Baseline = Literal["neurons", "random dictionary", "random nodes", "edges", "random edges"]
BASELINES: tuple[Baseline, ...] = ("neurons", "random dictionary", "random nodes", "edges", "random edges")
Errors = Literal["nodes", "kept", "removed"]
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
Item = TypeVar("Item")
DRAWS = 3
"""Random circuits of each size, over which the mean is taken."""


@dataclass(frozen=True)
class Curve:
    """Of circuits of several sizes what they keep of the number, and what is left of it without them."""

    name: str
    sizes: list[int]
    """Nodes; of "edges" and "random edges", edges."""
    nodes: list[float]
    """Nodes of each size; for those of edges, that they touch."""
    kept: Float[Tensor, "sizes contexts"]
    """The number with the circuit alone."""
    left: Float[Tensor, "sizes contexts"]
    """The number with all but the circuit."""
    full: Float[Tensor, " contexts"]
    """With everything."""
    empty: Float[Tensor, " contexts"]
    """With nothing: every node in its other state."""

    @property
    def faithfulness(self) -> list[Interval]:
        """(with the circuit alone - with nothing) / (with everything - with nothing), for every size.

        Of the sums over prompts, with a 95 % bootstrap interval over prompts: 1 for all nodes, 0 for none. It may be
        above 1 or below 0, where what helps and what hinders are not in together.
        """
        return [self._share(kept) for kept in self.kept]

    @property
    def completeness(self) -> list[Interval]:
        """The same of all but the circuit: 0 where nothing else does the work."""
        return [self._share(left) for left in self.left]

    def each_prompt(self, size: int) -> Float[Tensor, " contexts"]:
        """The faithfulness of one size prompt by prompt; NaN where the number does not change."""
        whole = self.full - self.empty
        return (self.kept[self.sizes.index(size)] - self.empty) / torch.where(whole == 0, torch.nan, whole)

    def size_for(self, share: float) -> int | None:
        """The smallest size whose faithfulness is at least so much; None if there is none."""
        return next((n for n, one in zip(self.sizes, self.faithfulness, strict=True) if one.value >= share), None)

    def _share(self, values: Tensor) -> Interval:
        sums, documents = DocumentSums(), np.arange(len(values))
        sums.add("whole", documents, (self.full - self.empty).double().cpu().numpy())
        sums.add("part", documents, (values - self.empty).double().cpu().numpy())
        return sums.interval(lambda of: of["part"] / of["whole"])


@dataclass(frozen=True)
class Faithfulness:
    """Curves of a circuit and of its baselines."""

    curves: dict[str, Curve]
    errors: Errors

    def __getitem__(self, name: str) -> Curve:
        return self.curves[name]

    def __str__(self) -> str:
        lines = [f"faithfulness (completeness), errors {self.errors}"]
        for name, curve in self.curves.items():
            lines.append(f"  {name}")
            rows = zip(curve.sizes, curve.nodes, curve.faithfulness, curve.completeness, strict=True)
            for size, nodes, kept, left in rows:
                of = f" ({nodes:.0f} nodes)" if nodes != size else ""
                lines.append(f"    {size:>5}{of}  {_said(kept)}  ({_said(left)})")
        return "\n".join(lines)


def faithfulness(
    parts: Parts,
    edges: Sequence[Edge],
    sizes: Sequence[int],
    baselines: Sequence[Baseline],
    errors: Errors,
    seed: int,
) -> Faithfulness:
    """As `FeatureCircuit.faithfulness`, of all nodes of a circuit, and of the edges between the first of them."""
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown or errors not in ("nodes", "kept", "removed"):
        raise ConfigError(f"baselines are {', '.join(BASELINES)}; errors nodes, kept, removed; got {unknown}, {errors}")
    if not sizes or min(sizes) < 1:
        raise ConfigError(f"sizes are numbers of nodes, 1 or more, got {list(sizes)}")
    runs = _Runs(parts, edges, sizes, errors, np.random.default_rng(seed))
    if not edges:
        baselines = [name for name in baselines if "edges" not in name]
    curves: dict[str, Curve] = {}
    with doing("running circuits", 1 + len(baselines), unit="curves") as work:
        for name in ("circuit", *baselines):
            curves[name] = runs.curve(name)
            work.advance(1)
    return Faithfulness(curves, errors)


class _Runs:
    """Runs of a model with parts of circuits."""

    def __init__(
        self,
        parts: Parts,
        edges: Sequence[Edge],
        sizes: Sequence[int],
        errors: Errors,
        generator: np.random.Generator,
    ) -> None:
        self.parts, self.sizes, self.errors, self.generator = parts, sizes, errors, generator
        ends = [
            (parts.order[edge.source], None if edge.target == OUTPUT else parts.order[edge.target]) for edge in edges
        ]
        self.links: list[Link] = [
            (source, target)
            for source, target in ends
            if errors == "nodes" or not any(parts.is_error(end) for end in (source, target) if end is not None)
        ]

    def curve(self, name: str) -> Curve:
        """That of the circuit, or of a baseline."""
        parts = self.parts
        if name in ("edges", "random edges"):
            return self._of_edges(name)
        if name == "neurons":
            parts = parts.again(neurons_like(parts.asked.model, parts.first().way.sites))
        if name == "random dictionary":
            parts = parts.again(_random(parts))
        nodes = [node for node in parts.order if self.errors == "nodes" or not parts.is_error(node)]
        circuits, sizes = self._circuits(nodes, name == "random nodes")
        always, never = self._errors(parts)
        runs = [(one + always, False) for of in circuits for one in of]
        runs += [(one + never, True) for of in circuits for one in of]
        values = parts.runs([*runs, (always, False)])
        return self._curve(name, sizes, sizes, values, parts)

    def _of_edges(self, name: str) -> Curve:
        """Each node reads from its own edges alone."""
        circuits, sizes = self._circuits(self.links, name == "random edges")
        always, never = self._errors(self.parts)
        runs = [(one, False, always) for of in circuits for one in of]
        runs += [(one, True, never) for of in circuits for one in of]
        values = self.parts.edge_runs([*runs, ([], False, always)])
        touched = [float(np.mean([len(_ends(one)) for one in of])) for of in circuits]
        return self._curve(name, sizes, touched, values, self.parts)

    def _curve(self, name: str, sizes: list[int], nodes: Sequence[float], values: Tensor, parts: Parts) -> Curve:
        """From values of all runs: circuits alone, without them, and nothing; of several draws the mean."""
        of_sizes = values[:-1].unflatten(0, (2, len(sizes), -1)).mean(2)
        return Curve(name, sizes, list(map(float, nodes)), of_sizes[0], of_sizes[1], parts.value, values[-1])

    def _circuits(self, items: Sequence[Item], drawn: bool) -> tuple[list[list[list[Item]]], list[int]]:
        """Of each size the first, or as many at random several times; and the sizes."""
        orders = [[items[i] for i in self.generator.permutation(len(items))] for _ in range(DRAWS)]
        sizes = sorted({min(size, len(items)) for size in self.sizes})
        return [[list(order[:size]) for order in (orders if drawn else [items])] for size in sizes], sizes

    def _errors(self, parts: Parts) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Nodes that are always in, and never."""
        every = [node for node in parts.order if parts.is_error(node)] if self.errors != "nodes" else []
        return every if self.errors == "kept" else [], every if self.errors == "removed" else []


def _ends(links: Sequence[Link]) -> set[tuple[int, int]]:
    return {end for link in links for end in link if end is not None}


def _random(parts: Parts) -> list[SAE]:
    """Dictionaries that never learned, of the same kinds and sizes at the same places."""
    found: list[SAE] = []
    for site in parts.first().way.sites:
        assert site.x is not None
        fresh = random_sae(site.sae, site.rows, None if site.sae.autoencodes else site.x[site.kept])
        fresh.metadata = site.sae.metadata.model_copy(
            update={"hook": site.read, "target_hook": None if site.sae.autoencodes else site.write, "fingerprint": None}
        )
        found.append(fresh)
    return found


def _said(one: Interval) -> str:
    span = "" if one.low is None or one.high is None else f" [{one.low:.2f}, {one.high:.2f}]"
    return f"{one.value:.2f}{span}"
