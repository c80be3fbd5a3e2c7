"""Can a model be made to forget one fact by meta-latents, and does less else go than by latents?

    python studies/facts.py [RUN] [--model FOLDER] [--output studies] [--quick]

SmolLM2-135M-Instruct knows capitals. For each of some countries, what the fact rests on at the hook point of the
dictionary of recipes/smollm2 is taken out wherever it is on: 1, 4 or 16 latents, or as many meta-latents of a meta-SAE
(`ms.edit_fact`), the largest by attribution; controls are as many drawn at random of those that are on in the prompt.
Measured: the share of logit(capital) - logit(another capital) that is gone, the same of the other countries (its
neighbours), and nats a token more on held-out text. Rules, written before looking: a way edits a fact if, at its best
size, half or more of the difference is gone on average, and 0.25 more than of the neighbours, with the interval over
facts above that; meta-latents edit better if that margin is larger than with latents, paired over facts, with the
interval above 0. Published (Leask et al., 2025): meta-latents edit single facts. Writes facts.svg and .md.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from smollm2 import Estimate, arguments, estimate, opened

import monosem as ms
from monosem.analysis import Fact, FactEdits
from monosem.models import SubjectModel

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Russia": "Moscow",
    "Egypt": "Cairo",
    "Greece": "Athens",
    "Austria": "Vienna",
    "Portugal": "Lisbon",
    "Ireland": "Dublin",
}
SIZES = (1, 4, 16)
WAYS = ("latents", "meta-latents", "random latents", "random meta-latents")
COLOURS = {"latents": "#1f6f8b", "meta-latents": "#b5532a", "random latents": "0.6", "random meta-latents": "0.8"}


def facts() -> list[Fact]:
    """Each with the next country's capital for a foil."""
    countries = list(CAPITALS)
    return [
        Fact(f"The capital of {one} is the city of", f" {CAPITALS[one]}", f" {CAPITALS[other]}")
        for one, other in zip(countries, countries[1:] + countries[:1], strict=True)
    ]


def knows(model: SubjectModel, fact: Fact) -> bool:
    """Whether the answer is likelier than the foil."""
    answer, foil = (int(model.tokens(text, prepend_bos=False)[0, 0]) for text in (fact.answer, fact.foil))
    last = model(fact.prompt)[0, -1]
    return bool(last[answer] > last[foil])


def margins(found: list[FactEdits], way: str, size: int) -> np.ndarray:
    """Of each fact, by how much more of it is gone than of its neighbours."""
    return np.array([one.forgotten(way, size) - float(one.neighbours(way, size).mean()) for one in found])


def draw(path: Path, found: list[FactEdits]) -> None:
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for way in WAYS:
        gone = [estimate([one.forgotten(way, size) for one in found]) for size in SIZES]
        beside = [estimate([float(one.neighbours(way, size).mean()) for one in found]) for size in SIZES]
        loss = [estimate([float(one.loss(way, size).mean()) for one in found]) for size in SIZES]
        axes[0].plot([e.mean for e in beside], [e.mean for e in gone], "o-", ms=4, color=COLOURS[way], label=way)
        axes[1].plot([e.mean for e in loss], [e.mean for e in gone], "o-", ms=4, color=COLOURS[way])
    axes[0].axline((0, 0), slope=1, color="0.85", linewidth=1)
    axes[0].set(xlabel="gone of its neighbours", ylabel="gone of the fact")
    axes[1].set(xlabel="nats a token more on held-out text", ylabel="gone of the fact")
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].locator_params("x", nbins=4)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--keep", type=Path, help="a folder that keeps the meta-SAE")
    parser.add_argument("--facts", type=int, default=len(CAPITALS), help="how many are edited")
    options = parser.parse_args()
    began = time.process_time()
    model, sae = opened(options.model), ms.load_sae(options.run / "sae")
    kept = options.keep if options.keep is not None and options.keep.is_dir() else None
    if kept is not None:
        meta = ms.MetaSAE.load(kept)
    else:
        meta = ms.meta_sae(sae, controls=False, tokens=20_000 if options.quick else None)
        if options.keep is not None:
            meta.save(options.keep)
    print(f"{meta.n_latents} meta-latents, {time.process_time() - began:.0f} s", flush=True)
    every = facts()
    known = [one for one in every if knows(model, one)]
    tried = known[: 2 if options.quick else options.facts]
    found: list[FactEdits] = []
    for one in tried:
        beside = [other for other in known if other != one]
        edits = ms.edit_fact(model, sae, one, beside, meta=meta, sizes=SIZES, draws=1, contexts=4, length=48)
        found.append(edits)
        print(edits, f"{time.process_time() - began:.0f} s", flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    draw(options.output / "facts.svg", found)
    best: dict[str, int] = {}
    said: list[str] = []
    for way in WAYS[:2]:
        best[way] = max(SIZES, key=lambda size: margins(found, way, size).mean())
        size = best[way]
        gone, margin = estimate([one.forgotten(way, size) for one in found]), estimate(margins(found, way, size))
        others = estimate([float(one.neighbours(way, size).mean()) for one in found])
        loss = estimate([float(one.loss(way, size).mean()) for one in found])
        chance = estimate(margins(found, f"random {way}", size))
        edits_it = gone.mean >= 0.5 and margin.low > 0.25
        said.append(
            f"{way} {'edit' if edits_it else 'do not edit'} single facts: {size} taken out, {gone.text('.2f')} of the "
            f"fact is gone, {others.text('.2f')} of its neighbours (margin {margin.text('.2f')}; as many at random "
            f"{chance.text('.2f')}), for {loss.text('+.4f')} nats on other text"
        )
    gap = estimate(margins(found, "meta-latents", best["meta-latents"]) - margins(found, "latents", best["latents"]))
    better = "edit better than latents" if gap.low > 0 else "are not shown to edit better than latents"
    words = f"{'; '.join(said)}. Meta-latents {better} ({gap.text()} of margin, paired)."
    words = words[:1].upper() + words[1:]
    rows = ["| taken out | of the fact | of its neighbours | margin | nats more |", "|---|---|---|---|---|"]
    for way in WAYS:
        for size in SIZES:
            values: list[Estimate] = [
                estimate([one.forgotten(way, size) for one in found]),
                estimate([float(one.neighbours(way, size).mean()) for one in found]),
                estimate(margins(found, way, size)),
            ]
            loss = estimate([float(one.loss(way, size).mean()) for one in found]).text("+.4f")
            rows.append(f"| {size} {way} | " + " | ".join(value.text(".2f") for value in values) + f" | {loss} |")
    parts = [
        "# Is one fact edited by meta-latents, or by latents?",
        f"**{words}**",
        "![what is gone of facts, of their neighbours, and what it costs](facts.svg)",
        f"{len(found)} capitals of {len(known)} that the model knows, each beside the {len(known) - 1} others; "
        f"{meta.n_latents} meta-latents of the {sae.n_latents:,} latents at {sae.metadata.hook} of "
        "SmolLM2-135M-Instruct. Means over facts with 95 % bootstrap intervals; the best size of each way was chosen "
        "on these facts.",
        "\n".join(rows),
        f"Not known, and left out: {len(every) - len(known)} of {len(every)}.",
        f"`python studies/facts.py{' --quick' if options.quick else f' --facts {len(found)}'}`",
    ]
    (options.output / "facts.md").write_text("\n\n".join(parts) + "\n")
    print(f"{words}\n{time.process_time() - began:.0f} s of processor time")


if __name__ == "__main__":
    main()
