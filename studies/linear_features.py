"""What share of an MLP's features are linear in the features that it reads?

    python studies/linear_features.py [--output studies] [--tokens 150000] [--latents 512]

Trains, for every layer of the bundled model, an SAE of what the MLP reads (the residual stream in the middle) and one
of what it writes, on the same tokens. Then each feature written is fitted as a sparse linear sum of features read
(`ms.connections(...).linear()`), on some documents, and tried on others. Beside it: the virtual weights, which go past
the MLP, with one factor fitted for each feature, and the same fit on codes of other tokens. The same is done past no
MLP at all, from the SAE of one place to another SAE of that very place, trained from another seed: as linear as two
dictionaries of one thing can be. Fitted are codes, and pre-activations: what is read before it is selected which
features are on. Rule, written before looking: a feature is called linear if half of its variance is explained.
Writes linear_features.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import monosem as ms
from monosem.activations.inputs import reopened
from monosem.circuits.connections.connections import pre_activations
from monosem.circuits.connections.linear import LinearFit, fit_linear
from monosem.circuits.connections.pairs import Pairs, read_pairs
from monosem.circuits.sites import sites_of
from monosem.codes import SparseCodes
from monosem.interventions.way import Site
from monosem.models import SubjectModel
from monosem.sae import SAE

K = 16
READ = 50_000
"""Tokens of the fits and their tests."""
PENALTIES = (0.1, 0.03, 0.01)
LINEAR = 0.5


def trained(model: SubjectModel, tokens: int, latents: int) -> dict[str, SAE]:
    """SAEs of what every MLP reads and writes, the first twice, on one pass."""
    places = {}
    for layer in range(model.n_layers):
        places |= {
            f"read {layer}": f"resid_mid.{layer}",
            f"again {layer}": f"resid_mid.{layer}",
            f"written {layer}": f"mlp_out.{layer}",
        }
    source: Any = ms.activations(model, list(dict.fromkeys(places.values())), text="bundled", buffer_tokens=16_384)
    saes: dict[str, SAE] = {
        name: ms.TopKSAE(model.d_model, latents, k=K, seed=1 if name.startswith("again") else 0) for name in places
    }
    ms.train_together(saes, {name: source.select(hook) for name, hook in places.items()}, tokens=tokens)
    return saes


def collected(model: SubjectModel, source: Site, target: Site) -> tuple[Pairs, Pairs]:
    """What both see of held-out text: codes of both, and of the target pre-activations less their mean."""
    contexts, _ = reopened(source.sae.metadata, model, source.read, text="bundled:held_out")
    every = target.sae._numbers(None)
    parts: list[Pairs] = []
    before: list[Tensor] = []
    n = 0
    for batch in contexts.in_batches(model.contexts_at_once(256)):
        found, way = read_pairs(model, (source, target), batch.inputs, None, None)
        documents = torch.as_tensor(np.asarray(batch.document)).amax(1)[found.documents]
        parts.append(Pairs(found.source, found.target, found.shrunk, documents))
        one, other = (next(s for s in way.sites if s.sae is site.sae) for site in (source, target))
        before.append(pre_activations(other, one.kept & other.kept, every))
        n += len(found)
        if n >= READ:
            break
    codes = Pairs(
        SparseCodes.cat([part.source for part in parts]),
        SparseCodes.cat([part.target for part in parts]),
        torch.cat([part.shrunk for part in parts]),
        torch.cat([part.documents for part in parts]),
    )
    whole = torch.cat(before)
    dense = SparseCodes.from_dense(whole - whole.mean(0))
    return codes, Pairs(codes.source, dense, codes.shrunk, codes.documents)


def fits(model: SubjectModel, saes: dict[str, SAE], layer: int) -> dict[str, LinearFit]:
    """From what is read to what is written, and to what is read as another dictionary has it."""
    found: dict[str, LinearFit] = {}
    for name in ("written", "again"):
        source, target = (sites_of(model, [saes[f"{side} {layer}"]])[0] for side in ("read", name))
        weights = source.sae.decoder_directions() @ target.sae.encoder_directions().T
        latents = target.sae._numbers(None)
        for of, pairs in zip((name, f"{name}, before selection"), collected(model, source, target), strict=True):
            found[of] = fit_linear(pairs, latents, weights, PENALTIES, 0.25, 50)
    return found


def draw(path: Path, found: list[dict[str, LinearFit]]) -> None:
    """The figure: explained variance over features, layer by layer."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, len(found), figsize=(3.1 * len(found), 3.2), sharey=True)
    for layer, (axis, both) in enumerate(zip(axes, found, strict=True)):
        lines = {
            "codes written": both["written"].best,
            "codes read (ceiling)": both["again"].best,
            "written, before selection": both["written, before selection"].best,
            "read, before selection (ceiling)": both["again, before selection"].best,
            "codes written, virtual weights": both["written"].by_weights,
        }
        for name, values in lines.items():
            ordered = np.sort(np.clip(values.numpy(), -0.2, 1))[::-1]
            axis.plot(np.linspace(0, 1, len(ordered)), ordered, label=name)
        axis.axhline(LINEAR, color="0.8", linewidth=1)
        axis.set(title=f"layer {layer}", xlabel="share of features", ylim=(-0.2, 1))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="variance explained")
    axes[-1].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def said_of(fit: LinearFit, at_least: float) -> str:
    share, low, high = fit.share(at_least)
    return f"{share:.0%} ({low:.0%} to {high:.0%})"


