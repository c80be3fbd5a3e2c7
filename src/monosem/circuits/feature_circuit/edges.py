"""The edges of a sparse feature circuit: what of a node's effect runs straight into another node, past all others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.circuits.feature_circuit.batches import Batch
from monosem.circuits.feature_circuit.nodes import Numbering, SiteEffects
from monosem.circuits.feature_circuit.parts import Parts
from monosem.interventions.way import Put, Site, Way
from monosem.models import EditContext
from monosem.work import doing

OUTPUT = -1
"""As a target: the number itself."""


@dataclass(frozen=True)
class Edge:
    """A direct effect, of which no part runs through another site."""

    source: int
    """Which node."""
    target: int
    """Which node, or OUTPUT."""
    effect: float
    """In the number: what of the source's effect reaches it by way of the target first; a mean over contexts."""


class Cut:
    """One forward pass in which every site is cut: gradients run from one site to the next and no further."""

    def __init__(self, way: Way) -> None:
        self.way = way
        self.leaves: dict[Site, Tensor] = {}
        self.came: dict[Site, Tensor] = {}
        self.read: dict[Site, Tensor] = {}

        def reading(site: Site) -> Put:
            def read(x: Tensor, context: EditContext) -> Tensor:
                self.read[site] = x
                return x

            return read

        def cutting(site: Site) -> Put:
            def cut(x: Tensor, context: EditContext) -> Tensor:
                torch.set_grad_enabled(True)  # what comes before the first site needs no graph
                self.came[site] = x
                self.leaves[site] = torch.zeros_like(x, requires_grad=True)
                return x.detach() + self.leaves[site]

            return cut

        functions: list[tuple[str, Put]] = []
        for site in way.sites:
            functions += [(site.read, reading(site)), (site.write, cutting(site))]
        with torch.no_grad():
            self.number = way.run(functions)

    def gradients(self, number: Tensor, until: int) -> list[Float[Tensor, "contexts pos d"] | None]:
        """Of a number by what each of the first sites writes, past all others."""
        leaves = [self.leaves[site] for site in self.way.sites[:until]]
        if not leaves or not number.requires_grad:
            return [None] * len(leaves)
        return list(torch.autograd.grad(number, leaves, retain_graph=True, allow_unused=True))


class Targets:
    """The nodes of one site as numbers that depend on the sites before it, each times the gradient by it."""

    @torch.enable_grad()
    def __init__(self, cut: Cut, index: int, numbering: Numbering, gradient: Float[Tensor, "contexts pos d"]) -> None:
        site = cut.way.sites[index]
        rows = cut.read[site][site.kept]
        codes = site.sae.encode(rows)
        self.features = codes.values * site.by_code(gradient).to(codes.values.dtype)
        self.numbers = numbering.of_entries(site, codes)
        self.errors = ((cut.came[site] - site.written(codes, rows)) * gradient).sum(-1)
        positions = torch.arange(self.errors.shape[1], device=self.errors.device)
        self.of_errors = numbering.of(positions, torch.full_like(positions, numbering.n_latents))

    @torch.enable_grad()
    def of(self, number: int) -> Tensor:
        """All of one node, over contexts and positions."""
        return self.features[self.numbers == number].sum() + self.errors[:, self.of_errors == number].sum()


def edges_of(parts: Parts, nodes: Sequence[tuple[int, int]]) -> list[Edge]:
    """All edges between nodes, each (site, number), and from them to the number itself; largest first.

    A target's own effect on the number, to first order, times what the source moves in it. With all nodes of all sites
    given, the edges out of a node add up to its effect.
    """
    at = {node: i for i, node in enumerate(nodes)}
    sums: dict[tuple[int, int], float] = {}
    with doing("edges", len(nodes) * len(parts.slices), unit="nodes") as work:
        for batch in parts.batches():
            for source, target, effect in _of_batch(batch, parts.numberings, at, work):
                sums[source, target] = sums.get((source, target), 0.0) + effect
    found = [Edge(*ends, total / len(parts.value)) for ends, total in sums.items() if total]
    return sorted(found, key=lambda edge: -abs(edge.effect))


def _of_batch(
    batch: Batch, numberings: Sequence[Numbering], at: dict[tuple[int, int], int], work: Any
) -> Iterator[tuple[int, int, float]]:
    """Sources, targets, and effects summed over some prompts."""
    cut = Cut(batch.way)

    def into(number: Tensor, until: int, target: int) -> Iterator[tuple[int, int, float]]:
        for index, gradient in enumerate(cut.gradients(number, until)):
            if gradient is None:
                continue
            effects = SiteEffects.of(batch.way.sites[index], batch.others[index], gradient, numberings[index])
            for node, effect in zip(effects.numbers.tolist(), effects.sums.tolist(), strict=True):
                if (index, node) in at:
                    yield at[index, node], target, effect

    yield from into(cut.number.sum(), len(batch.way.sites), OUTPUT)
    for index in range(len(batch.way.sites)):
        own = [node for node in at if node[0] == index]
        if own and index:
            targets = Targets(cut, index, numberings[index], batch.gradients[index])
            for node in own:
                yield from into(targets.of(node[1]), index, at[node])
        work.advance(len(own))
