"""Which latents say where a token stands, and do they explain what a dictionary loses past its training context?

    python studies/positions.py [--output studies] [--tokens 80000] [--measured 16000]

First a dictionary of what the first block reads (token and position added up), where every token can be put at every
position: which latents are positional, which semantic, and are there any that are both? Then dictionaries of every
layer: how many are positional there. Then, at the layers where the training context was found to matter
(past_the_context.py), dictionaries that were trained at 64 and at 256 tokens: past the 64th position the mean error of
each position, known from other text, is put back into the reconstruction of the short one, in full, or only what of it
lies in the span of its positional latents, or of as many others.

Rule, written before looking: positional and semantic latents are said to be disjoint if fewer than 5 % of the
positional or mixed ones are mixed; positions are said to explain the loss past the training context at a layer if the
mean error of each position mends at least half of the excess over the dictionary of 256, and positional latents to
explain it if the part in their span mends at least half of that, and more than that of as many others.
Writes positions.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import monosem as ms
from monosem.analysis import Positional
from monosem.analysis.positions import in_span
from monosem.models import SubjectModel
from monosem.sae import SAE

LATENTS, K = 1024, 24
SHORT, LONG = 64, 256
LAYERS = (0, 1)


def trained(model: SubjectModel, tokens: int) -> dict[str, SAE]:
    """A dictionary of every hook point, and at some layers one of short contexts."""
    found = dict[str, SAE]()
    for length, hooks in (
        (LONG, ["resid_pre.0", *(f"resid_post.{i}" for i in range(model.n_layers))]),
        (SHORT, [f"resid_post.{i}" for i in LAYERS]),
    ):
        source: Any = ms.activations(model, hooks, text="bundled", context_length=length, buffer_tokens=32_768)
        saes: dict[str, SAE] = {hook: ms.TopKSAE(model.d_model, LATENTS, k=K) for hook in hooks}
        ms.train_together(saes, {hook: source.select(hook) for hook in hooks}, tokens=tokens)
        found |= {hook if length == LONG else f"{hook} short": sae for hook, sae in saes.items()}
    return found


@dataclass
class Past:
    """Mean KL past the short context, of the short dictionary as it is and mended, and of the long one."""

    kl: dict[str, float]
    n_positional: int
    fvu: np.ndarray
    positions: np.ndarray

    def mended(self, name: str) -> float:
        """Share of the excess over the long dictionary."""
        excess = self.kl["short"] - self.kl["long"]
        return (self.kl["short"] - self.kl[name]) / excess


@torch.no_grad()
def past(model: SubjectModel, short: SAE, long: SAE, layer: int, measured: int) -> Past:
    """Mean errors from one half of the contexts, KL on the other."""
    hook = f"resid_post.{layer}"
    short.metadata = short.metadata.model_copy(update={"context_length": SHORT})
    about = ms.positional(short, model, context_length=LONG, tokens=measured, progress=False)
    positional = np.concatenate([about.latents("positional"), about.latents("mixed")])
    contexts = ms.activations(model, hook, text="bundled:held_out", context_length=LONG).contexts  # type: ignore[attr-defined]
    half = max(2, measured // LONG // 2)
    x = torch.cat([model.capture(contexts.read(i, i + 4).tokens, [hook])[hook] for i in range(0, half, 4)])
    error = x - short.decode(short.encode(x.flatten(0, 1)), x.flatten(0, 1)).view_as(x)
    mean = error.mean(0)
    others = np.setdiff1d(np.arange(LATENTS), positional)
    drawn = np.random.default_rng(0).permutation(others)[: len(positional)]
    added: dict[str, Tensor] = {
        "short": torch.zeros_like(mean),
        "mean error back": mean,
        "in positional latents": in_span(mean, short, positional),
        "in as many others": in_span(mean, short, drawn),
        "long": torch.zeros_like(mean),
    }
    kl = dict.fromkeys(added, 0.0)
    n = 0
    for start in range(half, 2 * half, 4):
        tokens = contexts.read(start, start + 4).tokens
        clean = model(tokens).log_softmax(-1)[:, SHORT:-1]
        for name, vector in added.items():
            sae = long if name == "long" else short

            def rebuilt(x: Tensor, _: Any, sae: SAE = sae, vector: Tensor = vector) -> Tensor:
                rows = x.flatten(0, 1)
                new = sae.decode(sae.encode(rows), rows).view_as(x) + vector
                return torch.cat([x[:, :1], new[:, 1:]], dim=1)  # the first position is left as it is

            with model.edit({hook: rebuilt}):
                other = model(tokens).log_softmax(-1)[:, SHORT:-1]
            kl[name] += float((clean.exp() * (clean - other)).sum(-1).mean(-1).sum())
        n += len(tokens)
    assert about.error is not None
    return Past(
        {name: value / n for name, value in kl.items()}, len(positional), about.error.fvu, about.error.positions
    )


def draw(path: Path, first: Positional, counts: dict[str, Positional], found: dict[int, Past]) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, (one, two, three, four) = plt.subplots(1, 4, figsize=(14, 3.3))
    one.scatter(first.position, first.token, s=4, linewidths=0)
    one.axvline(first.least, color="0.7", linestyle=":", linewidth=1)
    one.axhline(first.least, color="0.7", linestyle=":", linewidth=1)
    one.set(xlabel="share by position", ylabel="share by token", title="latents of resid_pre.0")
    for latent in first.latents("positional")[:8]:
        two.plot(first.profiles[:, latent], linewidth=1)
    two.set(xlabel="position", ylabel="mean activation", title="its most positional latents")
    names = list(counts)
    three.bar(range(len(names)), [len(each.latents("positional")) for each in counts.values()], width=0.6)
    three.set_xticks(range(len(names)), [name.replace("resid_", "") for name in names], fontsize=7)
    three.set(title="positional latents")
    bars = ["short", "mean error back", "in positional latents", "in as many others", "long"]
    for number, (layer, each) in enumerate(found.items()):
        at = np.arange(len(bars)) + 0.4 * number
        four.bar(at, [each.kl[name] for name in bars], width=0.38, label=f"layer {layer}")
    four.set_xticks(np.arange(len(bars)) + 0.2, [name.replace(" ", "\n") for name in bars], fontsize=6)
    four.set(ylabel=f"KL past position {SHORT}, nats", title="mended by position")
    four.legend(frameon=False, fontsize=7, loc="upper center", ncols=2)
    four.set_ylim(0, 1.2 * max(each.kl["short"] for each in found.values()))
    for axis in (one, two, three, four):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def verdict(first: Positional, found: dict[int, Past]) -> str:
    """What the figures say, whichever way they have come out."""
    positional, mixed, semantic = (len(first.latents(kind)) for kind in ("positional", "mixed", "semantic"))
    some = positional + mixed
    apart = "there are none" if not some else "they are disjoint" if mixed < 0.05 * some else "they are not disjoint"
    parts = [
        f"Where token and position are added up, {positional} of {LATENTS:,} latents are positional, {semantic} "
        f"semantic and {mixed} both: {apart}."
    ]
    for layer, each in found.items():
        names = ("mean error back", "in positional latents", "in as many others")
        whole, span, others = (each.mended(name) for name in names)
        by_position = "explain" if whole >= 0.5 else "do not explain"
        do = span >= 0.5 * whole and span > others
        parts.append(
            f"At layer {layer} positions {by_position} the loss past the training context ({whole:.0%} of the excess "
            f"is mended by each position's mean error), positional latents {'do too' if do else 'do not'} ({span:.0%} "
            f"in the span of {each.n_positional} of them, {others:.0%} of as many others)."
        )
    return " ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=int, default=80_000)
    parser.add_argument("--measured", type=int, default=16_000)
    parser.add_argument("--most-rows", type=int, default=150_000)
    given = parser.parse_args()
    start = time.perf_counter()
    model = ms.load_model("bundled", device="cpu")
    saes = trained(model, given.tokens)
    first = ms.positional(saes["resid_pre.0"], model, most_rows=given.most_rows)
    counts = {"resid_pre.0": first}
    for layer in range(model.n_layers):
        counts[f"resid_post.{layer}"] = ms.positional(saes[f"resid_post.{layer}"], model, tokens=given.measured)
    found = {
        layer: past(model, saes[f"resid_post.{layer} short"], saes[f"resid_post.{layer}"], layer, given.measured)
        for layer in LAYERS
    }
    seconds = time.perf_counter() - start
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "positions.svg", first, counts, found)
    words = verdict(first, found)
    rows = ["| hook point | rows | positional | mixed | semantic | fire often enough |", "|---|---|---|---|---|---|"]
    for hook, each in counts.items():
        kinds = " | ".join(str(len(each.latents(kind))) for kind in ("positional", "mixed", "semantic"))
        how = f"{each.n_rows:,}, {'enumerated' if each.exact else 'text'}"
        rows.append(f"| {hook} | {how} | {kinds} | {int(np.isfinite(each.position).sum()):,} |")
    names = list(next(iter(found.values())).kl)
    losses = [f"| layer | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    losses += [f"| {layer} | {' | '.join(f'{each.kl[name]:.3f}' for name in names)} |" for layer, each in found.items()]
    parts = [
        "# Which latents say where a token stands, and do they explain the loss past the training context?",
        "Written by `python studies/positions.py`, as it came out.",
        f"**{words}**",
        "![Positions](positions.svg)",
        f"TopK SAEs of {LATENTS:,} latents, {K} on at a token, {given.tokens:,} tokens of training each. Shares of a "
        f"latent's variance: exact at resid_pre.0, where the {first.coverage:.0%} of the text's tokens that fit "
        f"{given.most_rows:,} rows were put at every position, weighed by how often they come; of "
        f"{given.measured:,} tokens of held-out text elsewhere, beyond chance. Positional: position alone explains "
        "10 % or more of the variance and more than where contexts are turned about (false discoveries below 5 %); "
        "semantic: the token does; mixed: both.",
        "\n".join(rows),
        f"KL from the clean model past position {SHORT}, nats, by dictionaries that were trained at {SHORT} tokens "
        f"(short) and at {LONG} (long). The mean error of each position is of one half of the "
        "text, the losses of the other.",
        "\n".join(losses),
    ]
    (given.output / "positions.md").write_text("\n\n".join(parts) + "\n")
    print(f"{words}\n{seconds:.0f} s; {given.output / 'positions.md'}")


if __name__ == "__main__":
    main()
