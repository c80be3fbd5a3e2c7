"""Indirect objects through attention SAEs: where may features stand for attention, and which move the name?

    python studies/attention_objects.py [RUN] [--model FOLDER] [--output studies]

The prompts are those of studies/indirect_objects.py: "When Mary and John went to the store, John gave a bottle of milk
to". RUN is that of recipes/smollm2_attention, a dictionary of what the heads of each layer bring (`attn_z.L`).

1. Layer by layer the dictionary's reconstruction takes the place of what the heads bring: which share of the difference
   of the two names' logits is kept? Beside it the mean over all tokens of the prompts (what hangs on the layer), and
   a dictionary that never learned. Rule, written before looking: a layer is damaged where the 95 % interval of the
   share lies below 0.9, and its features carry it where they keep more of the difference than the mean does.
2. The features at the last token that move the difference most (code times gradient, on half of the prompts), taken
   apart by the token and the head that they take from (on the other half): a name mover's takes more than half from
   names, and of that more than half from the one that is right.
3. Features that tell the name before "and" from that after it: on at one in 80 % of the prompts, at the other in no
   more than 20 %, on both halves.

Writes attention_objects.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from indirect_objects import TEMPLATES, Prompts, prompts
from torch import Tensor

import monosem as ms
from monosem.intervals import draws
from monosem.models import Replay, SubjectModel
from monosem.sae import SAE
from monosem.sae.control import random_sae

PROMPTS = 8
"""Of each template."""
DAMAGED = 0.9
MOST, LEAST = 0.8, 0.2
SHOWN = 12
SIDES = ("before", "after")
"""Of "and"."""


class Share:
    """A sum over prompts as a share of another, with its 95 % interval over prompts."""

    def __init__(self, part: np.ndarray, whole: np.ndarray) -> None:
        drawn = draws(len(whole), 0)
        self.value = float(part.sum() / whole.sum())
        self.low, self.high = np.quantile((drawn @ part) / (drawn @ whole), [0.025, 0.975]).tolist()

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


WAYS = ("features", "random dictionary", "mean")


@dataclass
class Layers:
    """What is kept of the difference with something in the place of attention."""

    kept: dict[str, list[Share]]
    """Of each way, layer by layer."""
    together: dict[str, Share]
    """With all layers at once."""

    @property
    def damaged(self) -> list[int]:
        """Layers where features keep less than they should."""
        return [layer for layer, share in enumerate(self.kept["features"]) if share.high < DAMAGED]

    @property
    def needed(self) -> list[int]:
        """Layers on which something hangs: the mean does not do."""
        return [layer for layer, share in enumerate(self.kept["mean"]) if share.high < DAMAGED]

    @property
    def carried(self) -> list[int]:
        """Of those, where features keep more than the mean."""
        kept = self.kept
        return [layer for layer in self.needed if kept["features"][layer].value > kept["mean"][layer].value]


def half_of(row: int) -> int:
    """In which half of the prompts one is; in each half of both every other one repeats the name after "and"."""
    return row // 2 % 2


def few(one: Prompts, rows: slice | list[int]) -> Prompts:
    """Some of the prompts."""
    return Prompts(one.clean[rows], one.corrupt[rows], one.names[rows])


def difference(model: SubjectModel, one: Prompts) -> np.ndarray:
    """Of the two names' logits, prompt by prompt."""
    return one.difference(SimpleNamespace(logits=model.forward(one.clean))).double().numpy()


def edits_of(
    model: SubjectModel, saes: list[SAE], controls: list[SAE], every: list[Prompts]
) -> dict[str, list[ms.Intervention]]:
    """What stands in the place of attention, by way and layer, at the tokens that the dictionary reads."""
    first = [] if model.tokenizer.bos_token_id is None else [model.tokenizer.bos_token_id]
    means = [constant(rows.mean(0)) for rows in brought(model, every)]
    return {
        "features": [ms.Splice(sae) for sae in saes],
        "random dictionary": [ms.Splice(sae) for sae in controls],
        "mean": [ms.Replace(f"attn_z.{layer}", row, keep_tokens=first) for layer, row in enumerate(means)],
    }


def brought(model: SubjectModel, every: list[Prompts]) -> list[Tensor]:
    """Of each layer what its heads bring, (tokens, width), at all tokens but the first."""
    hooks = [f"attn_z.{layer}" for layer in range(model.n_layers)]
    got = [model.capture(one.clean, hooks) for one in every]
    return [torch.cat([of[hook][:, 1:].flatten(0, 1) for of in got]) for hook in hooks]


def untrained(saes: list[SAE], rows: list[Tensor]) -> list[SAE]:
    """Dictionaries of the same kind and size that never learned."""
    found = [random_sae(sae, x) for sae, x in zip(saes, rows, strict=True)]
    for sae, like in zip(found, saes, strict=True):
        sae.metadata = like.metadata
    return found


