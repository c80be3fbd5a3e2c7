"""Smaller graphs: the nodes and edges that hold most of the influence, with all that is dropped accounted for."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
from scipy.sparse import csr_matrix, diags

from monosem.circuits.graph.core import GraphCore
from monosem.circuits.graph.influence import VARIES, influence_of, shares
from monosem.errors import ConfigError

Kind = TypeVar("Kind", bound=GraphCore)
BINS = 4_096
FEW = 65_536
"""So many numbers are sorted; of more, histograms find the part that matters."""


def prune(graph: Kind, nodes: float = 0.8, edges: float = 0.98) -> Kind:
    """The most influential nodes, then the edges that matter most among them.

    Features and errors are kept from the most influential down until all kept nodes hold the share `nodes`; then edges
    by (share of the row) x (influence of the row) until they hold the share `edges`; then whatever leads nowhere or
    comes from nowhere goes. Tokens, positions, constants and targets stay. What a dropped feature adds is added to the
    error of its place (to the remainder where there is none), what dropped errors and edges add to the remainder: rows
    add up as before.

    Raises:
        ConfigError: a share is not between 0 and 1.
    """
    if not (0 < nodes <= 1 and 0 < edges <= 1):
        raise ConfigError(f"shares of nodes and edges are between 0 and 1, got {nodes} and {edges}")
    n, n_features = graph.n_sources, graph.n_features
    kinds, matrix = graph.nodes.kind[:n], graph.matrix()
    varies = np.isin(kinds, VARIES)
    droppable = np.isin(kinds, ("feature", "error"))
    limit = threshold(graph.influence[varies], nodes)
    kept = ~droppable | (graph.influence >= limit)
    first = _only(matrix, kept, n_features)
    passing = influence_of(first, kinds, n_features, graph.weights)
    weight = np.concatenate([passing[:n_features], graph.weights])
    scored = csr_matrix(diags(weight) @ shares(first, kinds))
    scored = csr_matrix(scored @ diags(varies.astype(float)))  # constants add to nothing that could be explained
    least = threshold(scored.data[scored.data > 0], edges)
    strong = csr_matrix((scored.data >= max(least, 1e-300), scored.indices, scored.indptr), scored.shape)
    strong.eliminate_zeros()
    kept = _connected(strong, kept, droppable, n_features)
    return _without(graph, matrix, kept, _only(strong, kept, n_features))


def threshold(scores: np.ndarray, share: float) -> float:
    """The largest number such that scores not below it hold a share of the sum; without sorting them all."""
    total = float(scores.sum())
    if not len(scores) or total <= 0:
        return 0.0
    wanted, above, part = share * total, 0.0, scores
    while len(part) > FEW:
        low, high = float(part.min()), float(part.max())
        if low == high:
            return low
        edges = np.linspace(low, high, BINS + 1)
        if low > 0 and high / low > BINS:
            edges = np.geomspace(low, high, BINS + 1)
        bins = np.clip(np.searchsorted(edges, part, side="right") - 1, 0, BINS - 1)
        sums = np.bincount(bins, weights=part, minlength=BINS)
        held = above + np.cumsum(sums[::-1])[::-1]  # by this bin and all higher ones
        bin_ = int(np.flatnonzero(held >= wanted - 1e-12 * total).max(initial=0))
        above += float(sums[bin_ + 1 :].sum())
        part = part[bins == bin_]
    order = np.sort(part)[::-1]
    place = int(np.searchsorted(above + np.cumsum(order), wanted - 1e-12 * total))
    return float(order[min(place, len(order) - 1)])


def _only(matrix: csr_matrix, kept: np.ndarray, n_features: int) -> csr_matrix:
    """With rows and columns of what is not kept empty."""
    rows = np.ones(len(matrix.indptr) - 1)
    rows[:n_features] = kept[:n_features]
    found = csr_matrix(diags(rows) @ matrix @ diags(kept.astype(float)))
    found.eliminate_zeros()
    return found


def _connected(strong: csr_matrix, kept: np.ndarray, droppable: np.ndarray, n_features: int) -> np.ndarray:
    """Without features and errors that lead nowhere, and features that come from nowhere, until none is left."""
    kept = kept.copy()
    while True:
        now = _only(strong, kept, n_features)
        leads = np.asarray(now.sum(0)).ravel() > 0
        comes = np.ones_like(kept)
        comes[:n_features] = np.asarray(now.sum(1)).ravel()[:n_features] > 0
        new = kept & (~droppable | leads) & comes
        if (new == kept).all():
            return kept
        kept = new


def _without(graph: Kind, matrix: csr_matrix, kept: np.ndarray, strong: csr_matrix) -> Kind:
    """The graph of what is kept; the rest gathered into errors and the remainder."""
    n, n_features, nodes = graph.n_sources, graph.n_features, graph.nodes
    remainder = int(np.flatnonzero(nodes.kind[:n] == "remainder")[0])
    errors = {
        (str(nodes.hook[i]), int(nodes.position[i])): i for i in np.flatnonzero((nodes.kind[:n] == "error") & kept)
    }
    to = np.arange(n)
    for i in np.flatnonzero(~kept):
        place = (str(nodes.hook[i]), int(nodes.position[i]))
        to[i] = errors.get(place, remainder) if nodes.kind[i] == "feature" else remainder
    rows = np.concatenate([np.flatnonzero(kept[:n_features]), np.arange(n_features, len(matrix.indptr) - 1)])
    chosen, left_over = csr_matrix(matrix[rows]).tocoo(), csr_matrix(strong[rows]).tocoo()
    constant = ~np.isin(nodes.kind[:n], VARIES)
    strong_keys = left_over.row.astype(np.int64) * n + left_over.col
    keys = chosen.row.astype(np.int64) * n + chosen.col
    stays = np.isin(keys, strong_keys) | constant[chosen.col]
    moved = ~kept[chosen.col]
    columns = np.where(moved, to[chosen.col], np.where(stays, chosen.col, remainder))
    number = np.cumsum(kept) - 1
    shape = (len(rows), int(kept.sum()))
    new = csr_matrix((chosen.data, (chosen.row, number[columns])), shape=shape)
    new.sum_duplicates()
    new.sort_indices()
    keep_nodes = np.concatenate([kept, np.ones(len(graph.targets), dtype=bool)])
    left = set(nodes.take(keep_nodes).ids())
    groups = [{"name": g["name"], "nodes": [i for i in g["nodes"] if i in left]} for g in graph.supernodes]
    traced = graph.traced
    if traced is not None:
        gathered: list[list[np.ndarray]] = [[] for _ in range(n)]
        for i in range(n):
            gathered[to[i] if not kept[i] else i].append(traced.columns[i])
        traced = replace(traced, columns=[np.concatenate(gathered[i]) for i in np.flatnonzero(kept)])
    return replace(
        graph,
        nodes=nodes.take(keep_nodes),
        values=new.data,
        columns=new.indices.astype(np.int32),
        offsets=new.indptr.astype(np.int64),
        row_total=graph.row_total[rows],
        influence=np.zeros(0),
        supernodes=[group for group in groups if group["nodes"]],
        heads=graph.heads,
        traced=traced,
    )
