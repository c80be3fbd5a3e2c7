"""What a sparse feature circuit is made from: effects of all nodes, and the way to run the model with some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.circuits.feature_circuit.batches import Asked, Batch
from monosem.circuits.feature_circuit.edge_runs import EdgeRuns, Link
from monosem.circuits.feature_circuit.nodes import Node, Numbering, SiteEffects, order_of
from monosem.circuits.feature_circuit.states import Mean
from monosem.circuits.sites import Dictionaries
from monosem.work import doing

Nodes = Sequence[tuple[int, int]]
"""(site, number) of each."""


class Parts:
    """What a circuit is made from. Prompts are read some at a time; where one batch has them all, it stays."""

    def __init__(self, asked: Asked, dictionaries: Dictionaries) -> None:
        """Run the model, and find the effects of all nodes."""
        self.asked, self.dictionaries = asked, dictionaries
        self.slices = asked.slices()
        self._only: Batch | None = None
        self._means: list[Mean] | None = None
        if asked.corrupt is None and asked.ablate == "mean":
            for batch in self._read():
                own = [Mean.of(site) for site in batch.way.sites]
                self._means = [a.plus(b) for a, b in zip(self._means, own, strict=True)] if self._means else own
        values, found = list[Tensor](), list[list[SiteEffects]]()
        changes: list[list[Tensor]] = []
        for batch in self.batches():
            sites = batch.way.sites
            self.numberings = [Numbering(site.sae.n_latents, asked.by_position) for site in sites]
            self.hooks = [site.write for site in sites]
            own = batch.effects(self.numberings)
            found = [[a.plus(b) for a, b in zip(found[0], own, strict=True)]] if found else [own]
            values.append(batch.value)
            if asked.method == "integrated":
                changes.append([batch.value - batch.alone(site).value(0.0) for site in sites])
        self.value, self.effects = torch.cat(values), found[0]
        self.changes = [torch.cat(of) for of in zip(*changes, strict=True)] if changes else None

    def _read(self) -> Iterator[Batch]:
        """All prompts, as they are."""
        if self._only is not None:
            yield self._only
            return
        several = len(self.slices) > 1
        for contexts in self.slices:
            batch = Batch(self.asked, self.dictionaries, contexts if several else None)
            if not several:
                self._only = batch
            yield batch

    def batches(self) -> Iterator[Batch]:
        """All prompts, some at a time, with both states of every site."""
        for batch in self._read():
            batch.compare(self._means)
            yield batch

    def first(self) -> Batch:
        """Prompts that are read first."""
        return next(self.batches())

    def again(self, dictionaries: Dictionaries) -> Parts:
        """The same of other dictionaries."""
        return Parts(self.asked, dictionaries)

    @cached_property
    def order(self) -> list[tuple[int, int]]:
        """(site, number) of all nodes, the largest mean effect first."""
        return [(site, int(self.effects[site].numbers[column])) for site, column in order_of(self.effects)]

    def effect(self, site: int, number: int) -> float:
        """Of a node, the mean over prompts."""
        effects = self.effects[site]
        return float(effects.sums[int(torch.searchsorted(effects.numbers, number))]) / len(self.value)

    def node(self, site: int, number: int) -> Node:
        """A node by site and number."""
        position, latent = self.numberings[site].back(torch.tensor([number]))
        return Node(self.hooks[site], int(latent), int(position), self.effect(site, number))

    @property
    def error_share(self) -> float:
        """The share of errors in the sum of all nodes' effects without sign."""
        total = errors = 0.0
        for effects, numbering in zip(self.effects, self.numberings, strict=True):
            sizes = effects.sums.abs()
            total += float(sizes.sum())
            errors += float(sizes[numbering.back(effects.numbers)[1] < 0].sum())
        return errors / total if total else float("nan")

    def is_error(self, node: tuple[int, int]) -> bool:
        """Whether a node is an error."""
        return int(self.numberings[node[0]].back(torch.tensor([node[1]]))[1]) < 0

    def run(self, nodes: Nodes, but: bool = False) -> Float[Tensor, " contexts"]:
        """The number with some nodes alone (or all but these) as they are."""
        return self.runs([(nodes, but)])[0]

    def runs(self, circuits: Sequence[tuple[Nodes, bool]]) -> Float[Tensor, "circuits contexts"]:
        """That of several circuits."""
        chosen = [self._chosen(nodes, but) for nodes, but in circuits]
        found: list[Tensor] = []
        with doing("running circuits", len(circuits) * len(self.slices), unit="runs") as work:
            for batch in self.batches():
                values: list[Tensor] = []
                with batch.spared() if len(chosen) > 1 else nullcontext():
                    for each in chosen:
                        values.append(batch.run(each, self.numberings))
                        work.advance(1)
                found.append(torch.stack(values))
        return torch.cat(found, dim=1)

    def edge_runs(self, circuits: Sequence[tuple[Sequence[Link], bool, Nodes]]) -> Float[Tensor, "circuits contexts"]:
        """That of several circuits of edges, as `EdgeRuns.run` takes them."""
        found: list[Tensor] = []
        with doing("running edges", len(circuits) * len(self.slices), unit="runs") as work:
            for batch in self.batches():
                runs, values = EdgeRuns(batch, self.numberings), list[Tensor]()
                with batch.spared():
                    for links, but, errors in circuits:
                        values.append(runs.run(links, but, errors))
                        work.advance(1)
                found.append(torch.stack(values))
        return torch.cat(found, dim=1)

    def _chosen(self, nodes: Nodes, but: bool) -> list[Tensor]:
        """Of every site the numbers that are in."""
        found: list[Tensor] = []
        for index, effects in enumerate(self.effects):
            own = torch.tensor([number for at, number in nodes if at == index], dtype=torch.int64)
            own = own.to(effects.numbers.device)
            found.append(effects.numbers[~torch.isin(effects.numbers, own)] if but else own)
        return found
