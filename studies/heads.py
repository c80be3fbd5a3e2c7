"""Which heads do induction, attend to the token before, to duplicates, or go on to successors, and do they matter?

    python studies/heads.py [MODEL ...] [--output studies] [--documents 32] [--features bundled] [--tokens 400000]

Rule, written before looking: a head is of a kind where the lower end of its score's 95 % interval is above 0.3
(successor: above three times chance). Kinds are found on one half of the documents and confirmed where the rule holds
on the other. Then cause: with the confirmed induction heads' results set to zero, repeated random tokens must get less
likely by more than without any of 20 draws of as many other heads of the same layers or, where these have too few, of
all.

Rule for heads found through features, written before looking: dictionaries of what the heads of each layer bring
(`attn_z.L`, trained here) take from each head, at each token, a sum over the tokens that it looks at. A head is of a
kind through features where, of all that it adds to features that are on, the lower end of the share that comes from the
kind's token is above 0.3 (successor: what its features alone write of a word raises the next most above three times
chance); found on one half. It is confirmed where the rule for patterns holds on the other half. A feature is
monosemantic where, of its 10 strongest contexts, each of another document, 8 have one word (a token without case and
space) at one place (this token, the one before, the next, or the one from which the head brings most), and the same
word stands at the same place in 8 of 10 on the other half. Features that are on in fewer documents do not count. Each
head's ten features are those of whose decoder rows it makes most; beside them, by the same rule, a dictionary that
never learned and the coordinates of the heads' results. Writes heads.md and heads.svg.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from features_of_heads import Seen, contexts_of, look, sense, sets_of, successors, top_features, trained

import monosem as ms
from monosem.circuits import Heads, composition
from monosem.data import read_documents
from monosem.models import SubjectModel

KINDS = ("induction", "previous", "duplicate", "successor")
ABOVE = 0.3
DRAWS = 20
PROBES, LENGTH = 12, 40


def of_kind(found: Heads, kind: str) -> set[tuple[int, int]]:
    """The heads of a kind, by the rule."""
    score = found[kind]
    least = ABOVE if kind != "successor" else 3 * (score.chance or 1)
    return {(int(layer), int(head)) for layer, head in np.argwhere(np.nan_to_num(score.low) > least)}


def halves(documents: int) -> tuple[list[str], list[str]]:
    """Texts to find on, and to confirm on."""
    texts = [document.text for document in list(read_documents("bundled:held_out"))[: 2 * documents]]  # type: ignore[arg-type]
    return texts[::2], texts[1::2]


@torch.no_grad()
def surprise(model: SubjectModel, without: set[tuple[int, int]], heads: int) -> float:
    """Nats per token of the second copy of random tokens, with the results of some heads set to zero."""
    generator = torch.Generator().manual_seed(0)
    size = model.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    once = torch.randint(100, min(size, 4000), (PROBES, LENGTH), generator=generator)
    tokens = torch.cat([model.tokens("a")[:, :1].expand(PROBES, 1), once, once], dim=1)
    by_layer: dict[int, list[int]] = {}
    for layer, head in without:
        by_layer.setdefault(layer, []).append(head)

    def put_out(chosen: list[int]) -> Any:
        def function(z: torch.Tensor, _: object) -> torch.Tensor:
            z = z.unflatten(-1, (heads, -1)).clone()
            z[..., chosen, :] = 0
            return z.flatten(-2)

        return function

    with model.edit({f"attn_z.{layer}": put_out(chosen) for layer, chosen in by_layer.items()}):
        log_p = model(tokens).log_softmax(-1)
    second = log_p[:, LENGTH + 1 : -1].gather(-1, tokens[:, LENGTH + 2 :, None])
    return -float(second.mean())


def others(heads: set[tuple[int, int]], found: Heads, rng: np.random.Generator) -> set[tuple[int, int]]:
    """As many heads that are not among these, of the same layers as far as there are so many."""
    layers = {layer for layer, _ in heads}
    free = [(layer, head) for layer in layers for head in range(found.n_heads) if (layer, head) not in heads]
    if len(free) < 2 * len(heads):
        every = [(layer, head) for layer in range(found.n_layers) for head in range(found.n_heads)]
        free = [each for each in every if each not in heads]
    return {free[i] for i in rng.permutation(len(free))[: len(heads)]}


def study(name: str, documents: int) -> tuple[list[str], dict[str, Any]]:
    """Lines of the verdict, and what the figure shows."""
    model, begun = ms.load_model(name), time.time()
    one, other = (ms.heads(model, texts, documents=documents) for texts in halves(documents))
    called = Path(name).name
    lines = [f"## {called}", "", "| kind | found | confirmed | strongest, on the other half |", "|---|---|---|---|"]
    confirmed: dict[str, set[tuple[int, int]]] = {}
    for kind in KINDS:
        found, again = of_kind(one, kind), of_kind(other, kind)
        confirmed[kind] = found & again
        layer, head = other.top(kind, 1)[0]
        score = other[kind]
        chance = f"{score.chance:.2f}" if score.chance is not None else "not measured"
        strongest = (
            f"{layer}.{head}: {score.value[layer, head]:.2f} "
            f"({score.low[layer, head]:.2f} to {score.high[layer, head]:.2f}); chance {chance}"
        )
        names = ", ".join(f"{a}.{b}" for a, b in sorted(confirmed[kind])) or "none"
        lines.append(f"| {kind} | {len(found)} | {len(confirmed[kind])}: {names} | {strongest} |")
    between = composition(model)
    pairs = [
        (writer, reader, float(between.key[between.heads.index(reader), between.heads.index(writer)]))
        for reader in confirmed["induction"]
        for writer in confirmed["previous"]
        if writer[0] < reader[0]
    ]
    if pairs:
        writer, reader, score = max(pairs, key=lambda each: each[2])
        place = int((between.key > score).sum()) + 1
        lines += [
            "",
            f"Of all pairs by keys, {writer[0]}.{writer[1]} → {reader[0]}.{reader[1]} is number {place}: {score:.2f}.",
        ]
        lines[-1] += f" Two matrices at random have {between.chance:.2f}."
    induction, rng = confirmed["induction"], np.random.default_rng(0)
    if induction:
        plain, without = surprise(model, set(), one.n_heads), surprise(model, induction, one.n_heads)
        drawn = [surprise(model, others(induction, one, rng), one.n_heads) for _ in range(DRAWS)]
        holds = without > max(drawn)
        verdict = (
            "They are the cause, by the rule." if holds else "By the rule this does not show that they are the cause."
        )
        lines += [
            "",
            f"**Repeated random tokens cost {plain:.2f} nats each; {without:.2f} without the {len(induction)} "
            f"induction heads; without as many others {np.mean(drawn):.2f} "
            f"(most {max(drawn):.2f} of {DRAWS} draws). {verdict}**",
        ]
    lines += ["", f"{documents} documents a half; {time.time() - begun:.0f} s.", ""]
    return lines, {"name": called, "heads": other}


def by_features(name: str, documents: int, tokens: int, latents: int) -> list[str]:
    """Lines of the verdict on heads through features."""
    model, begun = ms.load_model(name), time.time()
    one_texts, other_texts = halves(documents)
    saes = trained(model, tokens, latents)
    fvu = [sae.metadata.fingerprint.fvu for sae in saes if sae.metadata.fingerprint]
    patterns = ms.heads(model, other_texts, documents=documents)
    hooks = [f"attn_z.{layer}" for layer in range(model.n_layers)]
    got = [model.capture(each.tokens[:1], hooks) for each in contexts_of(model, one_texts, 12)]
    rows = [torch.cat([each[hook][0, 1:] for each in got]) for hook in hooks]
    sets = sets_of(model, saes, rows)
    chosen = top_features(sets, rows, patterns.n_heads)
    one, other = (look(model, sets, contexts_of(model, texts, documents), chosen) for texts in (one_texts, other_texts))
    lines = [f"## Through features: {Path(name).name}", ""]
    lines += ["| kind | through features | confirmed on patterns | by patterns alone | correlation of the two |"]
    lines += ["|---|---|---|---|---|"]
    went_on = successors(model, saes)
    one.sources["successor"] = went_on
    agreed = found_all = 0
    for kind in KINDS:
        by_pattern = of_kind(patterns, kind)
        least = ABOVE if kind != "successor" else 3 * (patterns[kind].chance or 1)
        found = one.above(kind, least)
        agreed, found_all = agreed + len(found & by_pattern), found_all + len(found | by_pattern)
        shares, scores = one.sources[kind].mean(0).ravel(), np.nan_to_num(patterns[kind].value).ravel()
        together = float(np.corrcoef(shares, scores)[0, 1]) if shares.std() and scores.std() else float("nan")
        cells = [_listed(each) for each in (found, found & by_pattern, by_pattern - found)]
        lines.append(f"| {kind} | {' | '.join(cells)} | {together:.2f} |")
    lines += ["", f"**Of {found_all} heads found either way, {agreed} are found both ways.**", ""]
    return [
        *lines,
        *_senses(one, other),
        "",
        f"{documents} documents a half; {latents:,} latents of each layer, trained on {tokens:,} tokens, of an FVU of "
        f"{', '.join(f'{x:.2f}' for x in fvu)}; {time.time() - begun:.0f} s.",
        "",
    ]


def _senses(one: Seen, other: Seen) -> list[str]:
    """A table of all heads, and the shares that are monosemantic beside controls."""
    lines, table = list[str](), ["| head | monosemantic | its ten features: the word that they share, and where |"]
    table.append("|---|---|---|")
    for name, of in one.chosen.items():
        each = {head: sense(own, other.chosen[name][head]) for head, own in of.items()}
        known, single = (sum(getattr(found, what) for found in each.values()) for what in ("known", "monosemantic"))
        whole = sum(len(own) for own in of.values())
        share = f"{single / known:.0%}" if known else "none"
        lines.append(f"- {name}: {single} of {known} ({share}); {whole - known} of {whole} are on too seldom to tell.")
        if name == "features":
            for (layer, head), found in sorted(each.items()):
                cells = f"{found.monosemantic} of {found.known} | {', '.join(found.said)}"
                table.append(f"| {layer}.{head} | {cells} |")
    return ["Monosemantic by the rule, of the top ten of all heads:", "", *lines, "", *table]


def _listed(heads: set[tuple[int, int]]) -> str:
    return ", ".join(f"{a}.{b}" for a, b in sorted(heads)) or "none"


def draw(parts: list[dict[str, Any]], path: Path) -> None:
    """Every head by previous token and induction."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(parts), figsize=(4.6 * len(parts), 3.8), squeeze=False)
    for axis, part in zip(axes[0], parts, strict=True):
        found: Heads = part["heads"]
        x, y = found["previous"].value, found["induction"].value
        axis.scatter(x.ravel(), y.ravel(), s=16, facecolors="none", edgecolors="black", linewidths=0.8)
        for layer, head in {*found.top("previous", 3), *found.top("induction", 3)}:
            axis.annotate(f" {layer}.{head}", (x[layer, head], y[layer, head]), fontsize=8)
        axis.axhline(ABOVE, color="grey", lw=0.6, ls="--")
        axis.axvline(ABOVE, color="grey", lw=0.6, ls="--")
        axis.set(title=part["name"], xlabel="attention to the token before", ylabel="induction")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["bundled"])
    parser.add_argument("--output", type=Path, default=Path("studies"))
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--features", nargs="*", default=["bundled"], metavar="MODEL", help="through features as well")
    parser.add_argument("--of-features", type=int, default=250, metavar="N", help="documents a half for these")
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--latents", type=int, default=1024)
    given = parser.parse_args()
    lines = [
        "# Which heads do induction, and do they matter?",
        "",
        f"Written by `python studies/heads.py {' '.join(Path(name).name for name in given.models)}`, as it came out.",
    ]
    rules = "Rule" + str(__doc__).partition("\n\nRule")[2].partition(" Writes heads.md")[0]
    lines += ["", *[" ".join(rule.split()) + "\n" for rule in rules.split("\n\n")], "![heads](heads.svg)", ""]
    parts: list[dict[str, Any]] = []
    for name in given.models:
        words, part = study(name, given.documents)
        lines += words
        parts.append(part)
    for name in given.features:
        lines += by_features(name, given.of_features, given.tokens, given.latents)
    given.output.mkdir(parents=True, exist_ok=True)
    draw(parts, given.output / "heads.svg")
    (given.output / "heads.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
