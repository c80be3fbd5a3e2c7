"""Graphs of several prompts: what they have in common, how two differ, how stable they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from monosem.circuits.graph.core import GraphCore
from monosem.circuits.graph.influence import VARIES, shares
from monosem.errors import ConfigError

Feature = tuple[str, int]
"""Hook point and latent: the same in every prompt, whatever its position."""


@dataclass(frozen=True)
class Together:
    """Features of several graphs, by hook point and latent, positions summed."""

    features: list[Feature]
    influence: np.ndarray
    """(graphs, features), the share of each graph's influence."""
    edges: dict[tuple[Feature, Feature], np.ndarray]
    """(graphs,) of every edge between features: its share of what comes to the latter."""

    def top(self, k: int = 10) -> list[tuple[Feature, float, int]]:
        """Features by their mean influence: which, how much, in how many graphs."""
        mean = self.influence.mean(0)
        order = np.argsort(-mean, kind="stable")[:k]
        return [(self.features[i], float(mean[i]), int((self.influence[:, i] > 0).sum())) for i in order]

    def top_edges(self, k: int = 10) -> list[tuple[tuple[Feature, Feature], float, int]]:
        """Edges by the size of their mean."""
        means = [(pair, float(shares.mean()), int((shares != 0).sum())) for pair, shares in self.edges.items()]
        return sorted(means, key=lambda item: (-abs(item[1]), item[0]))[:k]

    def stability(self) -> float:
        """The mean cosine of the influences of every two graphs: 1 where prompts pass by the same features."""
        norms = np.linalg.norm(self.influence, axis=1, keepdims=True)
        cosines = (self.influence / np.maximum(norms, 1e-30)) @ (self.influence / np.maximum(norms, 1e-30)).T
        return float(cosines[np.triu_indices(len(cosines), 1)].mean())

    def __str__(self) -> str:
        n = len(self.influence)
        lines = [f"{n} graphs, {len(self.features):,} features, stability {self.stability():.2f}"]
        lines += [f"  {share:6.1%}  {hook} #{latent} in {there} of {n}" for (hook, latent), share, there in self.top()]
        return "\n".join(lines)


def aggregate(graphs: Sequence[GraphCore]) -> Together:
    """Graphs of several prompts, paraphrases or seeds in one table.

    Raises:
        ConfigError: there are fewer than two, or their dictionaries are not the same.
    """
    if len(graphs) < 2:
        raise ConfigError("give two graphs at least")
    hashes = [{hook: about.get("hash") for hook, about in graph.dictionaries.items()} for graph in graphs]
    if any(each != hashes[0] for each in hashes):
        raise ConfigError("these graphs are of different dictionaries: trace the prompts with the same ones")
    number: dict[Feature, int] = {}
    sums: list[dict[int, float]] = []
    edges: dict[tuple[Feature, Feature], np.ndarray] = defaultdict(lambda: np.zeros(len(graphs)))
    for place, graph in enumerate(graphs):
        n, nodes = graph.n_features, graph.nodes
        total = max(float(graph.influence[:n].sum()), 1e-30)
        keys = [(str(nodes.hook[i]), int(nodes.latent[i])) for i in range(n)]
        mine: dict[int, float] = defaultdict(float)
        for key, influence in zip(keys, graph.influence[:n].tolist(), strict=True):
            mine[number.setdefault(key, len(number))] += influence / total
        sums.append(mine)
        matrix = graph.matrix()[:n].tocoo()
        sizes = np.asarray(abs(graph.matrix()[:n]).sum(1)).ravel()
        weights = graph.influence[:n] / total
        for row, column, value in zip(matrix.row.tolist(), matrix.col.tolist(), matrix.data.tolist(), strict=True):
            if column < n:
                edges[keys[column], keys[row]][place] += value / sizes[row] * weights[row]
    influence = np.zeros((len(graphs), len(number)))
    for place, mine in enumerate(sums):
        influence[place, list(mine)] = list(mine.values())
    return Together(list(number), influence, dict(edges))


def difference(graph: GraphCore, other: GraphCore) -> list[tuple[Feature, float]]:
    """By how much more of the influence passes each feature in the first graph, the largest differences first.

    As of a prompt and its corruption, or of two models with one dictionary.
    """
    both = aggregate([graph, other])
    gap = both.influence[0] - both.influence[1]
    order = np.argsort(-np.abs(gap), kind="stable")
    return [(both.features[i], float(gap[i])) for i in order if gap[i]]


def path_depth(graph: GraphCore) -> np.ndarray:
    """(depths,) of what targets are made of, the share that comes there by paths through 0, 1, 2, ... features.

    Of what starts at tokens, positions and errors. A cross-layer transcoder may explain by one short path what a model
    does in several steps: compare its depths with those of transcoders of single layers before trusting it.
    """
    n = graph.n_features
    kinds = graph.nodes.kind[: graph.n_sources]
    normalised = shares(graph.matrix(), kinds)
    ends = np.isin(kinds, VARIES) & (kinds != "feature")
    passing = np.asarray(normalised[n:].T @ graph.weights).ravel()
    found: list[float] = []
    while passing.any() and len(found) < 1000:
        found.append(float(passing[ends].sum()))
        passing = np.asarray(normalised[:n].T @ passing[:n]).ravel() if n else np.zeros_like(passing)
    whole = np.array(found)
    return whole / max(whole.sum(), 1e-30)
