"""A graph as it is shown: its most influential nodes and the strongest edges between them, as plain values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from monosem.circuits.graph import Graph

MOST_NODES, MOST_EDGES = 1_000, 30_000
SAFE = 1e-12


def graph_view(graph: Graph, most: int = MOST_NODES) -> dict[str, Any]:
    """Nodes and edges to show, with the groups; docs/explorer_api.md describes the fields.

    Args:
        graph: the graph.
        most: nodes to show: targets and tokens first, then those of most influence.
    """
    influence = all_influence(graph)
    ranks = cumulative_ranks(influence)
    kinds = np.asarray(graph.nodes.kind)
    first = np.flatnonzero((kinds == "target") | (kinds == "token"))
    by_influence = np.argsort(-influence, kind="stable")
    order = np.concatenate([first, by_influence[~np.isin(by_influence, first)]])[: max(most, 1)]
    chosen = np.sort(order[(influence[order] > 0) | np.isin(order, first)])
    number = np.full(len(kinds), -1)
    number[chosen] = np.arange(len(chosen))
    edges = graph.matrix().tocoo()  # rows are `graph.rows`, columns nodes
    targets, sources, values = graph.rows[edges.row], edges.col, edges.data
    kept = (number[targets] >= 0) & (number[sources] >= 0) & (values != 0)
    targets, sources, values = targets[kept], sources[kept], values[kept]
    sums = np.zeros(len(kinds))
    np.add.at(sums, targets, np.abs(values))
    weight = np.abs(values) / (sums[targets] + SAFE) * np.where(kinds[targets] == "target", 1e9, influence[targets])
    strongest = np.argsort(-weight, kind="stable")[:MOST_EDGES]
    return {
        "prompt": graph.prompt,
        "words": list(graph.words),
        "model": graph.model,
        "nodes": [_node(graph, int(i), float(influence[i]), float(ranks[i])) for i in chosen],
        "edges": {
            "source": number[sources[strongest]].tolist(),
            "target": number[targets[strongest]].tolist(),
            "value": [float(f"{value:.4g}") for value in values[strongest].tolist()],
        },
    }
