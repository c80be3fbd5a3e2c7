"""The circuit of one wrong answer: what makes the model say it, and does it say the right one without that?

    python studies/wrong_answer.py [--output studies]

After "The cat chased the dog. The dog ran away from the" the bundled model says " dog", and " cat" would be right.
`ms.trace` explains the difference of the two logits, with the demo's SAE at resid_post.2 and the neurons of the four
MLPs. Rule, written before looking: the circuit is found if the model itself, running freely, says the right word once
the features of the SAE that the graph holds most responsible (of the largest edges to the difference, 8 at most) are
taken away, and if it does so in at most 1 of 20 draws of as many features that are on in the same prompt. Beside it:
from which tokens the difference comes, what the graph predicts of the change, and the same prompt with the animals
exchanged. Writes wrong_answer.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import monosem as ms
from monosem.models import SubjectModel
from monosem.sae import SAE

PROMPT, SAID, RIGHT = "The cat chased the dog. The dog ran away from the", " dog", " cat"
EXCHANGED = "The dog chased the cat. The cat ran away from the"
HOOK = "resid_post.2"
MOST, DRAWS, LISTED = 8, 20, 10
Feature = tuple[int, int]
"""A position and a latent."""


@torch.no_grad()
def without(model: SubjectModel, sae: SAE, tokens: Tensor, features: list[Feature]) -> Tensor:
    """Log-probabilities of the next token, with some features taken away at their positions and errors as they are."""

    def edit(x: Tensor, _context: object) -> Tensor:
        codes = sae.encode(x[0]).to_dense()
        fewer = codes.clone()
        for position, latent in features:
            fewer[position, latent] = 0
        removed = sae.decode(ms.SparseCodes.from_dense(codes)) - sae.decode(ms.SparseCodes.from_dense(fewer))
        return x - removed[None].to(x)

    with model.edit({HOOK: edit}):
        return model.forward(tokens)[0, -1].log_softmax(-1)


def token_of(model: SubjectModel, word: str) -> int:
    (token,) = model.tokens(word, prepend_bos=False)[0].tolist()
    return token


def responsible(graph: ms.Graph, most: int) -> list[tuple[Feature, float]]:
    """The SAE's features by what they add to the difference, the largest first; those alone that raise it."""
    edges = graph.sources_of(graph.n_sources, graph.n_sources)
    nodes = graph.nodes
    chosen = [(n, value) for n, value in edges if value > 0 and nodes.kind[n] == "feature" and nodes.hook[n] == HOOK]
    return [((int(nodes.position[n]), int(nodes.latent[n])), value) for n, value in chosen[:most]]


def by_kind(graph: ms.Graph) -> dict[str, float]:
    """What each kind of node adds to the difference, the SAE's features and neurons apart."""
    found: dict[str, float] = {}
    for node, value in graph.sources_of(graph.n_sources, graph.n_sources):
        kind = str(graph.nodes.kind[node])
        if kind == "feature":
            kind = "features" if graph.nodes.hook[node] == HOOK else "neurons"
        found[kind] = found.get(kind, 0.0) + value
    return found


