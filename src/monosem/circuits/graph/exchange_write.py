"""Writing the exchange format of attribution graphs; `exchange_format` says what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monosem.circuits.graph.core import GraphCore
from monosem.circuits.graph.exchange_format import (
    ATTENTION_FEATURE,
    ERROR,
    FEATURE,
    SCHEMA_VERSION,
    TARGET,
    TOKEN,
    Kind,
    paired,
)
from monosem.circuits.graph.view import cumulative_ranks
from monosem.files import write_json

WRITTEN: dict[Kind, str] = {
    "feature": FEATURE,
    "error": ERROR,
    "token": TOKEN,
    "position": TOKEN,
    "bias": ERROR,
    "beginning": ERROR,
    "remainder": ERROR,
    "target": TARGET,
}
"""Types that every reader knows; biases, the beginning and the remainder are drawn as what features do not explain."""
SAID = {"position": "position", "bias": "biases", "beginning": "beginning of the text", "remainder": "what is left out"}


def exchanged(graph: GraphCore, slug: str = "graph") -> dict[str, Any]:
    """A graph as the exchange format has it.

    Args:
        graph: the graph.
        slug: what it is called where it is shown.
    """
    ranks, names = cumulative_ranks(graph), _node_names(graph)
    matrix = graph.matrix()
    row_nodes = graph.rows
    coordinates = matrix.tocoo()
    links = [
        {"source": names[source], "target": names[target], "weight": weight}
        for source, target, weight in zip(
            coordinates.col.tolist(), row_nodes[coordinates.row].tolist(), coordinates.data.tolist(), strict=True
        )
    ]
    by_id = dict(zip(graph.nodes.ids(), names, strict=True))
    totals = dict(zip(row_nodes.tolist(), graph.row_total.tolist(), strict=True))
    metadata = {
        "slug": slug,
        "scan": graph.model,
        "transcoder_list": [str(about.get("name", hook)) for hook, about in graph.dictionaries.items()],
        "prompt_tokens": list(graph.words),
        "prompt": graph.prompt or "".join(graph.words),
        "schema_version": SCHEMA_VERSION,
        "info": {"generator": {"name": "monosem"}},
        "monosem": {
            "format_version": 1,
            "model": graph.model,
            "fingerprint": graph.fingerprint,
            "tokens": list(graph.tokens),
            "dictionaries": graph.dictionaries,
            "settings": graph.settings,
        },
    }
    return {
        "metadata": metadata,
        "qParams": {
            "pinnedIds": [],
            "supernodes": [[group["name"], *(by_id[node] for node in group["nodes"])] for group in graph.supernodes],
            "linkType": "both",
            "clickedId": "",
            "sg_pos": "",
        },
        "nodes": [
            _written(graph, number, names[number], float(ranks[number]), totals.get(number))
            for number in range(len(graph.nodes))
        ],
        "links": links,
    }


def write_exchanged(graph: GraphCore, path: str | Path) -> Path:
    """Write a graph as Neuronpedia and circuit-tracer read it.

    Raises:
        FileError: it cannot be written.
    """
    path = Path(path)
    write_json(path, exchanged(graph, path.stem))
    return path


def _node_names(graph: GraphCore) -> list[str]:
    """`LAYER_LATENT_POSITION` of features, as others have it, where no two would be called the same."""
    nodes = graph.nodes
    hooks: dict[int, set[str]] = {}
    for kind, layer, hook in zip(nodes.kind.tolist(), nodes.layer.tolist(), nodes.hook.tolist(), strict=True):
        if kind == "feature":
            hooks.setdefault(layer, set()).add(hook)
    found: list[str] = []
    for number, name in enumerate(nodes.ids()):
        kind, layer, latent = str(nodes.kind[number]), int(nodes.layer[number]), int(nodes.latent[number])
        position = int(nodes.position[number])
        if kind == "feature" and len(hooks[layer]) == 1:
            found.append(f"{layer}_{latent}_{position}")
        elif kind == "token":
            found.append(f"E_{latent}_{position}")
        else:
            found.append(name)
    return found


def _written(graph: GraphCore, number: int, name: str, rank: float, total: float | None) -> dict[str, Any]:
    nodes = graph.nodes
    kind: Any = str(nodes.kind[number])
    hook, layer = str(nodes.hook[number]), int(nodes.layer[number])
    position, latent = int(nodes.position[number]), int(nodes.latent[number])
    target = graph.targets[number - graph.n_sources] if kind == "target" else None
    label = graph.labels.get((hook, latent), "") if kind == "feature" else SAID.get(kind, "")
    feature = {"feature": lambda: paired(layer, latent), "token": lambda: position, "target": lambda: latent}
    own: dict[str, Any] = {"kind": kind, "hook": hook, "layer": layer, "position": position, "latent": latent}
    if target is not None:
        label = f'Output "{target["label"]}" (p={target["probability"] or 0:.3f})'
        own["target"] = dict(target)
    return {
        "node_id": name,
        "feature": feature.get(kind, lambda: -1)(),
        "layer": "E" if layer < 0 else str(layer),
        "ctx_idx": max(0, position),
        "feature_type": ATTENTION_FEATURE if kind == "feature" and hook.startswith("attn") else WRITTEN[kind],
        "jsNodeId": f"{name}-0",
        "clerp": label,
        "influence": None if target else rank,
        "activation": float(nodes.activation[number]) if kind == "feature" else None,
        "token_prob": (target["probability"] or 0.0) if target else 0.0,
        "is_target_logit": number == graph.n_sources,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "monosem": own if total is None else {**own, "total": total},
    }
