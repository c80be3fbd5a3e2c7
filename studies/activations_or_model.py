"""Which properties of features are of the activations, and which of the model?

    python studies/activations_or_model.py [--output studies] [--rows 40000] [--latents 512] [--importance 40]

Dictionaries of two seeds are trained on as many rows each of five kinds: the bundled model's residual stream, the same
model with its weight matrices shuffled (untrained), its rows with every coordinate shuffled by itself, Gaussian rows of
the same mean and covariance, and its rows whitened. Measured on rows held out, each on its own kind: error, how seldom
and how strongly latents fire, how alike seeds are, how much of a latent's variance the token explains. Then all of them
are put into the model, on its own activations: error and KL. Last, what single latents of the model's dictionary are
worth to the reconstruction and to the model.

Rule, written before looking: a property is said to be of the model if on the model's rows it is better than on every
surrogate by more than a tenth of its value; of the activations' statistics if Gaussian or shuffled rows come within a
tenth; in between otherwise. Variance explained is said to stand for causal importance if their rank correlation over
latents is above 0.7.
Writes activations_or_model.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import monosem as ms
from monosem.activations.inputs import open_text
from monosem.analysis.surrogates import Importance, LatentProperties, causal_importance, latent_properties, surrogates
from monosem.evaluation.untrained import untrained_model
from monosem.models import SubjectModel
from monosem.sae import SAE

HOOK, K = "resid_post.2", 24
LARGER_IS_BETTER = {"fvu": False, "dense": False, "kurtosis": True, "stability": True, "token": True}


@torch.no_grad()
def rows_of(model: SubjectModel, text: str, n: int) -> tuple[Tensor, Tensor]:
    """Rows and their tokens, special ones left out."""
    contexts, _ = open_text(model, text, seed=0 if text == "bundled" else None)
    rows, tokens, found, start = list[Tensor](), list[Tensor](), 0, 0
    while found < n:
        batch = contexts.read(start, start + 8)
        kept = ~batch.special & ~batch.padding
        rows.append(model.capture(batch.tokens, [HOOK])[HOOK][kept])
        tokens.append(batch.tokens[kept])
        found, start = found + len(rows[-1]), start + 8
    return torch.cat(rows)[:n], torch.cat(tokens)[:n]


def trained(x: Tensor, latents: int, seed: int) -> SAE:
    sae = ms.TopKSAE(x.shape[1], latents, k=K, seed=seed)
    ms.fit(sae, x, tokens=len(x), progress=False)
    return sae


@torch.no_grad()
def put_in(sae: SAE, model: SubjectModel, tokens: Tensor) -> tuple[float, float]:
    """Error on the model's own activations, and KL of next tokens with the reconstruction in their place."""
    x = model.capture(tokens, [HOOK])[HOOK]
    rows = x[:, 1:].flatten(0, 1)
    rebuilt = sae.decode(sae.encode(rows), rows)
    fvu = float((rows - rebuilt).pow(2).sum() / (rows - rows.mean(0)).pow(2).sum())
    clean = model(tokens)[:, 1:].log_softmax(-1)
    with model.edit({HOOK: lambda x, _: torch.cat([x[:, :1], rebuilt.view_as(x[:, 1:])], dim=1)}):
        other = model(tokens)[:, 1:].log_softmax(-1)
    return fvu, float((clean.exp() * (clean - other)).sum(-1).mean())


def draw(
    path: Path, found: dict[str, LatentProperties], inside: dict[str, tuple[float, float]], one: Importance
) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    names = [*LARGER_IS_BETTER]
    figure, axes = plt.subplots(1, len(names) + 2, figsize=(2.3 * (len(names) + 2), 3))
    for axis, name in zip(axes, names, strict=False):
        axis.bar(range(len(found)), [getattr(each, name) for each in found.values()])
        axis.set_title(name, fontsize=9)
    axes[-2].bar(range(len(inside)), [kl for _, kl in inside.values()])
    axes[-2].set_title("KL in the model", fontsize=9)
    for axis, kinds in zip(axes[:-1], [found] * len(names) + [inside], strict=True):
        axis.set_xticks(range(len(kinds)), list(kinds), rotation=60, fontsize=7)
    axes[-1].loglog(np.maximum(one.variance, 1e-7), np.maximum(one.kl, 1e-7), "o", markersize=3)
    axes[-1].set(xlabel="variance explained", ylabel="KL without it")
    axes[-1].set_title("one latent each", fontsize=9)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def belongs(name: str, found: dict[str, LatentProperties]) -> str:
    """To what a property belongs, by the rule."""
    sign = 1 if LARGER_IS_BETTER[name] else -1
    value = getattr(found["model"], name)
    others = {kind: getattr(each, name) for kind, each in found.items() if kind != "model"}
    others = {kind: each for kind, each in others.items() if np.isfinite(each)}
    margin = 0.1 * abs(value)
    if all(sign * (value - each) > margin for each in others.values()):
        return "model"
    if any(sign * (value - others[kind]) <= margin for kind in ("shuffled", "gaussian") if kind in others):
        return "activations"
    return "in between"


