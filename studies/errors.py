"""How much of what earlier parts of the model do passes through the error of a dictionary?

    python studies/errors.py [--output studies] [--contexts 32]

A circuit of features sees nothing of what passes a dictionary beside them. Here each attention, MLP and head before
resid_post.2 of the bundled model is set to its mean over the texts, one at a time. What changes at resid_post.2 is a
change of the reconstruction and a change of the error, and each is put in alone, the other as it was: how far do the
model's next tokens move (KL) by way of features, and how far by way of the error? Dictionaries: the demo's SAE, and one
of the same shape that never learned. Beside it the share of the change's energy that is error. Rule, written before
looking: features carry what earlier parts do if the share of KL by way of the error, error / (error + features) of sums
over tokens, is below 10 % in the median part; they do not if it is above 50 %. Writes errors.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import monosem as ms
from monosem.data import read_documents
from monosem.models import SubjectModel
from monosem.sae import SAE

HOOK, LAYER, LENGTH, DRAWS = "resid_post.2", 2, 64, 1_000


@dataclass
class Part:
    """What is set to its mean, and what came of it: a number for each context."""

    name: str
    hook: str
    columns: slice
    whole: Tensor
    by_features: Tensor
    by_error: Tensor
    energy: float
    """Share of the change at the dictionary's hook point that is error."""

    def share(self, chosen: np.ndarray | None = None) -> float:
        error, features = self.by_error.numpy(), self.by_features.numpy()
        if chosen is not None:
            error, features = error[chosen], features[chosen]
        return float(error.sum() / (error.sum() + features.sum()))


def contexts(model: SubjectModel, number: int) -> Tensor:
    """Beginnings of held-out documents, each as long."""
    rows: list[Tensor] = []
    for document in read_documents("bundled:held_out"):
        tokens = model.tokens(document.text)[0]  # type: ignore[union-attr]
        if len(tokens) >= LENGTH:
            rows.append(tokens[:LENGTH])
        if len(rows) == number:
            break
    return torch.stack(rows)


def parts_of(model: SubjectModel) -> list[tuple[str, str, slice]]:
    """Attentions, MLPs and heads up to the dictionary's layer: name, hook point, which of its columns."""
    heads = model.module.config.num_attention_heads
    width = model.width("attn_z.0") // heads
    found = [(f"{point}.{layer}", f"{point}.{layer}", slice(None)) for layer in range(LAYER + 1) for point in POINTS]
    for layer in range(LAYER + 1):
        for head in range(heads):
            found.append((f"head {layer}.{head}", f"attn_z.{layer}", slice(head * width, (head + 1) * width)))
    return found


POINTS = ("attn_out", "mlp_out")


def rebuilt(sae: SAE, x: Tensor) -> Tensor:
    return sae.decode(sae.encode(x.flatten(0, 1))).reshape(x.shape).to(x)


def moved(model: SubjectModel, tokens: Tensor, to: Tensor, clean: Tensor) -> Tensor:
    """KL of the next tokens with something else at the hook point, mean over positions of each context."""
    with model.edit({HOOK: lambda _x, _context: to}):
        logs = model.forward(tokens).log_softmax(-1)
    return (clean.exp() * (clean - logs)).sum(-1)[:, 1:].mean(1).double()


@torch.no_grad()
def tried(model: SubjectModel, saes: dict[str, SAE], tokens: Tensor) -> dict[str, list[Part]]:
    """Every part, with each dictionary."""
    clean = model.forward(tokens).log_softmax(-1)
    x = model.capture(tokens, [HOOK])[HOOK]
    before = {name: rebuilt(sae, x) for name, sae in saes.items()}
    found: dict[str, list[Part]] = {name: [] for name in saes}
    for name, hook, columns in parts_of(model):

        def mean(y: Tensor, _context: object, columns: slice = columns) -> Tensor:
            y = y.clone()
            y[..., columns] = y[:, 1:, columns].mean((0, 1))
            return y

        with model.edit({hook: mean}):
            other = model.capture(tokens, [HOOK])[HOOK]
        whole = moved(model, tokens, other, clean)
        for which, sae in saes.items():
            by_features = rebuilt(sae, other) - before[which]
            by_error = other - x - by_features
            squares = [float(change[:, 1:].pow(2).sum()) for change in (by_features, by_error)]
            energy = squares[1] / sum(squares)
            kl = [moved(model, tokens, x + change, clean) for change in (by_features, by_error)]
            found[which].append(Part(name, hook, columns, whole, kl[0], kl[1], energy))
    return found