def constant(row: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: row.expand_as(rows)


def spliced(model: SubjectModel, edits: dict[str, list[ms.Intervention]], every: list[Prompts]) -> Layers:
    """Run the prompts with each layer's attention replaced, and with all."""
    whole = np.concatenate([difference(model, one) for one in every])

    def run(*used: ms.Intervention, one: Prompts) -> np.ndarray:
        with model.edit(list(used)):
            return difference(model, one)

    # first, as edits look at the model when they are first used, which within a replay they may not
    together = {way: Share(np.concatenate([run(*edits[way], one=one) for one in every]), whole) for way in WAYS}
    kept: dict[str, list[Share]] = {way: [] for way in WAYS}
    for layer in range(model.n_layers):
        parts: dict[str, list[np.ndarray]] = {way: [] for way in WAYS}
        replay = Replay(model, [f"attn_z.{layer}"], every[0].clean[:1])
        for one in every:
            with replay.of(one.clean):
                for way in WAYS:
                    parts[way].append(run(edits[way][layer], one=one))
        for way in WAYS:
            kept[way].append(Share(np.concatenate(parts[way]), whole))
    return Layers(kept, together)


@dataclass
class Mover:
    """A feature that moves the difference at the last token."""

    layer: int
    latent: int
    share: float
    """Of the difference, to first order."""
    right: float
    """Of what it takes from the three names' tokens, the share that it takes from the one that is right."""
    names: float
    """Of all that it takes, the share from names."""
    head: int
    """From which it takes most."""

    @property
    def moves(self) -> bool:
        """Whether it is a name mover's."""
        return self.right > 0.5 and self.names > 0.5


def places(one: Prompts, row: int) -> tuple[int, list[int], list[int]]:
    """Of a prompt the token of the name that is right, those of the repeated one, and both of the pair, in order."""
    tokens, (right, repeated) = one.clean[row].tolist(), one.names[row].tolist()
    at = tokens.index(right)
    again = [place for place, token in enumerate(tokens) if token == repeated]
    return at, again, sorted([at, again[0]])


def movers(model: SubjectModel, saes: list[SAE], every: list[Prompts]) -> list[Mover]:
    """The features that move the difference most on half of the prompts, and where they take from on the other half."""
    found: list[tuple[float, int, int]] = []
    half = [few(one, [row for row in range(len(one.clean)) if half_of(row) == 0]) for one in every]
    whole = sum(float(difference(model, one).sum()) for one in half)
    for layer, sae in enumerate(saes):
        sums = torch.zeros(sae.n_latents)
        for one in half:
            scores = ms.attribute(model, sae, one.clean, of=one.difference, hook=f"attn_z.{layer}").scores
            last = scores.rows() % one.clean.shape[1] == one.clean.shape[1] - 1
            sums.index_add_(0, scores.indices[last].long(), scores.values[last].float())
        best = sums.topk(SHOWN)
        found += [(float(value) / whole, layer, int(i)) for value, i in zip(best.values, best.indices, strict=True)]
    return [taken_apart(model, saes, every, *one) for one in sorted(found, reverse=True)[:SHOWN]]


def taken_apart(
    model: SubjectModel, saes: list[SAE], every: list[Prompts], share: float, layer: int, latent: int
) -> Mover:
    """Where a feature takes from at the last token: of what heads add, not of what they take away."""
    right = names = whole = 0.0
    heads: Any = 0
    for one in every:
        for row in filter(half_of, range(len(one.clean))):
            found = ms.direct_attribution(model, saes[layer], one.clean[row], latent, hook=f"attn_z.{layer}")
            if not found.activations[-1] > 0:
                continue
            added = found.parts[-1].clamp(min=0)
            at, again, _ = places(one, row)
            right += float(added[:, at].sum())
            names += float(added[:, [at, *again]].sum())
            whole += float(added.sum())
            heads = heads + added.sum(1)
    head = int(heads.argmax()) if whole else -1
    return Mover(layer, latent, share, right / max(names, 1e-12), names / max(whole, 1e-12), head)


def beside_and(model: SubjectModel, saes: list[SAE], every: list[Prompts]) -> list[tuple[int, int, str, float, float]]:
    """Features of the name before "and", or of that after it: layer, latent, which, and how often on at each."""
    found: list[tuple[int, int, str, float, float]] = []
    hooks = [f"attn_z.{layer}" for layer in range(model.n_layers)]
    got = [model.capture(one.clean, hooks) for one in every]
    n = sum(len(one.clean) for one in every)
    for layer, sae in enumerate(saes):
        counts = torch.zeros(2, 2, sae.n_latents)  # half, place, latent
        for one, of in zip(every, got, strict=True):
            for row, z in enumerate(of[hooks[layer]]):
                counts[half_of(row)] += (sae.encode(z[places(one, row)[2]]).to_dense() > 0).float()
        often = counts / (n / 2)
        for which, other in ((0, 1), (1, 0)):
            told = ((often[:, which] >= MOST) & (often[:, other] <= LEAST)).all(0).nonzero()[:, 0].tolist()
            share = often.mean(0)
            found += [(layer, i, SIDES[which], float(share[0, i]), float(share[1, i])) for i in told]
    return found


def draw(path: Path, layers: Layers) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axis = plt.subplots(figsize=(8.6, 3.4))
    colours = {"features": "#e07b00", "random dictionary": "#999999", "mean": "#2166ac"}
    for offset, (way, shares) in enumerate(layers.kept.items()):
        values = np.array([[one.value, one.low, one.high] for one in shares])
        spread = np.maximum(0, [values[:, 0] - values[:, 1], values[:, 2] - values[:, 0]])
        at = np.arange(len(values)) + 0.2 * (offset - 1)
        axis.errorbar(at, values[:, 0], spread, fmt="o", markersize=3, capsize=1.5, color=colours[way], label=way)
    axis.axhline(1, color="0.8", linewidth=1)
    axis.axhline(0, color="0.8", linewidth=1)
    low = min(one.low for shares in layers.kept.values() for one in shares)
    axis.set(
        xlabel="layer whose attention is replaced",
        ylabel="share of the difference kept",
        ylim=(max(-1.5, min(-0.1, low - 0.1)), 1.6),
    )
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, ncols=3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def table(head: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def verdict(layers: Layers, found: list[Mover], told: list[tuple[int, int, str, float, float]], random: int) -> str:
    """What the figures say, whichever way they have come out."""
    names = [one for one in found if one.moves]
    sides = [sum(which == side for _, _, which, _, _ in told) for side in SIDES]
    counted = "1 is a name mover's" if len(names) == 1 else f"{len(names)} are name movers'"
    together = layers.together
    return (
        f"Features in the place of one layer's attention damage the difference at {len(layers.damaged)} of "
        f"{len(layers.kept['mean'])} layers ({listed(layers.damaged)}); the mean does at {len(layers.needed)} "
        f"({listed(layers.needed)}), at {len(layers.carried)} of which features keep more than the mean. At all "
        f"layers at once features keep {together['features'].value:.0%}, a random dictionary "
        f"{together['random dictionary'].value:.0%}. Of the {len(found)} features that move the difference most, "
        f"{counted} (layers: {listed(sorted({one.layer for one in names}))}). Features that tell "
        f'the name before "and" from the one after it: {sides[0]} of the first, {sides[1]} of the second (of random '
        f"dictionaries {random})."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/smollm2_attention"))
    parser.add_argument("--model", help="where the run's model is, if not where it was")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    given = parser.parse_args()
    start = time.perf_counter()
    run = ms.Run(given.run)
    model = ms.load_model(given.model or str(run.config.model))
    saes = [run.members[f"attn_z.{layer}"].sae() for layer in range(model.n_layers)]
    every = [few(prompts(model, template, number), slice(PROMPTS)) for number, template in enumerate(TEMPLATES)]
    clean = np.concatenate([difference(model, one) for one in every])
    controls = untrained(saes, brought(model, every))
    layers = spliced(model, edits_of(model, saes, controls, every), every)
    found, told = movers(model, saes, every), beside_and(model, saes, every)
    said = verdict(layers, found, told, len(beside_and(model, controls, every)))
    seconds = time.perf_counter() - start
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "attention_objects.svg", layers)
    fvus = [sae.metadata.fingerprint.fvu or 0.0 for sae in saes if sae.metadata.fingerprint]
    rows = [[f"{layer}", *(str(layers.kept[way][layer]) for way in WAYS)] for layer in range(model.n_layers)]
    rows.append(["all", *(str(layers.together[way]) for way in WAYS)])
    moved = [
        [
            f"{one.layer}, {one.latent}",
            f"{one.share:.1%}",
            f"{one.head}",
            f"{one.names:.0%}",
            f"{one.right:.0%}",
            "yes" if one.moves else "no",
        ]
        for one in found
    ]
    sides = [[f"{a}, {b}", which, f"{x:.0%}", f"{y:.0%}"] for a, b, which, x, y in told[:20]]
    of_right = ["layer, latent", "of the difference", "head", "from names", "of that, the right one", "name mover's"]
    sections = [
        "# May features stand for attention where a model names the indirect object?",
        "Written by `python studies/attention_objects.py`, as it came out.",
        f"**{said}**",
        "![share of the difference kept with a layer's attention replaced](attention_objects.svg)",
        f"{PROMPTS} prompts of each of {len(TEMPLATES)} templates; {saes[0].n_latents:,} latents of "
        f"{saes[0].architecture} SAEs at attn_z of each layer of SmolLM2-135M-Instruct (FVU {min(fvus):.2f} to "
        f"{max(fvus):.2f}). The model names the right one in {(clean > 0).mean():.0%} of them, by "
        f"{clean.mean():.1f} in logits. Shares of sums over prompts, with 95 % bootstrap "
        "intervals over prompts.",
        "## Layer by layer: the share of the difference that is kept\n\n" + table(["layer", *WAYS], rows),
        "## What moves the difference at the last token\n\n" + table(of_right, moved),
        f'## The name before "and", and the one after it\n\nThe first {len(sides)} of {len(told)}.\n\n'
        + table(["layer, latent", "of the name", "on at the first", "on at the second"], sides),
    ]
    (given.output / "attention_objects.md").write_text("\n\n".join(sections) + "\n")
    print(f"{said}\n{seconds:.0f} s; {given.output / 'attention_objects.md'}")


if __name__ == "__main__":
    main()