def verdict(found: dict[str, LatentProperties], inside: dict[str, tuple[float, float]], one: Importance) -> str:
    words = {
        "fvu": "low error",
        "dense": "few dense latents",
        "kurtosis": "rare strong firing",
        "stability": "agreement of seeds",
        "token": "being bound to tokens",
    }
    by = {name: belongs(name, found) for name in LARGER_IS_BETTER}
    said = {
        kind: ", ".join(words[name] for name in by if by[name] == kind) or "nothing"
        for kind in ("model", "activations", "in between")
    }
    stands = "stands" if one.correlation > 0.7 else "does not stand"
    best = min((kind for kind in inside if kind != "model"), key=lambda kind: inside[kind][1])
    return (
        f"Of the model: {said['model']}; of the activations' statistics: {said['activations']}; in between: "
        f"{said['in between']}. In the model the dictionary of its own rows costs {inside['model'][1]:.2f} nats of KL, "
        f"the best of the others ({best}) {inside[best][1]:.2f}. Variance explained {stands} for causal importance "
        f"(rank correlation {one.correlation:.2f} over {len(one.latents)} latents)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--latents", type=int, default=512)
    parser.add_argument("--importance", type=int, default=40)
    given = parser.parse_args()
    start = time.perf_counter()
    model = ms.load_model("bundled", device="cpu")
    noise, held = untrained_model(model), max(4096, given.rows // 5)
    rows, tokens = rows_of(model, "bundled", given.rows + held)
    kinds = {"model": rows, "untrained": rows_of(noise, "bundled", given.rows + held)[0], **surrogates(rows)}
    own = {"model", "untrained", "whitened"}
    found, first = dict[str, LatentProperties](), dict[str, SAE]()
    for kind, x in kinds.items():
        print(kind, flush=True)
        saes = [trained(x[: given.rows], given.latents, seed) for seed in (0, 1)]
        of_tokens = tokens[given.rows :] if kind in own else None
        found[kind] = latent_properties(saes[0], x[given.rows :], other=saes[1], tokens=of_tokens)
        first[kind] = saes[0]
    contexts, _ = open_text(model, "bundled:held_out")
    batch = contexts.read(0, 8).tokens
    inside = {kind: put_in(sae, model, batch) for kind, sae in first.items() if kind != "whitened"}
    drawn = np.random.default_rng(0).permutation(given.latents)
    x = rows[given.rows :]
    fires = {int(i) for i in first["model"].encode(x).indices.unique()}
    chosen = [int(i) for i in drawn if int(i) in fires][: given.importance]
    one = causal_importance(first["model"], model, batch[:4], chosen, HOOK)
    seconds = time.perf_counter() - start
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "activations_or_model.svg", found, inside, one)
    words = verdict(found, inside, one)
    names = [*LatentProperties.__dataclass_fields__]
    table = [f"| rows | {' | '.join(names)} | FVU in the model | KL in the model |", "|---" * (len(names) + 3) + "|"]
    for kind, each in found.items():
        cells = [f"{getattr(each, name):.3g}" for name in names]
        cells += [f"{value:.3f}" for value in inside[kind]] if kind in inside else ["", ""]
        table.append(f"| {kind} | {' | '.join(cells)} |".replace("nan", ""))
    parts = [
        "# Which properties of features are of the activations, and which of the model?",
        "Written by `python studies/activations_or_model.py`, as it came out.",
        f"**{words}**",
        "![Properties](activations_or_model.svg)",
        f"TopK SAEs of {given.latents:,} latents, {K} on at a row, {given.rows:,} rows of each kind, once; the stream "
        f"at {HOOK} of the bundled model, {held:,} rows held out. Dense: latents that fire on more than 10 % of the "
        "rows; kurtosis: median excess over latents; stability: cosine to the most similar latent of another seed; "
        "token: share of a latent's variance by the token alone, where rows are of tokens. In the model: on its own "
        f"activations, on {batch.numel():,} tokens (whitened rows are no activations of the model).",
        "\n".join(table),
    ]
    (given.output / "activations_or_model.md").write_text("\n\n".join(parts) + "\n")
    print(f"{words}\n{seconds:.0f} s; {given.output / 'activations_or_model.md'}")


if __name__ == "__main__":
    main()
