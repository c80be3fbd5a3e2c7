"""Indirect objects by feature circuits: which features carry the name, and how much is carried by no feature?

    python studies/indirect_objects.py [RUN] [--model FOLDER] [--output studies]

"When Mary and John went to the store, John gave a bottle of milk to" is followed by the name that does not come again;
beside it the same prompt with the other name repeated. `ms.feature_circuit` finds the nodes at the SAE's hook point
that carry the difference of the two names' logits, a node for every feature at every token, and one for what the SAE
leaves unexplained at every token: its error. The model is run with the largest nodes alone: which share of the
difference do they keep, with errors counted as nodes, all kept for nothing, and all taken away? Beside it the
coordinates of the residual stream, a dictionary that never learned, and nodes at random. RUN is that of
recipes/smollm2. Rule, written before looking: features carry it if those alone, all errors taken away, keep half.
Writes indirect_objects.svg and .md.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import monosem as ms
from monosem.circuits import FeatureCircuit
from monosem.circuits.feature_circuit.faithfulness import Curve
from monosem.models import SubjectModel

TEMPLATES = [
    "When{A} and{B} went to the store,{S} gave a bottle of milk to",
    "After{A} and{B} found a ring in the garden,{S} decided to give it to",
    "The day{A} and{B} met at the station,{S} handed a letter to",
]
NAMES = "Mary John Tom Anna James Sarah David Paul Peter Kate Mark Emma Jack Lucy Sam Alice Robert Susan"
PROMPTS = 16
"""Of each template."""
SIZES = (1, 4, 16, 64, 256)
LISTED = 100


@dataclass
class Prompts:
    """Prompts of one template, and the same with the other name repeated."""

    clean: Tensor
    corrupt: Tensor
    names: Tensor
    """(prompts, 2) the name that is right, and the repeated one."""

    def difference(self, out: Any) -> Tensor:
        last = out.logits[:, -1]
        return last.gather(1, self.names[:, :1])[:, 0] - last.gather(1, self.names[:, 1:])[:, 0]


def prompts(model: SubjectModel, template: str, seed: int) -> Prompts:
    """Of pairs of names drawn at random, each one token; every other prompt repeats the second one."""
    rng, known = np.random.default_rng(seed), NAMES.split()
    pairs = rng.permutation(list(itertools.permutations(range(len(known)), 2)))[:PROMPTS]
    texts: list[list[str]] = [[], []]
    ids: list[list[int]] = []
    for number, (a, b) in enumerate(pairs.tolist()):
        first, second = f" {known[a]}", f" {known[b]}"
        repeated, right = (second, first) if number % 2 else (first, second)
        for into, subject in zip(texts, (repeated, right), strict=True):
            into.append(template.format(A=first, B=second, S=subject))
        ids.append([int(model.tokens(name, prepend_bos=False)[0, 0]) for name in (right, repeated)])
    clean, corrupt = (model.tokens(side) for side in texts)
    return Prompts(clean, corrupt, torch.tensor(ids, device=clean.device))


def together(curves: list[Curve]) -> Curve:
    """One curve over the prompts of all templates."""
    first = curves[0]
    sizes = [size for size in first.sizes if all(size in curve.sizes for curve in curves)]

    def rows(curve: Curve, values: Tensor) -> Tensor:
        return values[[curve.sizes.index(size) for size in sizes]]

    return Curve(
        first.name,
        sizes,
        [float(np.mean([curve.nodes[curve.sizes.index(size)] for curve in curves])) for size in sizes],
        torch.cat([rows(curve, curve.kept) for curve in curves], 1),
        torch.cat([rows(curve, curve.left) for curve in curves], 1),
        torch.cat([curve.full for curve in curves]),
        torch.cat([curve.empty for curve in curves]),
    )


def draw(path: Path, curves: dict[str, Curve]) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.5))
    for axis, side in zip(axes, ("faithfulness", "completeness"), strict=True):
        for name, curve in curves.items():
            ends: Any = getattr(curve, side)
            values = np.array([[one.value, one.low, one.high] for one in ends], dtype=float)
            spread = np.maximum(0, [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
            axis.errorbar(curve.sizes, values[:, 0], spread, marker="o", markersize=3, capsize=2, label=name)
        axis.axhline(1 if side == "faithfulness" else 0, color="0.8", linewidth=1)
        what = "nodes alone" if side == "faithfulness" else "all but the nodes"
        axis.set(xscale="log", xlabel="nodes", ylabel=side, title=f"with {what}", ylim=(-0.6, 1.6))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def at(curve: Curve, size: int) -> float:
    return curve.faithfulness[curve.sizes.index(size)].value


def verdict(curves: dict[str, Curve], circuits: list[FeatureCircuit]) -> str:
    """What the figures say, whichever way they have come out."""
    nodes, removed, kept = (curves[f"features, errors {name}"] for name in ("as nodes", "taken away", "all kept"))
    errors = np.mean([sum(node.is_error for node in circuit.nodes[:16]) for circuit in circuits])
    share = np.mean([circuit.error_share for circuit in circuits])
    largest = removed.sizes[-1]
    alone = at(removed, largest)
    carried = "Features carry it" if alone >= 0.5 else "Features alone do not carry it"
    others = ", ".join(
        f"{name} {at(curves[name], 16):.0%}" for name in ("neurons", "random dictionary", "random nodes")
    )
    by_errors = float((kept.empty - nodes.empty).sum() / (nodes.full - nodes.empty).sum())
    return (
        f"{carried}: the {largest} largest, with all errors taken away, keep {alone:.0%} of the difference, and 16 "
        f"keep {at(removed, 16):.0%}. Where errors count as nodes 16 nodes keep {at(nodes, 16):.0%} ({others}), of "
        f"which {errors:.1f} are errors; errors hold {share:.0%} of all effects, and alone, without any feature, they "
        f"keep {by_errors:.0%}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--model", help="where the run's model is, if not where it was")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    start = time.perf_counter()
    run = ms.Run(given.run)
    sae, model = run.sae(), ms.load_model(given.model or str(run.config.model))
    parts: dict[str, list[Curve]] = {}
    circuits: list[FeatureCircuit] = []
    told: Counter[str] = Counter()
    clean: list[Tensor] = []
    for number, template in enumerate(TEMPLATES):
        one = prompts(model, template, number)
        circuit = ms.feature_circuit(
            model,
            sae,
            one.clean,
            one.corrupt,
            metric=one.difference,
            by_position=True,
            max_nodes=LISTED,
            edges=False,
        )
        circuits.append(circuit)
        clean.append(circuit.metric)
        found = circuit.faithfulness(SIZES, baselines=["neurons", "random dictionary", "random nodes"])
        parts.setdefault("features, errors as nodes", []).append(found["circuit"])
        for name in ("neurons", "random dictionary", "random nodes"):
            parts.setdefault(name, []).append(found[name])
        for errors, words in (("kept", "all kept"), ("removed", "taken away")):
            curve = circuit.faithfulness(SIZES, baselines=[], errors=errors)["circuit"]  # type: ignore[arg-type]
            parts.setdefault(f"features, errors {words}", []).append(curve)
        words = [model.tokenizer.decode([t]) for t in one.clean[0].tolist()]
        for node in circuit.nodes[:16]:
            who = "error" if node.is_error else f"latent {node.latent}"
            told[f"{who} at token {node.position} (`{words[node.position]}` in the first prompt)"] += 1
    curves = {name: together(of) for name, of in parts.items()}
    seconds = time.perf_counter() - start
    said = verdict(curves, circuits)
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "indirect_objects.svg", curves)
    right = torch.cat(clean)
    head = "| | " + " | ".join(map(str, SIZES)) + " |\n" + "|---" * (len(SIZES) + 1) + "|\n"

    def table(side: str) -> str:
        rows: list[str] = []
        for name, curve in curves.items():
            ends: Any = getattr(curve, side)
            known = dict(zip(curve.sizes, ends, strict=True))
            cells = [
                f"{known[size].value:.2f} ({known[size].low:.2f} to {known[size].high:.2f})" if size in known else ""
                for size in SIZES
            ]
            rows.append(f"| {name} | " + " | ".join(cells) + " |")
        return head + "\n".join(rows)

    counted = "\n".join(
        f"| {k} | {np.mean([sum(node.is_error for node in c.nodes[:k]) for c in circuits]):.1f} |"
        for k in (1, 4, 16, LISTED)
    )
    fvu = sae.metadata.fingerprint.fvu if sae.metadata.fingerprint else float("nan")
    sections = [
        "# Indirect objects by feature circuits",
        "Written by `python studies/indirect_objects.py`, as it came out.",
        f"**{said}**",
        "![faithfulness and completeness by number of nodes](indirect_objects.svg)",
        f"{PROMPTS} prompts of each of {len(TEMPLATES)} templates; {sae.n_latents:,} latents of a {sae.architecture} "
        f"SAE at {sae.metadata.hook} of SmolLM2-135M-Instruct (FVU {fvu:.2f}). The model names the right one in "
        f"{float((right > 0).double().mean()):.0%} of them, by {float(right.mean()):.1f} in logits. Nodes by "
        "first-order effect, features and errors at each token apart, on the very prompts on which they are tried; "
        "shares of sums over prompts, with 95 % bootstrap intervals over prompts. With errors all kept, the share is "
        "of what errors alone do not bring.",
        f"## Faithfulness: the largest nodes alone\n\n{table('faithfulness')}",
        f"## Completeness: all but the largest nodes\n\n{table('completeness')}",
        "## Errors among the largest nodes\n\n| of the first | errors (mean over templates) |\n|---|---|\n" + counted,
        "## The first sixteen of each template\n\n" + "\n".join(f"- {name}" for name, _ in told.most_common(12)),
    ]
    (given.output / "indirect_objects.md").write_text("\n\n".join(sections) + "\n")
    print(f"{said}\n{seconds:.0f} s; {given.output / 'indirect_objects.md'}")


if __name__ == "__main__":
    main()
