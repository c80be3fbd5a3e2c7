"""Are meta-latents what a smaller dictionary has for latents, and can a model be edited by them?

    python studies/meta_latents.py [--output studies] [--tokens 600000] [--edited 24] [--keep FOLDER]

Dictionaries of three widths learn from one pass over the bundled text; a meta-SAE of 256 meta-latents decomposes the
4,096 latents of the largest, and is laid beside the dictionaries of 256 and of 1,024 latents. Then latents are edited:
the strongest meta-latent is taken out of what each writes (`meta.edit`), beside ablating the latent, and taking out a
random direction with the same weight. Measured where the latent fires: the logits of the 20 tokens that the meta-latent
promotes most, and of the 20 that the rest of the latent's direction promotes most.
Rules, written before looking: meta-latents are the small dictionary's latents if they are nearer to these than the
meta-latents of random rows of the same covariance, by intervals apart. An edit is selective if it lowers the part's
tokens more than the rest's, with the interval over latents below 0; ablation and random directions are the controls.
Published (GPT-2 small): meta-latents resemble the latents of a smaller dictionary, and edits by them change one fact.
Writes meta_latents.svg and meta_latents.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from widths import HOOK, dictionaries

import monosem as ms
from monosem.analysis import Overlap, direction_logits
from monosem.analysis.cosines import over_latents, random_directions, unit_rows
from monosem.analysis.meta.made import ALIKE, OWN
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.sae import SAE

SMALL, MIDDLE, LARGE, TOKENS, CONTEXTS = 256, 1024, 4096, 20, 8


class Edited(NamedTuple):
    """Changes of logits, relative to their mean over the vocabulary, where latents fire; one number a latent."""

    part: Tensor
    rest: Tensor

    @property
    def selective(self) -> Interval:
        return over_latents(self.part - self.rest)


def edits(model: SubjectModel, sae: SAE, meta: ms.MetaSAE, text: Tensor, n: int) -> dict[str, Edited]:
    """What three edits do to each of some latents that fire and have parts."""
    codes = sae.encode(model.capture({"input_ids": text}, [HOOK])[HOOK])
    strongest = codes.to_dense().amax(1)
    on = (strongest > 0).sum(0)
    fit = [i for i in range(LARGE) if on[i] >= 2 and len(meta.made_of(i)) >= 2]
    order = torch.randperm(len(fit), generator=torch.Generator().manual_seed(0)).tolist()
    found: dict[str, list[tuple[float, float]]] = {
        "without its meta-latent": [],
        "without the latent": [],
        "random": [],
    }
    for latent in [fit[i] for i in order[:n]]:
        part = meta.made_of(latent)[0]
        row = sae.decoder_directions([latent])
        direction = meta.directions[part.number][None]
        rest = row - row.norm() * part.weight * direction
        promoted = direction_logits(torch.cat([direction, rest]), model).topk(TOKENS).indices
        rows = strongest[:, latent].topk(min(CONTEXTS, int(on[latent]))).indices
        own = codes[rows].select([latent]).to_dense()[..., 0] > 0
        strange = random_directions(1, row.shape[1], torch.Generator().manual_seed(latent)).to(row)
        other = ms.Redirect(sae, [latent], row - row.norm() * part.weight * strange)
        clean = model(text[rows])[own]
        for name, edit in zip(
            found, (meta.edit(sae, latent, without=part.number), ms.Ablate(sae, [latent]), other), strict=True
        ):
            with model.edit([edit]):
                change = model(text[rows])[own] - clean
            change = (change - change.mean(-1, keepdim=True)).mean(0)
            found[name].append((float(change[promoted[0]].mean()), float(change[promoted[1]].mean())))
    return {name: Edited(*torch.tensor(pairs).double().unbind(1)) for name, pairs in found.items()}


def contexts(model: SubjectModel, n: int) -> Tensor:
    """Contexts of the bundled text."""
    source = ms.activations(model, HOOK, text="bundled", buffer_tokens=4096, seed=5)
    return source.probe()["tokens"].long()[:n]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--edited", type=int, default=24)
    parser.add_argument("--keep", type=Path, help="a folder that keeps the dictionaries")
    options = parser.parse_args()
    model = ms.load_model("bundled")
    saes = dictionaries(model, options.tokens, options.keep)
    meta = ms.meta_sae(saes[LARGE], SMALL, path=None if options.keep is None else options.keep / "meta_sae")
    print(meta)
    beside = {width: meta.against(saes[LARGE], saes[width]) for width in (SMALL, MIDDLE)}
    for one in beside.values():
        print(one)
    with torch.no_grad():
        edited = edits(model, saes[LARGE], meta, contexts(model, 64), options.edited)
    (options.output / "meta_latents.md").write_text(page(meta, beside, edited, options.tokens))
    draw(options.output / "meta_latents.svg", saes, meta, edited)
    print(verdict(meta, beside, edited))


def said(interval: Interval) -> str:
    return f"{interval.value:.3f} ({interval.low or 0:.3f} to {interval.high or 0:.3f})"


def verdict(meta: ms.MetaSAE, beside: dict[int, Overlap], edited: dict[str, Edited]) -> str:
    near = beside[SMALL].to_small
    own, null = near["meta-latents"], near[f"those of {ALIKE}"]
    same = (own.low or 0) > (null.high or 1)
    by_meta, by_latent, by_chance = (one.selective for one in edited.values())
    selective = (by_meta.high or 1) < 0
    nearer, selects = "nearer" if same else "not nearer", "selective" if selective else "not selective"
    explained = [said(meta.explained[name].held_out) for name in (OWN, ALIKE)]
    return (
        f"Meta-latents are {nearer} to the latents of a dictionary of {SMALL} than those of random rows: largest "
        f"cosine {said(own)}, random rows {said(null)}. They explain {explained[0]} of decoder rows held out, "
        f"of random rows "
        f"{explained[1]}. Taking one out of a latent is {selects}: its tokens' logits change {said(by_meta)} more than "
        f"the rest's, by ablating the latent {said(by_latent)}, by a random direction {said(by_chance)}."
    )


def page(meta: ms.MetaSAE, beside: dict[int, Overlap], edited: dict[str, Edited], tokens: int) -> str:
    shown = "\n\n".join(f"```\n{str(one).rstrip()}\n```" for one in (meta, *beside.values()))
    lines = [
        f"| {name} | {said(over_latents(one.part))} | {said(over_latents(one.rest))} | {said(one.selective)} |"
        for name, one in edited.items()
    ]
    table = "\n".join(["| | tokens of the part | tokens of the rest | difference |", "|---|---|---|---|", *lines])
    n = len(next(iter(edited.values())).part)
    return f"""# Are meta-latents a smaller dictionary's latents?