def interval(part: Part, rng: np.random.Generator) -> tuple[float, float]:
    n = len(part.by_error)
    shares = [part.share(rng.integers(0, n, n)) for _ in range(DRAWS)]
    return float(np.quantile(shares, 0.025)), float(np.quantile(shares, 0.975))


def draw(path: Path, found: dict[str, list[Part]]) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axis = plt.subplots(figsize=(5.2, 3.8))
    for (name, parts), marker in zip(found.items(), "ox", strict=True):
        axis.scatter([p.energy for p in parts], [p.share() for p in parts], s=16, marker=marker, label=name)
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axis.set(xlabel="share of the change's energy that is error", ylabel="share of KL by way of the error")
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--contexts", type=int, default=32)
    given = parser.parse_args()
    start = time.perf_counter()
    model = ms.load_model("bundled")
    learned = ms.load_sae(Path(__file__).parents[1] / "tests" / "data" / "demo_sae").float()
    tokens = contexts(model, given.contexts)
    never = ms.TopKSAE(
        learned.d_in, learned.n_latents, k=round(float(learned.encode(rows(model, tokens)).l0().double().mean()))
    )
    never.initialise(rows(model, tokens))
    found = tried(model, {"the demo's SAE": learned, "never learned": never}, tokens)
    rng = np.random.default_rng(0)
    ours, other = found.values()
    median, beside = (float(np.median([part.share() for part in parts])) for parts in (ours, other))
    energy = float(np.median([part.energy for part in ours]))
    said = (
        "Features carry what earlier parts do"
        if median < 0.1
        else "Features do not carry what earlier parts do"
        if median > 0.5
        else "Features carry most of what earlier parts do, not all"
    )
    more = sum(part.share() > part.energy for part in ours)
    verdict = (
        f"{said}: of what a part moves in the next tokens, a share of {median:.0%} goes by way of the error in the "
        f"median of {len(ours)} parts ({min(p.share() for p in ours):.0%} to {max(p.share() for p in ours):.0%}; with "
        f"a dictionary that never learned {beside:.0%}). Errors are {energy:.0%} of the change's energy; in {more} of "
        f"{len(ours)} parts they do more than that."
    )
    lines: list[str] = []
    for part, twin in zip(ours, other, strict=True):
        low, high = interval(part, rng)
        lines.append(
            f"| {part.name} | {float(part.whole.mean()):.4f} | {float(part.by_features.mean()):.4f} | "
            f"{float(part.by_error.mean()):.4f} | {part.share():.0%} ({low:.0%} to {high:.0%}) | {part.energy:.0%} | "
            f"{twin.share():.0%} |"
        )
    sections = [
        "# Effects through errors",
        "Written by `python studies/errors.py`, as it came out.",
        f"**{verdict}**",
        "![share of KL by way of the error beside its share of energy](errors.svg)",
        f"The bundled model, {learned.n_latents:,} latents at {HOOK}; {len(tokens)} held-out texts of {LENGTH} tokens, "
        "the first position left out. A part is set to its mean over texts and positions. KL in nats a token; "
        "intervals: 95 %, bootstrap over texts. Features alone and error alone need not add up to the whole: the "
        "model is not linear.",
        "## Parts\n\n| part | KL, whole | features alone | error alone | share by error | of energy | never learned |\n"
        "|---|---|---|---|---|---|---|\n" + "\n".join(lines),
    ]
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "errors.svg", found)
    (given.output / "errors.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print(f"{verdict}\n{time.perf_counter() - start:.0f} s; {given.output / 'errors.md'}")


def rows(model: SubjectModel, tokens: Tensor) -> Tensor:
    return model.capture(tokens, [HOOK])[HOOK][:, 1:].flatten(0, 1)


if __name__ == "__main__":
    main()
