"""A graph as it is shown: its most influential nodes and the strongest edges between them, as plain values."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float

from monosem.circuits.graph.core import GraphCore

MOST_NODES, MOST_EDGES = 1_000, 30_000
SAFE = 1e-12
FIRST = ("target", "token")


def graph_view(graph: GraphCore, most: int = MOST_NODES) -> dict[str, Any]:
    """Nodes and edges to show, with the groups; docs/explorer_api.md describes the fields (`GraphView`).

    Args:
        graph: the graph.
        most: nodes to show: targets and tokens first, then those of most influence.
    """
    influence, ranks = influences(graph), cumulative_ranks(graph)
    first = np.isin(graph.nodes.kind, FIRST)
    order = np.argsort(-(influence + np.where(first, 1e9, 0)), kind="stable")[: max(most, 1)]
    chosen = np.sort(order[(influence[order] > 0) | first[order]])
    number = np.full(len(graph.nodes), -1)
    number[chosen] = np.arange(len(chosen))
    edges = graph.matrix().tocoo()
    targets, sources, values = graph.rows[edges.row], edges.col, edges.data
    kept = (number[targets] >= 0) & (number[sources] >= 0) & (values != 0)
    targets, sources, values = targets[kept], sources[kept], values[kept]
    strongest = np.argsort(-carried(graph, influence, targets, values), kind="stable")[:MOST_EDGES]
    ids = {graph.nodes.id(int(i)) for i in chosen}
    groups = [{"name": group["name"], "nodes": [n for n in group["nodes"] if n in ids]} for group in graph.supernodes]
    return {
        "id": "",
        "prompt": graph.prompt or "".join(graph.words),
        "words": list(graph.words),
        "model": graph.model or None,
        "nodes": [_node(graph, int(i), float(influence[i]), float(ranks[i])) for i in chosen],
        "edges": {
            "source": number[sources[strongest]].tolist(),
            "target": number[targets[strongest]].tolist(),
            "value": [float(f"{value:.4g}") for value in values[strongest].tolist()],
        },
        "groups": [group for group in groups if group["nodes"]],
        "all": {
            "nodes": len(graph.nodes),
            "edges": len(graph.values),
            "held": float(influence[chosen].sum() / max(influence.sum(), SAFE)),
        },
        "heads": [
            {"source": source, "target": target, "heads": list(heads)}
            for (source, target), heads in graph.heads.items()
            if source in ids and target in ids
        ],
        "replacement_score": graph.replacement_score,
        "completeness_score": graph.completeness_score,
        "dictionaries": {
            hook: {"kind": str(about.get("kind")), "n_latents": about.get("n_latents"), "shown": None}
            for hook, about in graph.dictionaries.items()
        },
        "closed": "changing features needs the model: `monosem explore`",
    }


def influences(graph: GraphCore) -> Float[np.ndarray, " nodes"]:
    """Of every node what share of all that is explained passes it; 0 of targets."""
    return np.concatenate([graph.influence / max(float(graph.weights.sum()), SAFE), np.zeros(len(graph.targets))])


def cumulative_ranks(graph: GraphCore) -> Float[np.ndarray, " nodes"]:
    """Of every node the share of all influence held by it and those of more; 0 of targets."""
    order = np.argsort(-graph.influence, kind="stable")
    ranks = np.zeros(len(graph.nodes))
    ranks[order] = np.cumsum(graph.influence[order]) / max(float(graph.influence.sum()), SAFE)
    return np.minimum(ranks, 1)


def carried(graph: GraphCore, influence: np.ndarray, targets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """By what edges are chosen: what they carry to the targets; those into targets come first."""
    sums = np.zeros(len(graph.nodes))
    np.add.at(sums, targets, np.abs(values))
    passing = np.where(np.arange(len(graph.nodes)) >= graph.n_sources, 1e9, influence)
    return np.abs(values) / (sums[targets] + SAFE) * passing[targets]


def _node(graph: GraphCore, number: int, influence: float, rank: float) -> dict[str, Any]:
    nodes = graph.nodes
    kind, hook = str(nodes.kind[number]), str(nodes.hook[number])
    position, latent = int(nodes.position[number]), int(nodes.latent[number])
    target = graph.targets[number - graph.n_sources] if kind == "target" else None
    label = graph.labels.get((hook, latent)) if kind == "feature" else None
    if kind == "token":
        label = graph.words[position]
    return {
        "id": nodes.id(number),
        "kind": kind,
        "hook": hook or None,
        "layer": int(nodes.layer[number]),
        "position": None if position < 0 else position,
        "latent": None if latent < 0 or kind != "feature" else latent,
        "activation": float(f"{nodes.activation[number]:.5g}") if kind == "feature" else None,
        "influence": float(f"{influence:.5g}"),
        "rank": float(f"{rank:.6g}"),
        "label": target["label"] if target else label,
        "value": float(f"{target['value']:.6g}") if target else None,
        "probability": target["probability"] if target else None,
    }
