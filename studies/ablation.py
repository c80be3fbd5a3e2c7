"""Does an ablation's exact effect agree with attribution, and with the tokens that the feature promotes?

    python studies/ablation.py [RUN] [--model FOLDER] [--output studies] [--quick]

In passages that the dictionary was not trained on, features are drawn at random of those that are on, and each is
ablated over the whole passage: `ms.effects` says exactly by how many nats the passage gets likelier or less likely.
`ms.attribute` foretells the same for all features at once, by gradient times activation, and by integrated gradients
from no features to all. At the place where the feature is strongest, the change of all logits by the ablation is
compared with the logit weights of its decoder row, which say what it promotes if nothing comes between.

Rules, written before looking. A method agrees with the ablation if the rank correlation of foretold with exact effects,
over features, has its 95 % interval (passages drawn anew) above 0.5 and above that of foretold effects shuffled among
the features of a passage. The features' lens agrees if the correlation, over the vocabulary, of the ablation's change
with the feature's own logit weights is above that with the weights of other features, with its whole interval; it
describes the effect if the correlation is above 0.5. RUN is that of recipes/smollm2. Writes ablation.svg and .md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from smollm2 import DRAWS, Estimate, arguments, estimate, opened
from torch import Tensor

import monosem as ms
from monosem.analysis.logit_lens import logit_weights
from monosem.data import Documents, read_documents
from monosem.models import SubjectModel
from monosem.sae import SAE

LENGTH = 48
PASSAGES, FEATURES, STEPS = 16, 10, 8
PROMOTED = 10
METHODS = ("gradient", "integrated", "activation", "shuffled")


@dataclass
class Measured:
    """What is known of one feature in one passage."""

    passage: int
    latent: int
    exact: float
    """Nats by which the passage gets likelier without the feature."""
    foretold: dict[str, float]
    own: float
    """Correlation of the ablation's change of logits, over the vocabulary, with the feature's logit weights."""
    other: float
    """With those of another feature of the passage."""
    promoted: float
    """Mean change of the log-probability of the ten tokens that it promotes."""
    others_promoted: float


def passages(model: SubjectModel, n: int) -> list[Tensor]:
    """Beginnings of documents of the held-out text, spread over all of it."""
    documents = read_documents("bundled:held_out")
    assert isinstance(documents, Documents)
    long = [ids for one in documents if (ids := model.tokens(one.text[: 12 * LENGTH])[:, :LENGTH]).shape[1] == LENGTH]
    return long[:: max(1, len(long) // n)][:n]


@torch.no_grad()
def drawn(found: ms.Attribution, n: int, seed: int) -> list[int]:
    """Features that are on before the last token."""
    on = (found.codes.to_dense()[0, :-1] > 0).any(0).nonzero()[:, 0].numpy()
    return np.random.default_rng(seed).choice(on, min(n, len(on)), replace=False).tolist()


def alike(a: Tensor, b: Tensor) -> float:
    """Over the vocabulary."""
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


@torch.no_grad()
def measured(model: SubjectModel, sae: SAE, ids: Tensor, passage: int, n: int, steps: int) -> list[Measured]:
    """Exact and foretold effects of features of one passage."""
    gradient = ms.attribute(model, sae, ids, of="loss")
    integrated = ms.attribute(model, sae, ids, of="loss", method="integrated", steps=steps)
    latents = drawn(gradient, n, passage)
    codes = gradient.codes.to_dense()[0]
    weights = logit_weights(sae, model, latents).float()
    weights = weights - weights.mean(1, keepdim=True)
    plain, tokens = model(ids)[0].float(), ids.shape[1] - 1
    by = {name: one.by_latent() * tokens for name, one in (("gradient", gradient), ("integrated", integrated))}
    order = np.random.default_rng(passage).permutation(len(latents))
    found: list[Measured] = []
    for i, latent in enumerate(latents):
        exact = float(ms.effects(model, sae, ids, latent).total[0])
        place = int(codes[:-1, latent].argmax())
        with model.edit([ms.Ablate(sae, latent)]):
            change = plain[place] - model(ids)[0, place].float()
        likelier = change - (plain[place].logsumexp(0) - (plain[place] - change).logsumexp(0))
        j = (i + 1) % len(latents)
        foretold = {name: float(values[latent]) for name, values in by.items()}
        foretold["activation"] = -float(codes[:, latent].sum())
        foretold["shuffled"] = float(by["gradient"][latents[order[i]]])
        best = [likelier[weights[k].topk(PROMOTED).indices].mean().item() for k in (i, j)]
        own, other = alike(change, weights[i]), alike(change, weights[j])
        found.append(Measured(passage, latent, exact, foretold, own, other, best[0], best[1]))
    return found


def over_passages(rows: Sequence[Measured], of: Callable[[Sequence[Measured]], float]) -> Estimate:
    """A number of all, and its interval where passages are drawn anew."""
    groups = [[row for row in rows if row.passage == passage] for passage in sorted({row.passage for row in rows})]
    rng = np.random.default_rng(0)
    values = [
        of([row for k in rng.integers(0, len(groups), len(groups)) for row in groups[k]]) for _ in range(DRAWS // 8)
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(of(rows), float(low), float(high))


def ranks(name: str) -> Callable[[Sequence[Measured]], float]:
    """Rank correlation of foretold with exact effects."""

    def correlation(rows: Sequence[Measured]) -> float:
        found = spearmanr([row.exact for row in rows], [row.foretold[name] for row in rows])
        return float(np.asarray(found)[0])

    return correlation


def line(name: str) -> Callable[[Sequence[Measured]], float]:
    """Exact nats for a foretold one: the slope of the best line through 0."""

    def slope(rows: Sequence[Measured]) -> float:
        x, y = np.array([r.foretold[name] for r in rows]), np.array([r.exact for r in rows])
        return float(x @ y / max(x @ x, 1e-12))

    return slope


def signs(name: str) -> Callable[[Sequence[Measured]], float]:
    """The share of the larger half of exact effects whose sign is foretold."""

    def share(rows: Sequence[Measured]) -> float:
        exact, told = np.array([r.exact for r in rows]), np.array([r.foretold[name] for r in rows])
        large = np.abs(exact) >= np.median(np.abs(exact))
        return float((np.sign(exact) == np.sign(told))[large].mean())

    return share


def draw(path: Path, rows: Sequence[Measured]) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 3, figsize=(11.4, 3.4))
    exact = np.array([row.exact for row in rows])
    for axis, name in zip(axes, ("gradient", "integrated"), strict=False):
        told = np.array([row.foretold[name] for row in rows])
        axis.plot([exact.min(), exact.max()], [exact.min(), exact.max()], color="0.7", linewidth=1)
        axis.scatter(told, exact, s=12, color="#1f6f8b", alpha=0.7, linewidths=0)
        axis.set(xscale="symlog", yscale="symlog", xlabel=f"foretold by {name}, nats", ylabel="exact, nats")
        for part in (axis.set_xscale, axis.set_yscale):
            part("symlog", linthresh=0.1)
        axis.axhline(0, color="0.85", linewidth=0.8, zorder=0)
        axis.axvline(0, color="0.85", linewidth=0.8, zorder=0)
    bins = np.linspace(-1, 1, 41)
    for values, name, colour in (
        ([row.other for row in rows], "another feature's", "0.7"),
        ([row.own for row in rows], "its own", "#b5532a"),
    ):
        axes[2].hist(np.array(values), bins=bins, histtype="stepfilled", alpha=0.6, color=colour, label=name)
    axes[2].set(xlabel="correlation with logit weights", ylabel="features")
    axes[2].legend(frameon=False, fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def verdict(rows: Sequence[Measured]) -> str:
    """What the figures say, whichever way they have come out."""
    found = {name: over_passages(rows, ranks(name)) for name in METHODS}
    floor = found["shuffled"].high
    parts = [
        f"{name} {'agrees' if found[name].low > max(0.5, floor) else 'does not agree'} with the ablation (rank "
        f"correlation {found[name].text('.2f')}, signs of the larger effects "
        f"{over_passages(rows, signs(name)).text('.0%')})"
        for name in ("gradient", "integrated")
    ]
    own, other = (estimate([getattr(row, side) for row in rows]) for side in ("own", "other"))
    gap = over_passages(rows, lambda part: float(np.mean([row.own - row.other for row in part])))
    says = "agree with it" if gap.low > 0 else "do not agree with it"
    describes = "and describe it" if own.low > 0.5 else "but do not describe it" if gap.low > 0 else ""
    return (
        f"Attribution by {', by '.join(parts)}; shuffled {found['shuffled'].text('.2f')}. The tokens that a feature "
        f"promotes {says} {describes}: the change of all logits correlates {own.text('.2f')} with the feature's own "
        f"logit weights and {other.text('.2f')} with another's, {gap.text('.2f')} more."
    ).replace("  ", " ")


def main() -> None:
    given = arguments(__doc__).parse_args()
    start = time.perf_counter()
    sae, model = ms.Run(given.run).sae(), opened(given.model)
    n, each, steps = (3, 4, 2) if given.quick else (PASSAGES, FEATURES, STEPS)
    rows: list[Measured] = []
    for passage, ids in enumerate(passages(model, n)):
        rows += measured(model, sae, ids, passage, each, steps)
        print(f"{passage + 1} of {n} passages, {time.perf_counter() - start:.0f} s", flush=True)
    said = verdict(rows)
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "ablation.svg", rows)
    first = "| foretold by | rank correlation | exact for one foretold | sign right, larger half |\n|---|---|---|---|\n"
    lines = [
        f"| {name} | " + " | ".join(
            over_passages(rows, how(name)).text(form) for how, form in ((ranks, ".2f"), (line, ".2f"), (signs, ".0%"))
        ) + " |"
        for name in METHODS
    ]  # fmt: skip
    better = estimate([row.promoted for row in rows]), estimate([row.others_promoted for row in rows])
    parts = [
        "# Does an ablation's exact effect agree with attribution, and with the tokens that the feature promotes?",
        "Written by `python studies/ablation.py`, as it came out.",
        f"**{said}**",
        "![foretold and exact effects](ablation.svg)",
        f"{len(rows)} times a feature in one of {n} passages of {LENGTH} tokens, drawn at random of those that are on; "
        f"{sae.n_latents:,} latents of a {sae.architecture} SAE at {sae.metadata.hook} of SmolLM2-135M-Instruct. "
        f"Integrated gradients of {steps} steps. Effects are nats by which the whole passage gets likelier without the "
        f"feature; the median size of an exact one is {np.median([abs(row.exact) for row in rows]):.2g}. Intervals: "
        "95 %, passages drawn anew.",
        f"## Foretold and exact effects\n\n{first}" + "\n".join(lines),
        "`activation`: less the sum of the feature's activations, whatever they do; `shuffled`: gradients, each "
        "given to another feature of its passage. The slope is that of the best line through 0, in nats for "
        "`gradient` and `integrated`.",
        "## Promoted tokens\n\nWithout the feature, where it is strongest, the log-probability of the "
        f"{PROMOTED} tokens that it promotes falls by {better[0].text('.3f')} nats, that of those that another "
        f"feature of the passage promotes by {better[1].text('.3f')}.",
    ]
    (given.output / "ablation.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{time.perf_counter() - start:.0f} s; {given.output / 'ablation.md'}")


if __name__ == "__main__":
    main()
