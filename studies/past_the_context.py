"""What does a dictionary that was trained on contexts of 64 tokens cost after the 64th?

    python studies/past_the_context.py [--output studies] [--tokens 200000] [--measured 24000]

Trains at every layer of the bundled model two dictionaries, alike but for the length of contexts, 64 and 256 tokens, on
as many tokens of the same text; both are then measured on held-out contexts of 256: KL of the spliced model from the
clean one, by position.

Rule, written before looking: the training context is said to matter at a layer if, after the 64th position, the KL of
the dictionary of short contexts is larger than that of long ones by more than it is before, as a ratio, and in most
bins of eight positions there their intervals are apart. (Published: past the training context early layers are worst,
within it late ones.)
Writes past_the_context.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import monosem as ms
from monosem.evaluation import EvaluationReport
from monosem.models import SubjectModel
from monosem.sae import SAE

LATENTS, K = 1024, 24
SHORT, LONG = 64, 256
NAMES = {SHORT: f"trained at {SHORT}", LONG: f"trained at {LONG}"}


def trained(model: SubjectModel, tokens: int) -> dict[int, dict[str, SAE]]:
    """By layer and name; of each length, all layers on one pass. All read contexts of the longer length afterwards."""
    hooks, found = [f"resid_post.{layer}" for layer in range(model.n_layers)], dict[int, dict[str, SAE]]()
    for length, name in NAMES.items():
        source: Any = ms.activations(model, hooks, text="bundled", context_length=length, buffer_tokens=32_768)
        saes: dict[str, SAE] = {hook: ms.TopKSAE(model.d_model, LATENTS, k=K) for hook in hooks}
        ms.train_together(saes, {hook: source.select(hook) for hook in hooks}, tokens=tokens)
        for layer, sae in enumerate(saes.values()):
            sae.metadata = sae.metadata.model_copy(update={"context_length": LONG})
            found.setdefault(layer, {})[name] = sae
    return found


@dataclass
class Curves:
    """KL by position of both dictionaries of a layer."""

    report: EvaluationReport

    def of(self, length: int, column: str = "KL") -> np.ndarray:
        return np.array(self.report.tables[NAMES[length]]["loss_by_position"].columns[column], float)

    @property
    def positions(self) -> np.ndarray:
        return self.of(SHORT, "position")

    def mean(self, length: int, past: bool) -> float:
        """Over predictions before position 64, or from it on."""
        part = (self.positions >= SHORT) == past
        return float(np.average(self.of(length)[part], weights=self.of(length, "predictions")[part]))

    def ratio(self, past: bool) -> float:
        return self.mean(SHORT, past) / self.mean(LONG, past)

    @property
    def apart(self) -> float:
        """Share of the bins from position 64 on in which the short one is above the long one, intervals apart."""
        return float((self.of(SHORT, "KL low") > self.of(LONG, "KL high"))[self.positions >= SHORT].mean())

    @property
    def matters(self) -> bool:
        return self.ratio(True) > self.ratio(False) and self.apart > 0.5


def draw(path: Path, found: list[Curves]) -> None:
    """KL by position, a panel a layer, and the ratio of both."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, len(found) + 1, figsize=(3.1 * (len(found) + 1), 3.2))
    for layer, (axis, curves) in enumerate(zip(axes, found, strict=False)):
        for length, name in NAMES.items():
            axis.plot(curves.positions, curves.of(length), label=name)
            axis.fill_between(curves.positions, curves.of(length, "KL low"), curves.of(length, "KL high"), alpha=0.2)
        axis.set(title=f"layer {layer}", xlabel="position in the context", ylim=(0, None))
        axes[-1].plot(curves.positions, curves.of(SHORT) / curves.of(LONG), label=f"layer {layer}")
    axes[0].set(ylabel="KL from clean, nats")
    axes[-1].axhline(1, color="0.7", linewidth=1)
    axes[-1].set(title="short over long", xlabel="position in the context", ylabel="ratio of KLs")
    for axis in axes:
        axis.axvline(SHORT, color="0.7", linewidth=1, linestyle=":")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in (axes[0], axes[-1]):
        axis.legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def verdict(found: list[Curves]) -> str:
    """What the figures say, whichever way they have come out."""
    layers = [layer for layer, curves in enumerate(found) if curves.matters]
    called = (
        f"A dictionary of contexts of {SHORT} tokens is worse past them at layer {' and '.join(map(str, layers))}"
        if layers
        else f"Dictionaries of contexts of {SHORT} tokens are at no layer clearly worse past them than ones of {LONG}"
    )
    ratios = "; ".join(
        f"layer {layer}: {curves.ratio(False):.2f} before, {curves.ratio(True):.2f} after"
        for layer, curves in enumerate(found)
    )
    worst = [int(np.argmax([curves.mean(SHORT, past) for curves in found])) for past in (False, True)]
    excess = int(np.argmax([curves.ratio(True) / curves.ratio(False) for curves in found]))
    return (
        f"{called}. KL over that of the dictionary of {LONG}: {ratios}. Past the training context most is lost at "
        f"layer {worst[1]}, within it at layer {worst[0]}; the training context makes the largest difference at layer "
        f"{excess}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--measured", type=int, default=24_000)
    given = parser.parse_args()
    start = time.perf_counter()
    model = ms.load_model("bundled")
    sizes = {"tokens": given.measured, "loss_tokens": given.measured}
    saes = trained(model, given.tokens)
    found = [Curves(ms.evaluate(both, model, controls=False, **sizes)) for both in saes.values()]
    seconds = time.perf_counter() - start
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "past_the_context.svg", found)
    words = verdict(found)
    heads = ["layer", *(f"{name}, {where} {SHORT}" for name in NAMES.values() for where in ("before", "from"))]
    rows = [f"| {' | '.join([*heads, 'bins apart'])} |", "|---" * (len(heads) + 1) + "|"]
    for layer, curves in enumerate(found):
        cells = [f"{curves.mean(length, past):.3f}" for length in NAMES for past in (False, True)]
        rows.append(f"| {layer} | {' | '.join(cells)} | {curves.apart:.0%} |")
    parts = [
        f"# What does a dictionary that was trained on contexts of {SHORT} tokens cost after the {SHORT}th?",
        "Written by `python studies/past_the_context.py`, as it came out.",
        f"**{words}**",
        "![KL by position](past_the_context.svg)",
        f"TopK SAEs of {LATENTS:,} latents, {K} on at a token, of the residual stream of the bundled model, "
        f"{given.tokens:,} tokens of training each; KL from the clean model, nats, on {given.measured:,} tokens of "
        f"held-out text in contexts of {LONG}; bands are 95 % intervals over documents. Bins apart: of eight positions "
        f"each, from {SHORT} on, those in which the interval of the short one is above that of the long one.",
        "\n".join(rows),
    ]
    (given.output / "past_the_context.md").write_text("\n\n".join(parts) + "\n")
    print(f"{words}\n{seconds:.0f} s; {given.output / 'past_the_context.md'}")


if __name__ == "__main__":
    main()
