"""Can the norms of the bundled model be removed by fine-tuning, and what does it cost?

    python studies/layer_norm.py [--output studies] [--tokens 20000 40000] [--folder FOLDER]

Fine-tunes the bundled model twice on the same tokens, for each budget: with its norms, as a control, and with the norms
going one after the other on the published schedule. Loss is measured on held-out text of the same kind, on the pages of
this project's documentation, and on held-out text with its words shuffled. Then the norms' scales are held at those
of other contexts: a model without norms must not notice.

Rule, written before looking: the norms are said to be removable if, at the largest budget, the gap to the control on
held-out text is below 0.05 nats a token with its interval (published for GPT-2 small: about 0.05), and to be removed
safely if no text has more than 0.1 % of tokens whose loss is 5 nats or more above the control's.
Writes layer_norm.svg and .md.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import monosem as ms
from monosem.data import read_documents
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.models.blocks import norm_weights
from monosem.training import LayerNormRemoval, NormGap

PUBLISHED, SAFE = 0.05, 0.001
DOCS = Path(__file__).parents[1] / "docs"


def texts() -> dict[str, list[str]]:
    """Texts of other kinds."""
    documents: Any = read_documents("bundled:held_out")
    words = " ".join(document.text for document in documents[:60]).split()
    random.Random(0).shuffle(words)
    pages = [page.read_text() for page in sorted(DOCS.glob("*.md"))]
    pieces = [" ".join(words[start : start + 400]) for start in range(0, len(words), 400)]
    return {"documentation": pages, "shuffled words": pieces}


@torch.no_grad()
def held_still(model: SubjectModel, n: int = 8) -> float:
    """Mean KL of next tokens when every norm divides by what it divided by in another context."""
    contexts = ms.activations(model, "embed", text="bundled:held_out").contexts  # type: ignore[attr-defined]
    tokens = contexts.read(0, n).tokens.to(model.device)
    names = [name for name, each in model.module.named_modules() if name.endswith(("ln_1", "ln_2", "ln_f"))]
    parts = {name: norm_weights(model.module.get_submodule(name)) for name in names}
    inputs: dict[str, torch.Tensor] = {}

    def note(name: str):
        def function(x: torch.Tensor, _: object) -> torch.Tensor:
            inputs[name] = x
            return x

        return function

    def hold(name: str):
        def function(x: torch.Tensor, _: object) -> torch.Tensor:
            scale, bias = parts[name].scale(inputs[name]), model.module.get_parameter(f"{name}.bias")
            return bias + (x - bias) * scale / scale.roll(1, 0)

        return function

    clean = model(tokens).log_softmax(-1)
    edits = {f"{name}:{side}": make(name) for name in names for side, make in (("input", note), ("output", hold))}
    with model.edit(edits):
        other = model(tokens).log_softmax(-1)
    return float((clean.exp() * (clean - other)).sum(-1).mean())


def smoothed(losses: list[float], width: int) -> np.ndarray:
    return np.convolve(losses, np.ones(width) / width, "valid")


def draw(path: Path, found: dict[int, LayerNormRemoval]) -> None:
    """The longest run's losses, and gaps by budget."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=[2, 1])
    last = found[max(found)]
    width = max(1, len(last.losses["control"]) // 60)
    for name, losses in last.losses.items():
        left.plot(np.arange(width - 1, len(losses)) + 1, smoothed(losses, width), label=name, linewidth=1)
    for removal in last.removals:
        apart = removal.part in ("final", "separators", "first")
        left.axvline(removal.step, color="0.5" if apart else "0.85", linewidth=0.8, zorder=0)
    left.set(xlabel="step (lines: a removal)", ylabel="training loss, nats", title=f"{max(found):,} tokens")
    left.legend(frameon=False, fontsize=8)
    for name in last.on:
        gaps = [one.on[name].gap for one in found.values()]
        low, high = [g.value - (g.low or g.value) for g in gaps], [(g.high or g.value) - g.value for g in gaps]
        right.errorbar(list(found), [g.value for g in gaps], yerr=[low, high], marker="o", markersize=3, label=name)
    right.axhline(PUBLISHED, color="0.7", linestyle=":", linewidth=1)
    right.set(xscale="log", xlabel="tokens", ylabel="gap to control, nats", title="loss above the control")
    right.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def removable(gap: NormGap) -> bool:
    return (gap.gap.high or gap.gap.value) < PUBLISHED


def interval(gap: Interval) -> str:
    return f"{gap.value:+.3f}" if gap.low is None else f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"


def verdict(found: dict[int, LayerNormRemoval]) -> str:
    """What the figures say, whichever way they have come out."""
    tokens, last = max(found), found[max(found)]
    one = last.on["held out"]
    called = "can be removed" if removable(one) else "cannot be removed at these budgets"
    tails = {name: gap.tail for name, gap in last.on.items() if gap.tail > SAFE}
    shares = ", ".join(f"{share:.2%} of tokens of {name}" for name, share in tails.items())
    safe = f"not safely: {shares} lose 5 nats or more" if tails else "and no text has a tail"
    gaps = "; ".join(f"{n:,} tokens {interval(g)}" for n, g in ((n, each.gap) for n, each in found.items()))
    return (
        f"The norms of the bundled model {called} (gap to control below {PUBLISHED} nats a token), {safe}. Gap on "
        f"held-out text: {gaps}. With {tokens:,} tokens the model without norms loses {one.cost:+.3f} against the "
        f"model as it was, the control {one.control.value - one.original.value:+.3f}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=int, nargs="+", default=[20_000, 40_000])
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--held-out-tokens", type=int, default=12_000)
    parser.add_argument("--folder", type=Path, help="keep checkpoints and models here")
    given = parser.parse_args()
    start = time.perf_counter()
    model = ms.load_model("bundled")
    sizes = {"batch_tokens": given.batch_tokens, "held_out_tokens": given.held_out_tokens}
    found = {
        n: ms.remove_layer_norm(
            model, tokens=n, elsewhere=texts(), path=given.folder and given.folder / str(n), **sizes
        )
        for n in sorted(given.tokens)
    }
    last = found[max(found)]
    still = {"as it was": held_still(model), "control": held_still(last.control), "removed": held_still(last.model)}
    seconds = time.perf_counter() - start
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "layer_norm.svg", found)
    words = verdict(found)
    heads = ["tokens", "text", "as it was", "control", "without norms", "gap to control", "tail", "control's tail"]
    rows = [f"| {' | '.join([*heads, 'worst context'])} |", "|---" * 9 + "|"]
    for n, one in found.items():
        for name, gap in one.on.items():
            losses = " | ".join(f"{each.value:.3f}" for each in (gap.original, gap.control, gap.removed))
            between = interval(gap.gap)
            tails = f"{gap.tail:.3%} | {gap.control_tail:.3%} | {gap.worst:+.2f}"
            rows.append(f"| {n:,} | {name} | {losses} | {between} | {tails} |")
    kl = ", ".join(f"{name}: {value:.2g}" for name, value in still.items())
    options = [("tokens", given.tokens), ("batch-tokens", [given.batch_tokens])]
    usual = [("tokens", [20_000, 40_000]), ("batch-tokens", [512])]
    asked = [f"--{name} {' '.join(map(str, values))}" for name, values in options if (name, values) not in usual]
    command = " ".join(["python studies/layer_norm.py", *asked])
    parts = [
        "# Can the norms of the bundled model be removed, and what does it cost?",
        f"Written by `{command}`, as it came out.",
        f"**{words}**",
        "![Losses](layer_norm.svg)",
        f"The bundled model, {model.n_layers} layers, fine-tuned at a rate of {6e-4:g} in steps of "
        f"{given.batch_tokens:,} tokens; norms go one a step, on the published schedule stretched to the run. Nats a "
        f"token, 95 % intervals over documents, {given.held_out_tokens:,} tokens of each text. Tail: tokens whose loss "
        "is 5 nats or more above the control's (control's tail: above the model as it was).",
        "\n".join(rows),
        f"Norm scales held at those of other contexts change next tokens by this KL, nats: {kl}.",
    ]
    (given.output / "layer_norm.md").write_text("\n\n".join(parts) + "\n")
    print(f"{words}\n{seconds:.0f} s; {given.output / 'layer_norm.md'}")


if __name__ == "__main__":
    main()
