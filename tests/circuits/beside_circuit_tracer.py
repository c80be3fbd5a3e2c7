"""One model, set of transcoders and prompt for circuit-tracer and for us, and both graphs' edges side by side."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import monosem as ms
from monosem.models import SubjectModel
from monosem.sae import SAE

SCRIPT = Path(__file__).parents[1] / "interop" / "peers" / "circuit_tracer_graph.py"


def write_case(
    folder: Path, module: Any, coders: list[SAE], tokens: list[int], targets: list[int], features: int, batch: int = 256
) -> Path:
    """What their script reads: a GPT-2, a transcoder for each layer, a prompt and the tokens to explain."""
    module.save_pretrained(folder / "model")
    for coder in coders:
        ms.export_sae(coder, folder / "coders", "circuit_tracer")
    task = {"tokens": tokens, "targets": targets, "features": features, "batch": batch}
    (folder / "task.json").write_text(json.dumps(task))
    return folder


def run_theirs(python: Path, folder: Path) -> dict[str, Any]:
    """Let the real library trace it.

    Raises:
        RuntimeError: it failed.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    run = [str(python), str(SCRIPT), str(folder)]
    done = subprocess.run(run, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def read_case(folder: Path) -> tuple[SubjectModel, list[SAE], dict[str, Any]]:
    """The same model, transcoders and task for us."""
    task = json.loads((folder / "task.json").read_text())
    found = ms.load_model(str(folder / "model"))
    coders = [ms.load_sae(folder / "coders" / f"layer_{layer}.safetensors") for layer in range(found.n_layers)]
    return found, coders, task


@dataclass
class Beside:
    """Edges of both, (readers, sources): readers are features and then targets, sources features, errors and tokens."""

    ours: np.ndarray
    theirs: np.ndarray
    kinds: np.ndarray
    """Of sources."""
    positions: np.ndarray
    """Of sources."""
    largest: np.ndarray
    """Of each row the largest edge."""

    def difference(self, sources: np.ndarray) -> float:
        """The largest difference at some sources, as a share of the row's largest edge."""
        return float((np.abs(self.ours - self.theirs)[:, sources] / self.largest[:, None]).max())


def beside(graph: ms.Graph, folder: Path) -> Beside:
    """Both graphs' edges: rows of the features of both and of the targets, columns of all sources of theirs.

    Of a feature that leads nowhere (of the last layer at an earlier position) we keep no row, and no edge leads from
    it; theirs has none at the first position.
    """
    found = load_file(folder / "edges.safetensors")
    square, features = found["edges"].numpy().astype(np.float64), found["features"].tolist()
    length, layers = len(graph.tokens), 1 + max(layer for layer, _, _ in features)
    names = [f"mlp_out.{layer}/{latent}@{position}" for layer, position, latent in features]
    names += [f"error:mlp_out.{layer}@{position}" for layer in range(layers) for position in range(length)]
    names += [f"token:embed@{position}" for position in range(length)]
    number = {name: i for i, name in enumerate(names)}
    ids, n_targets = graph.nodes.ids(), len(graph.targets)
    both = [row for row, name in enumerate(ids[: graph.n_features]) if name in number]
    rows = [number[ids[row]] for row in both]
    theirs = np.concatenate([square[rows], square[-n_targets:]])[:, : len(names)]
    ours = np.zeros_like(theirs)
    matrix = graph.matrix()[both + list(range(graph.n_features, len(graph.rows)))].toarray()
    for column, name in enumerate(ids[: graph.n_sources]):
        if name in number:
            ours[:, number[name]] = matrix[:, column]
    kinds = ["feature" if "/" in name else name.partition(":")[0] for name in names]
    positions = np.array([int(name.rpartition("@")[2]) for name in names])
    return Beside(ours, theirs, np.array(kinds), positions, np.abs(theirs).max(1).clip(1e-30))


def random_coder(layer: int, width: int, n_latents: int) -> SAE:
    """A skip transcoder with a threshold of its own for each latent, all of it random."""
    coder = ms.JumpReLUSkipTranscoder(width, n_latents, transform="none")
    generator = torch.Generator().manual_seed(layer)
    with torch.no_grad():
        for name, parameter in coder.named_parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            if name == "threshold":
                parameter.abs_()
    known = {"hook": f"mlp_in.{layer}", "target_hook": f"mlp_out.{layer}"}
    coder.metadata = coder.metadata.model_copy(update=known)
    return coder