Written by `python studies/meta_latents.py --tokens {tokens}`, as it came out.

**{verdict(meta, beside, edited)}**

![nearness to the small dictionary, and what edits do](meta_latents.svg)

Dictionaries (BatchTopK, 24 on) trained on {tokens:,} tokens of one pass; intervals are 95 %, over latents. Permutations
stand for chance in splits; that siblings are near each other is not taken out by them.

{shown}

## Edits of {n} latents, where they fire

Change of logits, relative to their mean: of the {TOKENS} tokens that the part promotes most, and of those that the
rest of the latent's direction promotes most. Part of
that is so by construction, as what is taken out is what promotes them if nothing but the output reads it; that the
rest's
stay, and by how much the part's fall after the layers between, is not.

{table}
"""


def draw(path: Path, saes: dict[int, SAE], meta: ms.MetaSAE, edited: dict[str, Edited]) -> None:
    import matplotlib.pyplot as plt

    from monosem.analysis.cosines import nearest

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    small = unit_rows(saes[SMALL].decoder_directions())
    for name, rows in {"meta-latents": meta.directions, **meta.controls}.items():
        axes[0].hist(nearest(rows, small).cosines.numpy(), bins=40, range=(0, 1), histtype="step", label=name)
    axes[0].set(xlabel=f"largest cosine with one of {SMALL} latents", ylabel="directions", title="Nearness")
    for name, one in edited.items():
        axes[1].plot(one.rest, one.part, ".", label=name)
    axes[1].axline((0, 0), slope=1, color="0.7", linewidth=1)
    axes[1].set(xlabel="logits of the rest's tokens", ylabel="logits of the part's tokens", title="Edits")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
