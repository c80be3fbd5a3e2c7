"""Transcoders, SAEs or neurons: of which do fewer nodes do an MLP's work?

    python studies/circuits_by_unit.py [--output studies] [--tokens 150000] [--latents 1024]

Trains transcoders of every MLP of the bundled model and SAEs of every MLP's output, of as many latents as there are
neurons, on the same tokens. Then sparse feature circuits (`ms.feature_circuit`) of each, on two tasks: the next token
of held-out text, all MLPs against their mean over texts; and the token that continues a repeated row of words, against
rows that are not repeated. The model is run with the largest nodes alone: which share of what the MLPs do do they keep
(faithfulness), with what dictionaries leave unexplained as nodes among others, and with that taken away? Nodes at
random and dictionaries that never learned stand beside. Writes circuits_by_unit.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import monosem as ms
from monosem.activations.inputs import open_text
from monosem.circuits.feature_circuit.faithfulness import Curve
from monosem.circuits.sites import Neurons
from monosem.models import SubjectModel
from monosem.sae import SAE

SIZES = (4, 16, 64, 256, 1024, 4096)
UNITS = ("transcoders", "SAEs", "neurons")
PROMPTS, LENGTH, ROW = 48, 24, 10
K = 24
ENOUGH = 0.8
AT = 1024
"""Nodes at which units are compared without errors: about a quarter of all there are."""


@dataclass
class Task:
    """Prompts, those that stand for nothing, and a number."""

    clean: Tensor
    corrupt: Tensor | None
    number: Callable[[Any], Tensor]


def trained(model: SubjectModel, tokens: int, latents: int) -> dict[str, list[SAE]]:
    """Transcoders and SAEs of all MLPs, on one pass."""
    layers = range(model.n_layers)
    hooks = [f"mlp_{side}.{layer}" for layer in layers for side in ("in", "out")]
    source: Any = ms.activations(model, hooks, text="bundled", buffer_tokens=16_384)
    saes: dict[str, SAE] = {}
    views: dict[str, Any] = {}
    for layer in layers:
        read, write = f"mlp_in.{layer}", f"mlp_out.{layer}"
        saes[f"transcoder {layer}"] = ms.Transcoder(model.d_model, latents, k=K)
        views[f"transcoder {layer}"] = source.pair(read, write)
        saes[f"SAE {layer}"] = ms.TopKSAE(model.d_model, latents, k=K)
        views[f"SAE {layer}"] = source.select(write)
    ms.train_together(saes, views, tokens=tokens)
    pairs = [(f"transcoder {layer}", f"SAE {layer}") for layer in layers]
    neurons: list[SAE] = [Neurons(model.width(f"mlp_mid.{layer}"), f"mlp_mid.{layer}") for layer in layers]
    return {"transcoders": [saes[a] for a, _ in pairs], "SAEs": [saes[b] for _, b in pairs], "neurons": neurons}


def tasks(model: SubjectModel) -> dict[str, Task]:
    contexts, _ = open_text(model, "bundled:held_out", context_length=LENGTH)
    batch = next(contexts.in_batches(PROMPTS))
    text = torch.as_tensor(batch.tokens)

    def loss(out: Any) -> Tensor:
        logits = out.logits[:, :-1].log_softmax(-1)
        return -logits.gather(-1, text[:, 1:, None])[..., 0].mean(1)

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(300, 4096, (PROMPTS, 2 * ROW), generator=generator)
    start = torch.full((PROMPTS, 1), int(model.tokens("a")[0, 0]))
    first, other = rows[:, :ROW], rows[:, ROW:]
    clean = torch.cat([start, first, first[:, :-1]], 1)
    corrupt = torch.cat([start, other, first[:, :-1]], 1)

    def continued(out: Any) -> Tensor:
        last = out.logits[:, -1]
        return last.gather(1, first[:, -1:])[:, 0] - last.mean(1)

    return {"next token of text": Task(text, None, loss), "a row repeated": Task(clean, corrupt, continued)}


def draw(path: Path, found: dict[tuple[str, str, str], Curve]) -> None:
    """The figure: a task a row, errors in and out."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    names = list(dict.fromkeys(task for task, _, _ in found))
    figure, axes = plt.subplots(len(names), 2, figsize=(9.2, 3.2 * len(names)), squeeze=False, sharex=True)
    for row, task in zip(axes, names, strict=True):
        for axis, errors in zip(row, ("nodes", "removed"), strict=True):
            for unit in UNITS:
                curve = found[task, errors, unit]
                values = np.array([[one.value, one.low, one.high] for one in curve.faithfulness], dtype=float)
                spread = np.maximum(0, [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
                axis.errorbar(curve.sizes, values[:, 0], spread, marker="o", markersize=3, capsize=2, label=unit)
            axis.axhline(1, color="0.8", linewidth=1)
            where = "errors are nodes" if errors == "nodes" else "errors taken away"
            axis.set(title=f"{task}; {where}", xscale="log", ylim=(-0.6, 1.6), ylabel="faithfulness")
            axis.spines[["top", "right"]].set_visible(False)
        row[0].legend(frameon=False, fontsize=8)
    for axis in axes[-1]:
        axis.set(xlabel="nodes")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def cell(curve: Curve, size: int) -> str:
    if size not in curve.sizes:
        return ""
    one = curve.faithfulness[curve.sizes.index(size)]
    return f"{one.value:.2f} ({one.low:.2f} to {one.high:.2f})" if one.low is not None else f"{one.value:.2f}"


def table(found: dict[tuple[str, str, str], Curve], task: str, errors: str) -> str:
    """As Markdown."""
    rows = ["| | " + " | ".join(map(str, SIZES)) + " |", "|---" * (len(SIZES) + 1) + "|"]
    for (one, kind, name), curve in found.items():
        if (one, kind) == (task, errors):
            rows.append(f"| {name} | " + " | ".join(cell(curve, size) for size in SIZES) + " |")
    return "\n".join(rows)


def verdict(found: dict[tuple[str, str, str], Curve]) -> str:
    """What the figures say, whichever way they have come out."""
    said: list[str] = []
    for task in dict.fromkeys(task for task, _, _ in found):
        sizes = {unit: found[task, "nodes", unit].size_for(ENOUGH) for unit in UNITS}
        words = ", ".join(f"{unit} {size or 'more than all tried'}" for unit, size in sizes.items())
        untrained = found[task, "nodes", "transcoders, random dictionary"].faithfulness[0].value
        alone = {unit: at(found[task, "removed", unit], AT) for unit in UNITS}
        kept = ", ".join(f"{unit} {value:.0%}" for unit, value in alone.items())
        best = max(alone, key=lambda unit: alone[unit])
        said.append(
            f"On {task}, where errors count as one node a layer, {ENOUGH:.0%} of what the MLPs do is kept by nodes of "
            f"{words}; but errors are much of it: {SIZES[0]} nodes of transcoders that never learned keep "
            f"{untrained:.0%}. With errors taken away {AT:,} nodes keep: {kept} (most: {best})."
        )
    return " ".join(said)


def at(curve: Curve, size: int) -> float:
    """Faithfulness of a size, or of the largest below it."""
    return curve.faithfulness[max(i for i, n in enumerate(curve.sizes) if n <= size)].value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--latents", type=int, default=1024)
    given = parser.parse_args()
    start = time.perf_counter()
    model = ms.load_model("bundled")
    units = trained(model, given.tokens, given.latents)
    found: dict[tuple[str, str, str], Curve] = {}
    shares: list[str] = []
    for name, task in tasks(model).items():
        for unit in UNITS:
            circuit = ms.feature_circuit(
                model, units[unit], task.clean, task.corrupt, metric=task.number, edges=False, max_nodes=1000
            )
            shares.append(f"| {name} | {unit} | {circuit.n_nodes:,} | {circuit.n_errors} | {circuit.error_share:.0%} |")
            for errors in ("nodes", "removed"):
                beside = [] if errors == "removed" or unit == "neurons" else ["random nodes", "random dictionary"]
                curves = circuit.faithfulness(SIZES, baselines=beside, errors=errors).curves  # type: ignore[arg-type]
                found[name, errors, unit] = curves["circuit"]
                found |= {(name, errors, f"{unit}, {beside}"): curves[beside] for beside in beside}
    seconds = time.perf_counter() - start
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "circuits_by_unit.svg", found)
    said = verdict(found)
    lost = [sae.metadata.fingerprint.fvu for unit in UNITS[:2] for sae in units[unit] if sae.metadata.fingerprint]
    fvu = [", ".join(f"{x:.2f}" for x in part) for part in (lost[: model.n_layers], lost[model.n_layers :])]
    parts = [
        "# Transcoders, SAEs or neurons: of which do fewer nodes do an MLP's work?",
        f"Written by `python studies/circuits_by_unit.py --tokens {given.tokens}`, as it came out.",
        f"**{said}**",
        "![faithfulness by number of nodes](circuits_by_unit.svg)",
        f"All {model.n_layers} MLPs of the bundled model at once; {given.latents:,} latents each, {K} on at a token, "
        f"{given.tokens:,} tokens of training; FVU by layer: transcoders {fvu[0]}, SAEs {fvu[1]}. {PROMPTS} prompts a "
        "task. Nodes by first-order effect, on these prompts; faithfulness of sums over prompts with 95 % bootstrap "
        "intervals over prompts; 1: as the model is, 0: all MLPs in their other state. Neurons have no error.",
        *(
            f"## {task[:1].upper()}{task[1:]}, errors {'are nodes' if errors == 'nodes' else 'taken away'}\n\n"
            f"{table(found, task, errors)}"
            for task in dict.fromkeys(task for task, _, _ in found)
            for errors in ("nodes", "removed")
        ),
        "## Errors among the first 1,000 nodes\n\n| task | | nodes | errors | share of all effects |\n"
        "|---|---|---|---|---|\n" + "\n".join(shares),
    ]
    (given.output / "circuits_by_unit.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{seconds:.0f} s; {given.output / 'circuits_by_unit.md'}")


if __name__ == "__main__":
    main()
