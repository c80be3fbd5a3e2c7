"""Through which attention heads an edge goes, and from which token to which.

With patterns and norm scales held, an edge is a sum over paths, each of which goes through some heads or through none.
What passes a head is the sum of the paths through it: of one layer's heads these add up to what the edge would lose
without that layer's attention. A path through heads of two layers counts in both, so that layers do not add up.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosem.circuits.frozen.frozen import Frozen
from monosem.circuits.frozen.steps import Mix
from monosem.circuits.frozen.units import Dictionaries, layer_number
from monosem.circuits.graph.changes import feature_entry, goals_of_graph, traced_again
from monosem.circuits.graph.core import EdgeHead, GraphCore
from monosem.circuits.graph.sources import Sources
from monosem.circuits.graph.traced import Traced
from monosem.circuits.graph.view import carried, influences
from monosem.errors import ConfigError
from monosem.models import SubjectModel
from monosem.work import doing

SOURCES = ("feature", "error", "token", "position")
KEPT = 24
"""Heads of an edge that are kept, at most."""
LEAST = 1e-3
"""Heads through which less than this share of the strongest head's goes are left out."""


@torch.no_grad()
def edge_heads(
    graph: GraphCore, model: SubjectModel, dictionaries: Dictionaries, source: str, target: str
) -> list[EdgeHead]:
    """What of an edge passes each head, the strongest first.

    Args:
        graph: the graph; its targets are tokens.
        model: the model that it was traced in.
        dictionaries: those that it was traced with.
        source: the id of a feature, error, token or position.
        target: the id of a feature or target.

    Raises:
        ConfigError: there is no such node, or it is of another kind.
        MismatchError: model or dictionaries are others.
    """
    at = {graph.nodes.id(number): number for number in range(len(graph.nodes))}
    for node, kinds in ((source, SOURCES), (target, ("feature", "target"))):
        if node not in at or str(graph.nodes.kind[at[node]]) not in kinds:
            raise ConfigError(f"{node[:80]!r} is no {' or '.join(kinds)} of the graph")
    frozen = traced_again(graph, model, dictionaries)
    goals = goals_of_graph(graph, frozen) if str(graph.nodes.kind[at[target]]) == "target" else []
    return _of_edge(graph, Traced(model, frozen, Sources(frozen), goals, []), at[source], at[target])


@torch.no_grad()
def keep_heads(graph: GraphCore, most: int = 100) -> None:
    """Find for the strongest edges through which heads they go, and keep it in `graph.heads`: saved and shown with it.

    Args:
        graph: a graph as `ms.trace` has made it, or pruned from that.
        most: so many edges, of those that carry most to the targets.

    Raises:
        ConfigError: it was read from a file, so that its pass is not there.
    """
    if graph.traced is None:
        raise ConfigError("the pass of this graph is not there: trace the prompt anew, then keep heads and save it")
    nodes, edges = graph.nodes, graph.matrix().tocoo()
    targets, sources = graph.rows[edges.row], edges.col
    strength = carried(graph, influences(graph), targets, edges.data) * np.isin(nodes.kind[sources], SOURCES)
    order = np.argsort(-strength, kind="stable")[:most]
    with doing("heads of edges", len(order), unit="edges") as work:
        for source, target in zip(sources[order].tolist(), targets[order].tolist(), strict=True):
            graph.heads[nodes.id(source), nodes.id(target)] = _of_edge(graph, graph.traced, source, target)[:KEPT]
            work.advance(1)


def _of_edge(graph: GraphCore, traced: Traced, source: int, target: int) -> list[EdgeHead]:
    """The heads of one edge, by the numbers of its nodes, the strongest first."""
    frozen = traced.frozen
    moved = frozen.push(traced.sources.changes([_column(graph, traced, source)]))
    site, cotangent = _cotangent(graph, traced, target)
    found = [head for layer, paths in _passing(frozen, moved, site, cotangent) for head in _heads(layer, paths)]
    strongest = max((abs(head["value"]) for head in found), default=0.0)
    kept = [head for head in found if abs(head["value"]) > LEAST * strongest]
    return sorted(kept, key=lambda head: -abs(head["value"]))


def _passing(
    frozen: Frozen, moved: dict[int, Tensor], site: int, cotangent: Float[Tensor, "1 pos d"]
) -> Iterator[tuple[int, Float[Tensor, "heads query key"]]]:
    """Of every layer what each head brings from each position to each, on the way to a site."""
    waiting = {site: cotangent}
    for number in range(site, -1, -1):
        g = waiting.pop(number, None)
        if g is None:
            continue
        here, n = frozen.sites[number], g.shape[1]
        for step in here.steps:
            if isinstance(step, Mix) and step.source in moved:
                x = moved[step.source][:, :n]
                values = (x @ step.weight.T / step.scale[:n]).unflatten(2, (step.kv_heads, -1))[0]
                values = values.repeat_interleave(step.group, dim=1)
                wanted = g.unflatten(2, (step.heads, -1))[0]
                paths = step.pattern.square(n) * torch.einsum("qhe,khe->hqk", wanted, values)
                yield layer_number(here.name), paths
            back = step.transpose(g)
            waiting[step.source] = waiting[step.source] + back if step.source in waiting else back


def _heads(layer: int, paths: Float[Tensor, "heads query key"]) -> list[EdgeHead]:
    found: list[EdgeHead] = []
    for head, own in enumerate(paths):
        writes, reads = divmod(int(own.abs().argmax()), own.shape[1])
        value = float(own.double().sum())
        found.append(EdgeHead(layer=layer, head=head, value=value, reads=reads, writes=writes))
    return found


def _column(graph: GraphCore, traced: Traced, number: int) -> int:
    """The column of a node among all sources of the pass."""
    nodes, sources = graph.nodes, traced.sources
    kind, hook, position = str(nodes.kind[number]), str(nodes.hook[number]), int(nodes.position[number])
    if kind == "feature":
        unit, entry = feature_entry(graph, traced.frozen, number)
        return sources.starts[unit] + entry
    for group in sources.groups:
        if group.kind == kind and group.by_position and (kind in ("token", "position") or group.hook == hook):
            return group.start + position
    raise ConfigError(f"{nodes.id(number)} is not in the pass as it is traced now")


def _cotangent(graph: GraphCore, traced: Traced, number: int) -> tuple[int, Float[Tensor, "1 pos d"]]:
    """The site that a node reads, and by what its value grows with it."""
    frozen = traced.frozen
    if str(graph.nodes.kind[number]) == "target":
        goal = traced.goals[number - graph.n_sources]
        return goal.site, goal.cotangent(frozen)
    unit, entry = feature_entry(graph, frozen, number)
    site, position = frozen.read_at[unit], int(graph.nodes.position[number])
    row = frozen.units[unit].readers(torch.tensor([entry], device=frozen.tokens.device)).to(frozen.dtype)
    found = row.new_zeros(1, position + 1, row.shape[1])
    found[0, position] = row[0]
    return site, found
