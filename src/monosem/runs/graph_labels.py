"""What the features of a graph are called in the feature stores of runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from monosem.circuits import Graph
from monosem.features import FeatureStore


def label_graph(graph: Graph, runs: Iterable[str | Path]) -> int:
    """Call features that have no label by their names, or else explanations, in the stores of their dictionaries.

    graph = ms.trace(model, sae, prompt); label_graph(graph, ["runs/demo"]); graph.html("graph.html")

    Args:
        graph: its `labels` are added to.
        runs: run folders; one without a feature store, or of another dictionary, has no names for it.

    Returns:
        How many features have got a label.

    Raises:
        FileError: a store is damaged.
    """
    stores: dict[str, FeatureStore] = {}
    for run in runs:
        if (Path(run) / "features/index.json").is_file():
            store = FeatureStore(run)
            stores[str(store.index.get("dictionary"))] = store
    before = len(graph.labels)
    nodes, n = graph.nodes, graph.n_features
    for hook, about in graph.dictionaries.items():
        store = stores.get(str(about.get("hash")))
        if store is None:
            continue
        latents = {int(nodes.latent[i]) for i in range(n) if nodes.hook[i] == hook}
        names, explained = store.columns(("name",)).column("name"), store.explanations()
        for latent in sorted(latents):
            item = explained.get(latent)
            label = names[latent].as_py() or (item.text.replace("*", "") if item else None)
            if label and (hook, latent) not in graph.labels:
                graph.labels[hook, latent] = label
    return len(graph.labels) - before
