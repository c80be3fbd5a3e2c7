"""Graph: which features, errors, tokens and constants make what a model says, edge by edge; its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from monosem.arguments import NotNegative, Positive, checked
from monosem.circuits.graph.audit import Audit, audit
from monosem.circuits.graph.core import KINDS, EdgeHead, GraphCore, Nodes, Supernode, TargetInfo
from monosem.circuits.graph.edge_heads import keep_heads
from monosem.circuits.graph.exchange_write import write_exchanged
from monosem.circuits.graph.prune import prune
from monosem.circuits.graph.show import as_text
from monosem.circuits.graph.single_file import graph_page
from monosem.circuits.graph.verify import Verification, verify
from monosem.circuits.graph.view import graph_view
from monosem.errors import FileError
from monosem.files import fits, read_json, read_safetensors, write_json, write_safetensors, write_text

FORMAT = 1
BROKEN = "save the graph again"


class _File(TypedDict):
    format: int
    prompt: str
    words: list[str]
    model: str
    fingerprint: str
    dictionaries: dict[str, dict[str, str | int]]
    hooks: list[str]
    targets: list[TargetInfo]
    supernodes: list[Supernode]
    labels: list[tuple[str, int, str]]
    settings: dict[str, Any]
    heads: NotRequired[list[tuple[str, str, list[EdgeHead]]]]
    replacement_score: float
    completeness_score: float


@dataclass
class Graph(GraphCore):
    """A prompt's attribution graph: what adds up to each target and to each feature that leads to it.

    Row r of `matrix()` holds, for feature or target `rows[r]`, what every source adds to its value (of a feature: to
    what its activation function reads; of a logit: to its distance from the mean logit). Rows sum to `row_total`.
    """

    @checked
    def pruned(self, nodes: float = 0.8, edges: float = 0.98) -> Graph:
        """A smaller graph that keeps so large shares of the influence: see `circuits.prune`."""
        return prune(self, nodes, edges)

    def audit(self) -> Audit:
        """How exactly rows add up, and what explains each."""
        return audit(self)

    @checked
    def keep_heads(self, most: NotNegative = 100) -> None:
        """Keep through which attention heads the strongest edges go: in what is saved, on the page, in its one file."""
        keep_heads(self, most)

    @checked
    def verify(self, n: Positive = 20, *, factor: float = 0.0, seed: NotNegative = 0) -> Verification:
        """Intervene in the model on n nodes, edges and groups each, and compare with what the graph predicts."""
        return verify(self, n, factor=factor, seed=seed)

    # Shown and exchanged ----------------------------------------------------------------------------------------------

    @checked
    def html(self, path: str | Path) -> Path:
        """Write the graph as one HTML file that needs nothing else: the explorer's page of it, labels inside.

        Raises:
            FileError: the page is not built, or the file cannot be written.
        """
        write_text(path, graph_page(graph_view(self)))
        return Path(path)

    @checked
    def to_json(self, path: str | Path) -> Path:
        """Write the graph as Neuronpedia and circuit-tracer read it; `ms.read_graph` reads it again.

        Raises:
            FileError: it cannot be written.
        """
        return write_exchanged(self, path)

    # Files ------------------------------------------------------------------------------------------------------------

    @checked
    def save(self, folder: str | Path) -> Path:
        """Write graph.json and graph.safetensors into a folder.

        Raises:
            FileError: it cannot be written.
        """
        folder = Path(folder)
        hooks = sorted(set(self.nodes.hook.tolist()))
        numbers = {hook: number for number, hook in enumerate(hooks)}
        arrays = {
            "kind": np.array([KINDS.index(kind) for kind in self.nodes.kind], dtype=np.uint8),
            "hook": np.array([numbers[hook] for hook in self.nodes.hook], dtype=np.int32),
            "layer": self.nodes.layer.astype(np.int32),
            "position": self.nodes.position.astype(np.int32),
            "latent": self.nodes.latent.astype(np.int64),
            "activation": self.nodes.activation,
            "tokens": np.array(self.tokens, dtype=np.int64),
            "values": self.values,
            "columns": self.columns.astype(np.int32),
            "offsets": self.offsets.astype(np.int64),
            "row_total": self.row_total,
            "influence": self.influence,
        }
        write_safetensors(folder / "graph.safetensors", arrays)
        about: _File = {
            "format": FORMAT,
            "prompt": self.prompt,
            "words": self.words,
            "model": self.model,
            "fingerprint": self.fingerprint,
            "dictionaries": self.dictionaries,
            "hooks": hooks,
            "targets": self.targets,
            "supernodes": self.supernodes,
            "labels": [(hook, latent, text) for (hook, latent), text in sorted(self.labels.items())],
            "settings": self.settings,
            "heads": [(source, target, heads) for (source, target), heads in self.heads.items()],
            "replacement_score": self.replacement_score,
            "completeness_score": self.completeness_score,
        }
        write_json(folder / "graph.json", about, indent=1)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Graph:
        """Read what `save` has written. Everything is checked, nothing is run.

        Raises:
            FileError: files are missing, damaged, or do not belong together.
        """
        folder = Path(folder)
        raw: Any = read_json(folder / "graph.json", dict, remedy=BROKEN)
        if isinstance(raw.get("labels"), list):
            raw["labels"] = [tuple(label) if isinstance(label, list) else label for label in raw["labels"]]
        if isinstance(raw.get("heads"), list):
            raw["heads"] = [tuple(each) if isinstance(each, list) else each for each in raw["heads"]]
        about = fits(raw, _File, folder / "graph.json", BROKEN)
        if about["format"] != FORMAT:
            raise FileError(f"{folder} is a graph of format {about['format']}, this version reads {FORMAT}: update it")
        path = folder / "graph.safetensors"
        arrays = {name: tensor.numpy() for name, tensor in read_safetensors(path, remedy=BROKEN).items()}
        _check(arrays, about, path)
        nodes = Nodes(
            np.array(KINDS)[arrays["kind"]],
            np.array(about["hooks"] or [""])[arrays["hook"]],
            *(arrays[name] for name in ("layer", "position", "latent", "activation")),
        )
        return cls(
            prompt=about["prompt"],
            tokens=arrays["tokens"].tolist(),
            words=about["words"],
            model=about["model"],
            fingerprint=about["fingerprint"],
            dictionaries=about["dictionaries"],
            nodes=nodes,
            targets=about["targets"],
            values=arrays["values"],
            columns=arrays["columns"],
            offsets=arrays["offsets"],
            row_total=arrays["row_total"],
            influence=arrays["influence"],
            replacement_score=about["replacement_score"],
            completeness_score=about["completeness_score"],
            supernodes=about["supernodes"],
            labels={(hook, latent): text for hook, latent, text in about["labels"]},
            settings=about["settings"],
            heads={(source, target): heads for source, target, heads in about.get("heads", [])},
        )

    def __str__(self) -> str:
        return as_text(self)


def _check(arrays: dict[str, np.ndarray], about: _File, path: Path) -> None:
    """Raise FileError where arrays do not belong together."""

    def must(holds: bool, what: str) -> None:
        if not holds:
            raise FileError(f"{path} cannot be used: {what}: {BROKEN}")

    wanted = {"kind", "hook", "layer", "position", "latent", "activation", "tokens", "values", "columns", "offsets"}
    missing = sorted((wanted | {"row_total", "influence"}) - arrays.keys())
    must(not missing, f"it lacks {', '.join(missing)}")
    must(all(array.ndim == 1 for array in arrays.values()), "an array is not one-dimensional")
    for name in ("kind", "hook", "layer", "position", "latent", "tokens", "columns", "offsets"):
        must(np.issubdtype(arrays[name].dtype, np.integer), f"{name} is not of whole numbers")
    for name in ("activation", "values", "row_total", "influence"):
        must(np.issubdtype(arrays[name].dtype, np.floating), f"{name} is not of floating point")
        must(bool(np.isfinite(arrays[name]).all()), f"{name} has numbers that are not finite")
    n, kinds = len(arrays["kind"]), arrays["kind"]
    for name in ("hook", "layer", "position", "latent", "activation"):
        must(len(arrays[name]) == n, f"{name} has {len(arrays[name])} entries for {n} nodes")
    must(n == 0 or int(kinds.max()) < len(KINDS), "a node is of no known kind")
    must(
        n == 0 or 0 <= int(arrays["hook"].min()) <= int(arrays["hook"].max()) < len(about["hooks"]), "a hook is missing"
    )
    k, features = len(about["targets"]), int((kinds == 0).sum())
    must(bool((kinds[:features] == 0).all()), "features are not the first nodes")
    must(k > 0 and bool((kinds[n - k :] == len(KINDS) - 1).all()), "targets are not the last nodes")
    must(int((kinds == len(KINDS) - 1).sum()) == k, "there are more target nodes than targets")
    offsets, columns = arrays["offsets"], arrays["columns"]
    must(len(offsets) == features + k + 1, "rows are not those of features and targets")
    must(offsets[0] == 0 and bool((np.diff(offsets) >= 0).all()), "rows do not follow each other")
    must(int(offsets[-1]) == len(columns) == len(arrays["values"]), "edges are missing")
    must(not len(columns) or 0 <= int(columns.min()) <= int(columns.max()) < n - k, "an edge comes from no node")
    must(len(arrays["row_total"]) == features + k, "totals are missing")
    must(len(arrays["influence"]) == n - k, "influences are missing")
    must(len(about["words"]) == len(arrays["tokens"]), "words are not those of the tokens")
    places = arrays["position"]
    must(
        n == 0 or -1 <= int(places.min()) <= int(places.max()) < max(1, len(arrays["tokens"])), "a position is outside"
    )
