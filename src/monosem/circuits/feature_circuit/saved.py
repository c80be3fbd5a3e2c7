"""A feature circuit as files: plain numbers and names, checked when they are read; nothing in them is run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypedDict

from monosem.circuits.feature_circuit.batches import Method
from monosem.circuits.feature_circuit.edges import OUTPUT, Edge
from monosem.circuits.feature_circuit.nodes import Node
from monosem.errors import FileError
from monosem.files import fits, read_json, read_safetensors, write_json, write_safetensors

FORMAT = 1
BROKEN = "save the circuit again"
NAMES = "circuit.json", "circuit.safetensors"


class _File(TypedDict):
    format: int
    model: str
    fingerprint: str
    method: Method
    sites: list[str]
    n_nodes: int
    error_share: float | None


@dataclass(frozen=True)
class CircuitData:
    """A circuit as data; `FeatureCircuit` is one that may be run."""

    nodes: list[Node]
    """The largest effects first, whatever their sign."""
    edges: list[Edge]
    """Between these nodes, and from them to the number; the largest first."""
    metric: Float[Tensor, " contexts"]
    """The number of each context, as the model is."""
    without: Float[Tensor, " contexts"]
    """The number with every node in its other state."""
    n_nodes: int
    """How many nodes have an effect at all."""
    method: Method
    site_totals: dict[str, Float[Tensor, " contexts"]]
    """The sum of the effects of all nodes of each site."""
    site_changes: dict[str, Float[Tensor, " contexts"]] | None
    """What goes of the number when that site alone goes to its other state, where that was asked for: "integrated"."""
    error_share: float
    """The share of errors in the sum of all nodes' effects without sign; NaN where there are no effects."""
    model: str
    fingerprint: str
    """Of the model, as `model.fingerprint()` has it."""


def write_circuit(circuit: CircuitData, folder: Path) -> None:
    """Write circuit.json and circuit.safetensors."""
    sites = list(circuit.site_totals)
    arrays: dict[str, Any] = {
        "site": np.array([sites.index(node.site) for node in circuit.nodes], np.int32),
        "latent": np.array([node.latent for node in circuit.nodes], np.int64),
        "position": np.array([node.position for node in circuit.nodes], np.int64),
        "effect": np.array([node.effect for node in circuit.nodes], np.float64),
        "source": np.array([edge.source for edge in circuit.edges], np.int32),
        "target": np.array([edge.target for edge in circuit.edges], np.int32),
        "edge": np.array([edge.effect for edge in circuit.edges], np.float64),
        "metric": circuit.metric,
        "without": circuit.without,
        "totals": torch.stack([circuit.site_totals[site] for site in sites]),
    }
    if circuit.site_changes is not None:
        arrays["changes"] = torch.stack([circuit.site_changes[site] for site in sites])
    arrays = {name: x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x for name, x in arrays.items()}
    about: _File = {
        "format": FORMAT,
        "model": circuit.model,
        "fingerprint": circuit.fingerprint,
        "method": circuit.method,
        "sites": sites,
        "n_nodes": circuit.n_nodes,
        "error_share": None if math.isnan(circuit.error_share) else circuit.error_share,
    }
    write_safetensors(folder / NAMES[1], arrays)
    write_json(folder / NAMES[0], about, indent=1)


def read_circuit(folder: Path) -> dict[str, Any]:
    """The fields of a circuit.

    Raises:
        FileError: files are missing, damaged, or do not belong together.
    """
    raw: Any = read_json(folder / NAMES[0], dict, remedy=BROKEN)
    about = fits(raw, _File, folder / NAMES[0], BROKEN)
    if about["format"] != FORMAT:
        raise FileError(f"{folder} is a circuit of format {about['format']}, this version reads {FORMAT}: update it")
    arrays = {name: tensor.numpy() for name, tensor in read_safetensors(folder / NAMES[1], remedy=BROKEN).items()}
    sites = about["sites"]
    _check(arrays, about, folder / NAMES[1])
    columns = [arrays[name].tolist() for name in ("site", "latent", "position", "effect")]
    per_site = {
        name: dict(zip(sites, torch.from_numpy(arrays[name]), strict=True))
        for name in ("totals", "changes")
        if name in arrays
    }
    edges = [arrays[name].tolist() for name in ("source", "target", "edge")]
    return {
        "nodes": [Node(sites[site], *rest) for site, *rest in zip(*columns, strict=True)],
        "edges": [Edge(*each) for each in zip(*edges, strict=True)],
        "metric": torch.from_numpy(arrays["metric"]),
        "without": torch.from_numpy(arrays["without"]),
        "site_totals": per_site["totals"],
        "site_changes": per_site.get("changes"),
        **{name: about[name] for name in ("model", "fingerprint", "method", "n_nodes")},
        "error_share": float("nan") if about["error_share"] is None else about["error_share"],
    }


def _check(arrays: dict[str, np.ndarray], about: _File, path: Path) -> None:
    """Raise FileError where arrays do not belong together."""

    def must(holds: bool, what: str) -> None:
        if not holds:
            raise FileError(f"{path} cannot be used: {what}: {BROKEN}")

    whole, real = ("site", "latent", "position", "source", "target"), ("effect", "edge", "metric", "without", "totals")
    missing = [name for name in (*whole, *real) if name not in arrays]
    must(not missing, f"it lacks {', '.join(missing)}")
    must((about["method"] == "integrated") == ("changes" in arrays), "changes of sites go with integrated effects")
    for name in whole:
        must(np.issubdtype(arrays[name].dtype, np.integer), f"{name} is not of whole numbers")
    for name in (*real, *(["changes"] if "changes" in arrays else [])):
        must(np.issubdtype(arrays[name].dtype, np.floating), f"{name} is not of floating point")
        must(bool(np.isfinite(arrays[name]).all()), f"{name} has numbers that are not finite")
    n, m = arrays["site"].size, arrays["source"].size
    for names, length in ((("site", "latent", "position", "effect"), n), (("source", "target", "edge"), m)):
        must(all(arrays[name].shape == (length,) for name in names), f"{', '.join(names)} are not equally long")
    sites, contexts = len(about["sites"]), arrays["metric"].shape
    must(len(set(about["sites"])) == sites, "a site stands twice")
    must(len(contexts) == 1 and arrays["without"].shape == contexts, "numbers are not of the same prompts")
    for name in ("totals", "changes"):
        of_sites = name not in arrays or (arrays[name].ndim == 2 and len(arrays[name]) == sites)
        must(of_sites, f"{name} are not of each site")
    must(n == 0 or 0 <= int(arrays["site"].min()) <= int(arrays["site"].max()) < sites, "a node is of no site")
    must(n == 0 or int(arrays["latent"].min()) >= -1, "a latent is below -1")
    must(n <= about["n_nodes"], "there are more nodes listed than there are")
    must(m == 0 or 0 <= int(arrays["source"].min()) <= int(arrays["source"].max()) < n, "an edge comes from no node")
    must(m == 0 or OUTPUT <= int(arrays["target"].min()) <= int(arrays["target"].max()) < n, "an edge goes to no node")
