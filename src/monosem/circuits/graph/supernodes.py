"""Supernodes: features of a graph that are made alike and make alike, found, named, and made by hand.

A feature's profile is signed: what share of its value each node gives it, and what share of each target's value it
gives, weighted by how much of the influence passes that target. Two features are as alike as the mean of the cosines of
these two profiles; clusters are those of complete linkage, in which every two members are at least so alike. The same
graph always gives the same groups, in whatever order its nodes stand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_matrix
from scipy.spatial.distance import squareform

from monosem.arguments import checked
from monosem.circuits.graph.core import GraphCore, Supernode
from monosem.errors import ConfigError

MOST = 500
ALIKE = 0.5
SAFE = 1e-12
LONGEST_NAME = 60


def similarity(edges: csr_matrix, features: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """How alike features are, -1 to 1.

    Args:
        edges: (rows, nodes), what each node gives to each row's value; row i is that of feature node i.
        features: numbers of the feature nodes to compare: of their rows and of their columns.
        weights: (rows,) how much passes each row.
    """
    rows = edges.multiply(1 / (abs(edges).sum(1) + SAFE)).tocsr()
    came = rows[list(features)]
    went = rows.multiply(weights[:, None]).tocsc()[:, list(features)].T
    return (_cosines(came) + _cosines(went)) / 2


def clusters(alike: np.ndarray, least: float) -> list[list[int]]:
    """Groups of at least two, in which every two are at least so alike."""
    if len(alike) < 2:
        return []
    far = np.clip(1 - (alike + alike.T) / 2, 0, 2)
    np.fill_diagonal(far, 0)
    numbers = fcluster(linkage(squareform(far, checks=False), "complete"), 1 - least, "distance")
    found: dict[int, list[int]] = {}
    for i, number in enumerate(numbers.tolist()):
        found.setdefault(number, []).append(i)
    return [members for members in found.values() if len(members) > 1]


def _cosines(rows: Any) -> np.ndarray:
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(1))).ravel()
    return (rows @ rows.T).toarray() / (np.outer(norms, norms) + SAFE)


@checked
def find_supernodes(
    graph: GraphCore,
    *,
    alike: float = ALIKE,
    most: int = MOST,
    labels: dict[tuple[str, int], str] | None = None,
) -> list[Supernode]:
    """Groups of features of a graph that are made alike and make alike, the most influential first.

    graph.supernodes = ms.find_supernodes(graph); graph.save("my_graph")

    Args:
        graph: the graph; its own `supernodes` stay as they are.
        alike: how alike every two members are at least, up to 1.
        most: only so many features are compared, the most influential.
        labels: what features are called, by hook point and latent, beside the graph's own labels.

    Returns:
        Groups as `graph.supernodes` has them: `{"name": str, "nodes": [ids]}`.

    Raises:
        ConfigError: a setting is out of range.
    """
    if not 0 < alike <= 1:
        raise ConfigError(f"alike is above 0 and at most 1, got {alike}")
    if most < 2:
        raise ConfigError(f"at least 2 features are compared, got most={most}")
    ids = graph.nodes.ids()
    chosen = graph.top(most)
    chosen.sort(key=lambda i: ids[i])
    weights = np.concatenate([graph.influence[: graph.n_features], graph.weights])
    found = clusters(similarity(graph.matrix(), chosen, weights), alike)
    groups = [[chosen[i] for i in members] for members in found]
    groups.sort(key=lambda members: (-sum(float(graph.influence[i]) for i in members), ids[members[0]]))
    known = {**(labels or {}), **graph.labels}
    names = _distinct([group_name(graph, members, known) for members in groups])
    pairs = zip(names, groups, strict=True)
    return [Supernode(name=name, nodes=[ids[i] for i in members]) for name, members in pairs]


def group_name(graph: GraphCore, members: Sequence[int], labels: dict[tuple[str, int], str]) -> str:
    """What a group of feature nodes is called: the label that weighs most in it, or else its token and its layers."""
    nodes, weight = graph.nodes, defaultdict[str, float](float)
    for i in members:
        label = labels.get((str(nodes.hook[i]), int(nodes.latent[i])))
        if label and label.strip():
            weight[label.strip()] += float(graph.influence[i]) + SAFE
    if weight:
        return max(sorted(weight), key=lambda label: weight[label])[:LONGEST_NAME]
    for i in members:
        weight[graph.words[int(nodes.position[i])]] += float(graph.influence[i]) + SAFE
    word = max(sorted(weight), key=lambda each: weight[each])
    layers = sorted({int(nodes.layer[i]) for i in members})
    span = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    return f"“{word}”, {span}"[:LONGEST_NAME]


def check_supernodes(graph: GraphCore, groups: Sequence[Supernode]) -> None:
    """See that groups can be a graph's.

    Raises:
        ConfigError: two have one name, one is empty, or names a node that is not there or stands in another too.
    """
    ids, names, taken = set(graph.nodes.ids()), set[str](), dict[str, str]()
    for group in groups:
        name = group["name"]
        if name in names:
            raise ConfigError(f"two groups are called {name!r}: give one another name")
        names.add(name)
        if not group["nodes"]:
            raise ConfigError(f"the group {name!r} is empty: leave it out")
        for node in group["nodes"]:
            if node not in ids:
                raise ConfigError(f"the group {name!r} names a node {node[:80]!r} that the graph does not have")
            if node in taken:
                raise ConfigError(f"{node} stands in {taken[node]!r} and in {name!r}: leave it in one group")
            taken[node] = name


def _distinct(names: Sequence[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        free, n = name, 2
        while free in found:
            free, n = f"{name} ({n})", n + 1
        found.append(free)
    return found
