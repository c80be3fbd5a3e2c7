"""How many features stand for days, months and years, by the width of the dictionary, and do they lie on a circle?

    python studies/days_and_months.py [--output studies] [--tokens 200000] [--widths 256 1024 4096]

Trains dictionaries of several widths of the bundled model at resid_post.2, on one pass, and asks of each
(`ms.geometry`): which features fire on the words of a family and on few others, on one word or on several; how what
they write for each word lies (circle, line, each against the same vectors in random order); and whether a direction
found by regression orders the words that it has not seen. Rule, written before looking: a shape is called found at
p <= 0.05 after Benjamini and Hochberg's correction over all tests of the study. Writes days_and_months.svg and .md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

import monosem as ms
from monosem.analysis import Geometry, density
from monosem.analysis.enrichment import corrected
from monosem.analysis.shapes import Against

HOOK, K = "resid_post.2", 16
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November")
FAMILIES = {
    "days": list(DAYS),
    "months": [*MONTHS, "December"],
    "years": [str(year) for year in range(1900, 2020, 10)],
}
LEVEL = 0.05
SHAPES = ("circle", "line", "held_out")


def trained(model: Any, widths: list[int], tokens: int) -> dict[int, Any]:
    """Dictionaries of all widths, on one pass."""
    source = ms.activations(model, HOOK, text="bundled", buffer_tokens=16_384)
    saes = {str(width): ms.TopKSAE(model.d_model, width, k=K) for width in widths}
    ms.train_together(saes, dict.fromkeys(saes, source), tokens=tokens)
    return {int(name): sae for name, sae in saes.items()}


def draw(path: Path, found: dict[tuple[int, str], Geometry], widths: list[int]) -> None:
    """The figure: places of the words in the first two components, by family and width."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    size = 3.2 * len(widths), 3 * len(FAMILIES)
    figure, axes = plt.subplots(len(FAMILIES), len(widths), figsize=size, squeeze=False)
    for row, family in enumerate(FAMILIES):
        for column, width in enumerate(widths):
            axis, of = axes[row, column], found[width, family]
            axis.set(xticks=[], yticks=[], title=f"{family}, {width} latents: {len(of.latents)} features")
            axis.title.set_fontsize(9)
            axis.spines[["top", "right"]].set_visible(False)
            if of.shape is None:
                continue
            places = of.shape.components
            axis.plot(*places.T, color="0.8", linewidth=1)
            for word, place in zip(of.words, places, strict=True):
                axis.annotate(word[:4] if family == "years" else word[:3], place, fontsize=7, ha="center", va="center")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def said(value: Against | None, q: float | None) -> str:
    return "" if value is None or q is None else f"{value.value:.2f} ({value.chance:.2f}; q {q:.2g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024, 4096])
    given = parser.parse_args()
    start = time.perf_counter()
    model = ms.load_model("bundled")
    saes = trained(model, given.widths, given.tokens)
    found: dict[tuple[int, str], Geometry] = {}
    for width, sae in saes.items():
        for family, words in FAMILIES.items():
            values = [float(word) for word in words] if family == "years" else None
            found[width, family] = ms.geometry(sae, model, words, values=values, hook=HOOK)
    tests = {
        (width, family, name): getattr(of.shape, name)
        for (width, family), of in found.items()
        if of.shape is not None
        for name in SHAPES
    }
    q = (
        dict(zip(tests, corrected(np.array([each.p for each in tests.values()])).tolist(), strict=True))
        if tests
        else {}
    )
    rows = ["| width | family | features | of one word | of several | of unrelated words | circle | line | left out |"]
    rows.append("|---" * 9 + "|")
    for (width, family), of in found.items():
        cells = [said(tests.get((width, family, name)), q.get((width, family, name))) for name in SHAPES]
        counts = f"{len(of.latents)} | {of.of_one} | {of.of_several} | {of.by_chance}"
        rows.append(f"| {width} | {family} | {counts} | {' | '.join(cells)} |")
    dense = {width: density(sae.decoder_directions().detach().numpy()) for width, sae in saes.items()}
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "days_and_months.svg", found, given.widths)
    verdict = verdict_of(found, q, given.widths)
    parts = [
        "# How many features stand for days, months and years, by width, and how do they lie?",
        "Written by `python studies/days_and_months.py`, as it came out.",
        f"**{verdict}**",
        "![what the features of a family write for each word, in two components](days_and_months.svg)",
        f"TopK dictionaries of the bundled model at {HOOK}, {K} on at a token, {given.tokens:,} tokens of training on "
        "one pass. A feature is of a family if it fires on half of the texts of one of its words at least, and on a "
        "tenth of those of other words at most; `of unrelated words`: as many are found so for as many common nouns "
        "(the control). Circle: agreement of angles in the first two components with equal steps; line: correlation of "
        "the better of the two with the order; left out: correlation of the order with that predicted for each word by "
        "a regression on all others. In brackets the mean under random orders (the null), and q, corrected over all.",
        "\n".join(rows),
        "Density of directions (mean cosine with the nearest other decoder row; in brackets that of normal rows with "
        "the same second moments): "
        + "; ".join(f"{width} latents {each.value:.2f} ({each.chance:.2f})" for width, each in dense.items())
        + ".",
    ]
    (given.output / "days_and_months.md").write_text("\n\n".join(parts) + "\n")
    print(f"{verdict}\n{time.perf_counter() - start:.0f} s; {given.output / 'days_and_months.md'}")


def verdict_of(found: dict[tuple[int, str], Geometry], q: dict[tuple[int, str, str], float], widths: list[int]) -> str:
    """What the figures say, whichever way they have come out."""
    few, many = widths[0], widths[-1]
    counts = ", ".join(
        f"{family} {len(found[few, family].latents)} and {len(found[many, family].latents)} "
        f"({found[many, family].of_one} for one word)"
        for family in FAMILIES
    )
    control = ", ".join(f"{found[many, family].by_chance}" for family in FAMILIES)
    grow = sum(len(found[many, family].latents) > len(found[few, family].latents) for family in FAMILIES)
    circles, ordered = (
        [f"{family} at {width}" for (width, family, name), each in q.items() if name == wanted and each <= LEVEL]
        for wanted in ("circle", "held_out")
    )
    first = "All" if grow == len(FAMILIES) else f"{grow} of {len(FAMILIES)}"
    return (
        f"{first} families have more features in the wider dictionary, of {few} and of {many} latents: {counts}; but "
        f"as many unrelated nouns have {control} there. A circle is found for "
        f"{', '.join(circles) if circles else 'none'}; a direction that orders words which it has not seen for "
        f"{', '.join(ordered) if ordered else 'none'}."
    )


if __name__ == "__main__":
    main()
