"""Runs of a model with some edges of a circuit alone, or without them: each node reads its own sources and no others.

A node is what its site makes of the state of all earlier sites. With edges alone, that is for each node another: its
sources as they are in this run, everything else in its other state; so each set of sources costs a forward pass up to
the site. The number reads those that have an edge to it. With all edges between all nodes, it is the model's own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.circuits.feature_circuit.batches import Batch
from monosem.circuits.feature_circuit.nodes import Numbering, some
from monosem.interventions.way import Put, Site

Node = tuple[int, int]
"""Site and number."""
Link = tuple[Node, Node | None]
"""Source and target; None is the number."""


@dataclass(frozen=True)
class Moved:
    """What is added at some tokens of a site."""

    at: Int[Tensor, " rows"]
    rows: Float[Tensor, "rows d"]

    @staticmethod
    def of(x: Float[Tensor, "contexts pos d"]) -> Moved:
        flat = x.flatten(0, 1)
        at = (flat != 0).any(1).nonzero()[:, 0]
        return Moved(at, flat[at])


def put(x: Float[Tensor, "contexts pos d"], added: Iterable[Moved], sign: int) -> Float[Tensor, "contexts pos d"]:
    """With some things added, or taken away."""
    flat = x.flatten(0, 1).clone()
    for each in added:
        flat.index_add_(0, each.at, each.rows, alpha=sign)
    return flat.view_as(x)


class EdgeRuns:
    """Of some prompts."""

    def __init__(self, batch: Batch, numberings: Sequence[Numbering]) -> None:
        self.batch, self.sites, self.others, self.numberings = batch, batch.way.sites, batch.others, numberings

    @torch.no_grad()
    def run(self, links: Sequence[Link], but: bool, errors: Sequence[Node]) -> Float[Tensor, " contexts"]:
        """The number with these edges alone (or all but these).

        Args:
            links: edges.
            but: whether these are left out, and all others in.
            errors: of these every edge is among them.
        """
        sources: dict[Node | None, set[Node]] = {}
        for source, target in links:
            sources.setdefault(target, set()).add(source)
        nodes = {source for source, _ in links} | set(errors)
        if but:
            nodes |= {target for target in sources if target is not None}
        sign, always = -1 if but else 1, set(errors)
        bases: list[Tensor] = []
        moved: dict[Node, Moved] = {}

        def state(until: int, among: frozenset[Node]) -> list[Tensor]:
            chosen = [[moved[node] for node in among if node[0] == index] for index in range(until)]
            return [put(base, added, sign) for base, added in zip(bases, chosen, strict=False)]

        for index in range(len(self.sites)):
            groups: dict[frozenset[Node], list[Node]] = {frozenset[Node](): []}
            own = sorted(node for node in nodes if node[0] == index)
            for node in own:
                read = frozenset(each for each in sources.get(node, set()) | always if each[0] < index)
                groups.setdefault(read, []).append(node)
            base, plain = self.others[index].x, dict[Node, Tensor]()
            assert base is not None
            then = self._brought(self.others[index], index, own)
            for read, group in groups.items():
                if not (group or but):
                    continue
                seen = self._seen(index, state(index, read))
                now = self._brought(seen, index, own if but and not read else group)
                if but and not read:
                    assert seen.x is not None
                    base, plain = seen.x, now
                for node in group:
                    moved[node] = Moved.of(now[node] - then[node])
                    if but and read:
                        base = base + now[node] - plain[node]
            bases.append(base)
        last = state(len(self.sites), frozenset(sources.get(None, set()) | always))
        return self.batch.way.run(self._edits(last))

    def _edits(self, states: Sequence[Tensor]) -> list[tuple[str, Put]]:
        return [(site.write, _instead(x)) for site, x in zip(self.sites, states, strict=False)]

    def _seen(self, index: int, states: Sequence[Tensor]) -> Site:
        """What a site is, with earlier ones in some states."""
        site, model = self.sites[index], self.batch.asked.model
        if not states:
            return site
        with model.edit(dict(self._edits(states))):
            got = model.capture(self.batch.clean, list({site.read, site.write}))
        now = copy.copy(site)
        now.rows = got[site.read][site.kept]
        return now.otherwise(got[site.write], site.sae.encode(now.rows).detach())

    def _brought(self, site: Site, index: int, nodes: Iterable[Node]) -> dict[Node, Tensor]:
        """What each node adds at its site."""
        numbering, numbers = self.numberings[index], self.numberings[index].of_entries(site, site.entries)
        positions = torch.arange(site.kept.shape[1], device=numbers.device)
        errors = numbering.of(positions, torch.full_like(positions, numbering.n_latents))
        found: dict[Node, Tensor] = {}
        for node in nodes:
            at_errors = errors == node[1]
            if bool(at_errors.any()):
                found[node] = torch.where(at_errors[:, None], site.rest, 0)
            else:
                found[node] = site.written(some(site.entries, numbers == node[1]))
        return found


def _instead(x: Tensor) -> Put:
    return lambda _, __: x
