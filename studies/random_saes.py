"""Do frozen random SAEs probe as well as trained ones?

    python studies/random_saes.py RUN --texts FILE [FILE ...] [--examples 600]

Each FILE has labelled texts (`text` and `label`). On each, probes of k latents of the trained SAE stand beside the same
probes of three random SAEs of the same kind and size, which never learned, of neurons, PCA and all of x; and beside
them how much of the activations either SAE explains. The claim that is tried: "frozen random SAEs match trained ones:
sparse probing .69 against .72" (Sanity Checks for Sparse Autoencoders, arXiv 2602.14111). Rule, written before looking:
random SAEs are said to match at k if the trained one's AUROC is less than 0.05 above theirs, mean over the data sets,
and to fall short if the lower end of the 95 % interval of every data set's own (paired) difference is above 0. Writes
random_saes.svg and .md.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from smollm2 import arguments, opened

import monosem as ms
from monosem.evaluation.probing import ProbeReport

KS = (1, 5, 20)
MATCH = 0.05


def draw(path: Path, found: dict[str, ProbeReport]) -> None:
    """The figure: AUROC of trained and random, data set by data set."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, len(found), figsize=(2.6 * len(found), 3), sharey=True, squeeze=False)
    colours = {"SAE": "#e07b00", "random SAE": "#999999", "neurons": "#2166ac", "PCA of x": "#4d9221"}
    for axis, (name, report) in zip(axes[0], found.items(), strict=True):
        for column, colour in colours.items():
            values = [report[column, k].auroc for k in KS]
            spans = np.array([[v.value - (v.low or v.value), (v.high or v.value) - v.value] for v in values]).T
            middle = [v.value for v in values]
            axis.errorbar(range(len(KS)), middle, yerr=spans.clip(0), fmt="o-", ms=4, color=colour, label=column)
        axis.axhline(
            report["all of x", "all"].auroc.value, color="#333333", linestyle="--", linewidth=1, label="all of x"
        )
        axis.set_xticks(range(len(KS)), [f"k={k}" for k in KS])
        axis.set(title=name, ylim=(0.45, 1.02))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("AUROC on test texts")
    axes[0][0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def verdict(found: dict[str, ProbeReport], fvu: tuple[float, float]) -> str:
    """What the figures say, whichever way they have come out."""
    said = [f"The trained SAE leaves {fvu[0]:.2f} of the variance unexplained, a random one {fvu[1]:.2f}."]
    for k in KS:
        apart = [report.difference("random SAE", k) for report in found.values()]
        mean, above = np.mean([one.value for one in apart]), sum(one.low > 0 for one in apart)
        match = "match" if mean < MATCH else ("fall short" if above == len(apart) else "do not match")
        said.append(
            f"With k={k} random SAEs {match}: the trained one is {mean:+.3f} AUROC above them, and told from them on "
            f"{above} of {len(apart)} data sets."
        )
    return " ".join(said)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="labelled texts")
    parser.add_argument("--examples", type=int, default=600, help="texts of each file, at most")
    parser.add_argument("--held-out", default="bundled:held_out", help="text by which variance is measured")
    given = parser.parse_args()
    start = time.perf_counter()
    sae = ms.load_sae(given.run / "sae")
    model = ms.load_model("bundled") if sae.metadata.model == "bundled" else opened(given.model)
    found = {
        path.name.partition(".")[0]: ms.probe(
            sae, path, KS, model=model, examples=100 if given.quick else given.examples
        )
        for path in given.texts
    }
    report = ms.evaluate(sae, model, text=given.held_out, tokens=10_000, loss_tokens=0)
    fvu = report["fvu"].value, report.columns["random"]["fvu"].value
    said = verdict(found, fvu)
    lines = [
        "| data | k | trained | random | trained less random | neurons | PCA | all of x |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        for k in KS:
            apart = one.difference("random SAE", k)
            shown = [f"{one[column, k].auroc.value:.3f}" for column in ("SAE", "random SAE", "neurons", "PCA of x")]
            span = f"{apart.value:+.3f} ({apart.low:+.3f} to {apart.high:+.3f})"
            whole = f"{one['all of x', 'all'].auroc.value:.3f}"
            lines.append(f"| {name} | {k} | {shown[0]} | {shown[1]} | {span} | {shown[2]} | {shown[3]} | {whole} |")
    shuffled = [one["shuffled labels", k].auroc for one in found.values() for k in KS]
    chance = sum((v.low or 0) <= 0.5 <= (v.high or 1) for v in shuffled)
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "random_saes.svg", found)
    facts = next(iter(found.values())).facts
    parts = [
        "# Do frozen random SAEs probe as well as trained ones?",
        "Written by `python studies/random_saes.py RUN --texts FILE ...`, as it came out.",
        f"**{said}**",
        "![AUROC by data set](random_saes.svg)",
        f"{facts['model']}, {facts['hook']}, a {sae.architecture} SAE of {sae.n_latents:,} latents, and three random "
        f"ones of the same kind, size and number of latents on; {facts['train']:,} texts to learn from in each. "
        "AUROC, mean over labels; differences paired on the test texts, 95 % bootstrap intervals.",
        "\n".join(lines),
        f"With all labels shuffled, the interval holds 0.5 in {chance} of {len(shuffled)} probes.",
    ]
    (given.output / "random_saes.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{time.perf_counter() - start:.0f} s; {given.output / 'random_saes.md'}")


if __name__ == "__main__":
    main()