def draw(path: Path, first: list[float], sizes: list[int], chosen: list[float], drawn: np.ndarray) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axis = plt.subplots(figsize=(6.2, 3.4))
    axis.plot([0, *sizes], [first[0], *chosen], marker="o", markersize=3, label="what the graph holds responsible")
    low, high = drawn.min(0), drawn.max(0)
    axis.fill_between([0, *sizes], [first[0], *low], [first[0], *high], color="0.85", label=f"{DRAWS} random draws")
    axis.axhline(0, color="0.6", linewidth=1)
    axis.set(xlabel="features taken away", ylabel=f"logit of '{SAID}' less that of '{RIGHT}'")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    output: Path = parser.parse_args().output
    start = time.perf_counter()
    model = ms.load_model("bundled")
    sae = ms.load_sae(Path(__file__).parents[1] / "tests" / "data" / "demo_sae").float()
    said, right = token_of(model, SAID), token_of(model, RIGHT)
    tokens = model.tokens(PROMPT)
    before = without(model, sae, tokens, [])
    neurons = {f"mlp_mid.{layer}": "neurons" for layer in range(model.n_layers)}
    graph = ms.trace(model, {HOOK: sae, **neurons}, PROMPT, (SAID, RIGHT), max_features=400, progress=False)
    culprits = responsible(graph, MOST)
    names = [feature for feature, _ in culprits]

    def gap(logs: Tensor) -> float:
        return float(logs[said] - logs[right])

    sizes = list(range(1, len(names) + 1))
    chosen = [gap(without(model, sae, tokens, names[:k])) for k in sizes]
    codes = sae.encode(model.capture(tokens, [HOOK])[HOOK][0]).to_dense()
    on = [(int(p), int(latent)) for p, latent in codes[1:].nonzero().add(torch.tensor([1, 0])).tolist()]
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(on)) for _ in range(DRAWS)]
    drawn = np.array([[gap(without(model, sae, tokens, [on[i] for i in o[:k]])) for k in sizes] for o in orders])
    logs = without(model, sae, tokens, names)
    flips = int((drawn[:, -1] < 0).sum())
    first = next((k for k, value in zip(sizes, chosen, strict=True) if value < 0), None)
    found = first is not None and flips <= 1
    other = without(model, sae, model.tokens(EXCHANGED), [])
    top = model.tokenizer.decode([int(logs.argmax())])
    words = graph.words
    verdict = (
        f"{'The circuit is found' if found else 'The circuit is not found'}: the model says '{SAID.strip()}' "
        f"({float(before[said].exp()):.0%}; '{RIGHT.strip()}' {float(before[right].exp()):.0%}); without the "
        f"{len(names)} features that the graph holds responsible it says '{top.strip()}' "
        f"('{SAID.strip()}' {float(logs[said].exp()):.0%}, '{RIGHT.strip()}' {float(logs[right].exp()):.0%}), "
        + (f"the first {first} are enough for the right one to be likelier" if first else "the right one stays rarer")
        + f"; of {DRAWS} draws of as many features {flips} do so."
    )
    predicted = sum(value for _, value in culprits)
    rows = "\n".join(
        f"| {latent} | {position} `{words[position]}` | {value:+.3f} | {after:+.2f} |"
        for ((position, latent), value), after in zip(culprits, chosen, strict=True)
    )
    kinds = "\n".join(f"| {kind} | {value:+.2f} |" for kind, value in by_kind(graph).items())
    sections = [
        "# The circuit of one wrong answer",
        "Written by `python studies/wrong_answer.py`, as it came out.",
        f"**{verdict}**",
        "![the difference of the two logits as features are taken away](wrong_answer.svg)",
        f"`{PROMPT}`: the bundled model, {sae.n_latents:,} latents of the demo's SAE at {HOOK} and the neurons of its "
        f"MLPs; {graph.n_features} of {graph.settings['active_features']:,} features are nodes; largest conservation "
        f"error {graph.audit().largest_error:.0e}. The difference of the two logits is "
        f"{graph.targets[0]['value']:+.2f}. With everything else held still the features listed add "
        f"{predicted:+.2f} of it; free, the model moves by {gap(before) - chosen[-1]:+.2f}. With the "
        f"animals exchanged (`{EXCHANGED}`, where '{SAID.strip()}' is right) the same difference is {gap(other):+.2f}: "
        + ("it says the animal named last there." if gap(other) < 0 else "it says the same word there."),
        "## Features that are taken away, one after the other\n\n"
        "| latent | at token | adds to the difference | difference without it and those above |\n|---|---|---|---|\n"
        + rows,
        f"## What adds to the difference\n\n| kind | adds |\n|---|---|\n{kinds}",
    ]
    output.mkdir(parents=True, exist_ok=True)
    draw(output / "wrong_answer.svg", [gap(before)], sizes, chosen, drawn)
    (output / "wrong_answer.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    print(f"{verdict}\n{time.perf_counter() - start:.0f} s; {output / 'wrong_answer.md'}")


if __name__ == "__main__":
    main()