def verdict(found: list[dict[str, LinearFit]]) -> str:
    """What the figures say, whichever way they have come out."""

    def counted(name: str, side: str = "best") -> float:
        fits = [both[name] for both in found]
        return sum(int((getattr(fit, side) >= LINEAR).sum()) for fit in fits) / sum(len(fit.latents) for fit in fits)

    codes, ceiling = counted("written"), counted("again")
    before, most = counted("written, before selection"), counted("again, before selection")
    by_layer = ", ".join(f"{both['written, before selection'].share(LINEAR)[0]:.0%}" for both in found)
    called = "Most" if before > 0.5 else "A minority"
    alike = "nearly as often as" if codes >= 0.75 * ceiling else "less often than"
    return (
        f"{called} of the features that MLPs write are linear in those that they read, before the selection of which "
        f"are on: of {before:.0%} at least half of the variance is explained on held-out text (by layer {by_layer}); "
        f"where nothing lies between, from one dictionary to another of the same place, of {most:.0%}. Of codes, after "
        f"the selection, {codes:.0%}, {alike} where nothing lies between ({ceiling:.0%}): there the selection is what "
        f"is not linear. Virtual weights explain half of {counted('written', 'by_weights'):.0%} of codes, codes of "
        f"other tokens of {counted('written', 'by_chance'):.0%}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=int, default=150_000)
    parser.add_argument("--latents", type=int, default=512)
    given = parser.parse_args()
    start = time.perf_counter()
    model = ms.load_model("bundled")
    saes = trained(model, given.tokens, given.latents)
    found = [fits(model, saes, layer) for layer in range(model.n_layers)]
    seconds = time.perf_counter() - start
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "linear_features.svg", found)
    said = verdict(found)
    rows = ["| layer | | features | at least 90 % | at least 50 % | median | virtual weights | other tokens | used |"]
    rows.append("|---" * 9 + "|")
    for layer, both in enumerate(found):
        for name, words in (
            ("written", "codes written by the MLP"),
            ("again", "codes of what is read, by another dictionary"),
            ("written, before selection", "written, before selection"),
            ("again, before selection", "read, before selection"),
        ):
            fit = both[name]
            best = fit.explained.argmax(0)
            used = fit.used.gather(0, best[None])[0].double().mean()
            rows.append(
                f"| {layer} | {words} | {len(fit.latents)} | {said_of(fit, 0.9)} | {said_of(fit, 0.5)} | "
                f"{float(fit.best.median()):.2f} | {float(fit.by_weights.median()):.2f} | "
                f"{float(fit.by_chance.median()):.2f} | {float(used):.0f} |"
            )
    worst = max(max(fit.violations) for both in found for fit in both.values())
    parts = [
        "# What share of an MLP's features are linear in the features that it reads?",
        "Written by `python studies/linear_features.py`, as it came out.",
        f"**{said}**",
        "![variance explained over features](linear_features.svg)",
        f"TopK SAEs of {given.latents} latents, {K} on at a token, {given.tokens:,} tokens of training; fits on "
        f"{READ:,} tokens of held-out text, of which a quarter of the documents is for the test; features that are on "
        f"50 times in each part. Penalties {', '.join(map(str, PENALTIES))} of the largest, the best for each feature "
        "(a choice on the test's documents: it flatters all fits alike). Shares with 95 % intervals over features; "
        "`used`: source features with a weight. Before selection: pre-activations less their mean. The conditions of "
        f"the minimum hold to {worst:.0e} of the penalty.",
        "\n".join(rows),
    ]
    (given.output / "linear_features.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{seconds:.0f} s; {given.output / 'linear_features.md'}")


if __name__ == "__main__":
    main()
