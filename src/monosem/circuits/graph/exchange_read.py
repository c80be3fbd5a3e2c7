"""Reading the exchange format of attribution graphs; `exchange_format` says what it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from monosem.arguments import checked
from monosem.circuits.graph.core import Nodes, Supernode, TargetInfo
from monosem.circuits.graph.exchange_format import (
    ATTENTION_ERROR,
    ATTENTION_FEATURE,
    ERROR,
    FEATURE,
    TARGET,
    TOKEN,
    Exchanged,
    Kind,
    Metadata,
    Node,
    QParams,
    unpaired,
)
from monosem.circuits.graph.graph import Graph
from monosem.errors import FileError
from monosem.files import read_json

ANEW = "export the graph anew"
OUTPUT = re.compile(r'Output "(.*)" \(p=[\d.]+\)', re.DOTALL)
NUMBERED = re.compile(r"(\d{1,9}|E)_(\d{1,12})_(\d{1,9})")
KINDS: dict[str, Kind] = {
    FEATURE: "feature",
    ATTENTION_FEATURE: "feature",
    ERROR: "error",
    ATTENTION_ERROR: "error",
    TOKEN: "token",
    TARGET: "target",
}


class Read(NamedTuple):
    """A node of a file, in our terms."""

    given: Node
    kind: Kind
    hook: str
    layer: int
    position: int
    latent: int


def _read_node(node: Node, n_words: int, name: str) -> Read:
    own = node.get("monosem")
    if own is not None:
        if not -1 <= own["position"] < n_words:
            raise FileError(f"{name}: node {node['node_id'][:80]!r} stands outside the prompt: {ANEW}")
        return Read(node, own["kind"], own["hook"], own["layer"], own["position"], own["latent"])
    where = f"{name}: node {node['node_id'][:80]!r}"
    kind = KINDS.get(node["feature_type"])
    if kind is None:
        raise FileError(f"{where} is of an unknown type, {node['feature_type'][:80]!r}: {ANEW}")
    position = node["ctx_idx"]
    if not 0 <= position < n_words:
        raise FileError(f"{where} stands at token {position}, and the prompt has {n_words}: {ANEW}")
    if kind == "token":
        found = NUMBERED.fullmatch(node["node_id"])
        return Read(node, kind, "embed", -1, position, int(found[2]) if found and found[1] == "E" else -1)
    layer = int(node["layer"]) if re.fullmatch(r"\d{1,6}", str(node["layer"])) else -1
    if layer < 0:
        raise FileError(f"{where} is of layer {str(node['layer'])[:20]!r}, which is no number: {ANEW}")
    if kind == "target":
        return Read(node, kind, "logits", layer, position, node["feature"] if node["feature"] is not None else -1)
    attention = node["feature_type"] in (ATTENTION_FEATURE, ATTENTION_ERROR)
    hook = f"{'attn' if attention else 'mlp'}_out.{layer}"
    return Read(node, kind, hook, layer, position, _latent(node, layer) if kind == "feature" else -1)


def _latent(node: Node, layer: int) -> int:
    """The latent of a feature: as its name says, or else its number."""
    found = NUMBERED.fullmatch(node["node_id"])
    if found and found[1] == str(layer):
        return int(found[2])
    number = node["feature"] or 0
    first, latent = unpaired(number) if number >= 0 else (-1, number)
    return latent if first == layer else number


def _ends(file: Exchanged, nodes: list[Read], name: str) -> Iterator[tuple[int, int, float]]:
    """Source, target and weight of every link, as numbers of nodes."""
    at: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        at.setdefault(node.given["node_id"], []).append(i)
    for node_id, several in at.items():
        kinds = sorted(nodes[i].kind for i in several)
        if len(several) > 1 and kinds != ["error", "feature"]:
            raise FileError(f"{name}: {len(several)} nodes are called {node_id[:80]!r}: {ANEW}")
    met: set[tuple[int, int]] = set()
    twice = Counter((link["source"], link["target"]) for link in file["links"] if len(at.get(link["source"], ())) > 1)
    for link in file["links"]:
        for end in ("source", "target"):
            if link[end] not in at:
                raise FileError(f"{name}: a link's {end}, {link[end][:80]!r}, is no node of the file: {ANEW}")
        target = min(at[link["target"]], key=lambda i: nodes[i].kind == "error")
        if nodes[target].kind not in ("feature", "target"):
            raise FileError(f"{name}: {link['target'][:80]!r} is given something, and is no feature or output: {ANEW}")
        several = at[link["source"]]
        if twice[link["source"], link["target"]] == 2:
            feature_first = sorted(several, key=lambda i: nodes[i].kind, reverse=True)
            source = next((i for i in feature_first if (i, target) not in met), feature_first[0])
        else:
            source = _meant(nodes, several, target)
        if (source, target) in met:
            raise FileError(f"{name}: two links lead from {link['source'][:80]!r} to {link['target'][:80]!r}: {ANEW}")
        met.add((source, target))
        yield source, target, link["weight"]


def _meant(nodes: list[Read], several: list[int], target: int) -> int:
    """Which of two nodes of one name a single link comes from: an error behind the target gives it nothing."""
    if len(several) == 1:
        return several[0]
    feature, error = sorted(several, key=lambda i: nodes[i].kind, reverse=True)
    behind = nodes[target].kind != "target" and nodes[error].layer >= nodes[target].layer
    return feature if behind else error


@checked
def read_graph(path: str | Path) -> Graph:
    """A graph from a folder that `Graph.save` has written, or from a file of Neuronpedia, circuit-tracer or `to_json`.

    Raises:
        FileError: it is missing, damaged, or does not keep to the format.
    """
    return Graph.load(path) if Path(path).is_dir() else read_exchanged(path)


def read_exchanged(path: str | Path) -> Graph:
    """A graph from a file of this format: of Neuronpedia, circuit-tracer, or of ours.

    Raises:
        FileError: the file is missing, damaged, or does not keep to the format.
    """
    file = read_json(path, Exchanged, remedy=ANEW)
    name, words = str(path), file["metadata"]["prompt_tokens"]
    nodes = [_read_node(node, len(words), name) for node in file["nodes"]]
    order = sorted(range(len(nodes)), key=lambda i: _place(nodes[i], i))
    placed = [nodes[i] for i in order]
    features = sum(node.kind == "feature" for node in placed)
    targets = [node for node in placed if node.kind == "target"]
    if not targets:
        raise FileError(f"{name} has no outputs: {ANEW}")
    n_sources = len(placed) - len(targets)
    row = [i if i < features else i - n_sources + features for i in range(len(placed))]
    ends = [(row[target], source, weight) for source, target, weight in _ends(file, placed, name)]
    if any(source >= n_sources for _, source, _ in ends):
        raise FileError(f"{name}: an output gives something to a node: {ANEW}")
    rows, columns, values = (np.array(each) for each in zip(*ends, strict=True)) if ends else (np.zeros(0),) * 3
    shape = (features + len(targets), n_sources)
    matrix = csr_matrix((values.astype(np.float32), (rows.astype(int), columns.astype(int))), shape=shape)
    matrix.sort_indices()
    totals = np.asarray(matrix.sum(1), dtype=np.float64).ravel()
    row_nodes = [node for node in placed if node.kind in ("feature", "target")]
    for i, node in enumerate(row_nodes):
        totals[i] = (node.given.get("monosem") or {}).get("total", totals[i])
    own: Any = file["metadata"].get("monosem") or {}
    names = {node.given["node_id"]: i for i, node in enumerate(placed) if node.kind != "error"}
    table = Nodes(
        np.array([node.kind for node in placed]),
        np.array([node.hook for node in placed]),
        np.array([node.layer for node in placed], dtype=np.int32),
        np.array([node.position for node in placed], dtype=np.int32),
        np.array([node.latent for node in placed], dtype=np.int64),
        np.array([node.given.get("activation") or 0.0 for node in placed]),
    )
    if len(set(table.ids())) < len(table):
        raise FileError(f"{name}: two nodes are the same feature at the same token: {ANEW}")
    tokens = own.get("tokens") or _tokens(placed, len(words))
    if len(tokens) != len(words):
        raise FileError(f"{name} has {len(words)} words of {len(tokens)} tokens: {ANEW}")
    return Graph(
        prompt=file["metadata"]["prompt"],
        tokens=tokens,
        words=words,
        model=own.get("model", file["metadata"]["scan"]),
        fingerprint=own.get("fingerprint") or "",
        dictionaries=own.get("dictionaries") or _dictionaries(placed, file["metadata"]),
        nodes=table,
        targets=[_target(node, total) for node, total in zip(targets, totals[features:].tolist(), strict=True)],
        values=matrix.data,
        columns=matrix.indices.astype(np.int32),
        offsets=matrix.indptr.astype(np.int64),
        row_total=totals,
        supernodes=_supernodes(file["qParams"], names, table),
        labels=_labels(placed),
        settings=own.get("settings") or {},
    )


def _place(node: Read, number: int) -> tuple[Any, ...]:
    """Features first, from early places to late ones, then other sources, then targets; else as in the file."""
    if node.given.get("monosem") is not None:
        return (node.kind == "target", node.kind != "feature", number)
    return (node.kind == "target", node.kind != "feature", node.layer if node.kind == "feature" else 0, number)


def _target(node: Read, value: float) -> TargetInfo:
    given = node.given
    own = given.get("monosem")
    if own is not None and "target" in own:
        return own["target"]
    found = OUTPUT.fullmatch(given.get("clerp") or "")
    probability = given.get("token_prob")
    return TargetInfo(
        label=found[1] if found else given.get("clerp") or given["node_id"],
        probability=probability,
        value=value,
        position=node.position,
        weight=probability if probability else 1.0,
    )


def _tokens(nodes: list[Read], n: int) -> list[int]:
    """Ids as the names of token nodes have them; 0 where they do not say."""
    found = {node.position: node.latent for node in nodes if node.kind == "token"}
    return [max(0, found.get(position, 0)) for position in range(n)]


def _labels(nodes: list[Read]) -> dict[tuple[str, int], str]:
    features = (node for node in nodes if node.kind == "feature")
    labels = {(node.hook, node.latent): (node.given.get("clerp") or "").strip() for node in features}
    return {key: label for key, label in labels.items() if label}


def _dictionaries(nodes: list[Read], metadata: Metadata) -> dict[str, dict[str, Any]]:
    names = metadata.get("transcoder_list") or []
    hooks = sorted({(node.layer, node.hook) for node in nodes if node.kind == "feature"})
    return {
        hook: {"name": names[layer] if layer < len(names) else metadata["scan"], "hash": "", "kind": "transcoder"}
        for layer, hook in hooks
    }


def _supernodes(params: QParams, names: dict[str, int], table: Nodes) -> list[Supernode]:
    """Groups of a viewer; nodes that the file does not have are left out."""
    found: list[Supernode] = []
    for name, *members in (group for group in params.get("supernodes") or [] if group):
        known = [table.id(names[member]) for member in members if member in names]
        if known:
            found.append(Supernode(name=name, nodes=known))
    return found
