"""Does a probe of harmful intent hold on sources that it never saw, and do a few latents hold better than all of x?

    python studies/harmful.py [RUN] --prompts PROMPTS [--model MODEL] [--each 100] [--harmless 600]

PROMPTS is a folder with harmful_by_source.jsonl.gz (text, source) and train.jsonl.gz (text, label "harmful" or
"harmless"), as github.com/andyrdt/refusal_direction has them. Prompts of seven sources of harmful requests stand beside
harmless ones. Each source in turn is left out, and probes of k latents, of all of x and the controls are tried on its
test prompts beside the harmless ones, against the same probes that learned from all sources. The claim that is tried:
"sparse probes lose more out of distribution than dense ones" (Kantamneni et al., 2025; Smith et al., Negative results
for SAEs on downstream tasks, 2025). Rule, written before looking: a probe holds if the mean over the sources of its
AUROC on a source left out is at most 0.02 below that of the same probe that learned from the source too; and latents
are called worse than all of x if the mean of the difference out of distribution is below 0 with its 95 % interval
(bootstrap over the sources). Writes harmful.svg and .md.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from smollm2 import arguments, estimate, opened

import monosem as ms
from monosem.evaluation.probing import ProbeReport, read_labelled

KS = (1, 5, 20)
HOLDS = 0.02


def prompts(folder: Path, each: int, harmless: int) -> list[dict[str, Any]]:
    """Requests with a label and a source, so many of each source."""
    bad = read_labelled(folder / "harmful_by_source.jsonl.gz", label="source")
    good = read_labelled(folder / "train.jsonl.gz")
    rows = []
    for source in np.unique(bad.labels).tolist():
        chosen = np.flatnonzero(bad.labels == source)[:each]
        rows += [{"text": bad.texts[i], "label": "harmful", "source": source} for i in chosen]
    chosen = np.flatnonzero(good.labels == "harmless")[:harmless]
    return rows + [{"text": good.texts[i], "label": "harmless", "source": "alpaca (harmless)"} for i in chosen]


def columns(found: ProbeReport) -> list[tuple[str, int | str]]:
    """What is shown."""
    every = {(row.column, row.k) for row in found.rows}
    names = ("SAE", "random SAE", "neurons", "PCA of x")
    return [(name, k) for name in names for k in KS if (name, k) in every] + [("all of x", "all")]


def draw(path: Path, found: ProbeReport) -> None:
    """The figure: AUROC with the source and without it, source by source."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    shown = [("SAE", 1), ("SAE", 20), ("random SAE", 20), ("all of x", "all")]
    figure, axes = plt.subplots(1, len(shown), figsize=(2.7 * len(shown), 3), sharey=True)
    for axis, (name, k) in zip(axes, shown, strict=True):
        for way, colour, shift in (("with", "#bbbbbb", -0.12), ("without", "#e07b00", 0.12)):
            values = [found[name, k, f"{way} {source}"].auroc for source in found.left_out]
            at = np.arange(len(values)) + shift
            spans = np.array([[v.value - (v.low or v.value), (v.high or v.value) - v.value] for v in values]).T
            label = "learned from it too" if way == "with" else "never saw it"
            axis.errorbar(
                values and [v.value for v in values], at, xerr=spans.clip(0), fmt="o", ms=4, color=colour, label=label
            )
        axis.set(title=name if k == "all" else f"{name}, k={k}", xlabel="AUROC", xlim=(0.4, 1.02))
        axis.set_yticks(range(len(found.left_out)), found.left_out)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False, fontsize=7, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=Path, required=True, help="the folder of prompts")
    parser.add_argument("--each", type=int, default=100, help="harmful prompts of a source, at most")
    parser.add_argument("--harmless", type=int, default=600, help="harmless prompts, at most")
    given = parser.parse_args()
    start = time.perf_counter()
    each, harmless = (25, 100) if given.quick else (given.each, given.harmless)
    sae, model = ms.load_sae(given.run / "sae"), opened(given.model)
    rows = prompts(given.prompts, each, harmless)
    found = ms.probe(sae, rows, KS, model=model, leave_out="source", test_share=0.5)
    lines = ["| probe | learned from all | source never seen | difference |", "|---|---|---|---|"]
    lost: dict[tuple[str, int | str], Any] = {}
    outside: dict[tuple[str, int | str], np.ndarray] = {}
    for name, k in columns(found):
        inside, out = (
            np.array([found[name, k, f"{way} {source}"].auroc.value for source in found.left_out])
            for way in ("with", "without")
        )
        outside[name, k], lost[name, k] = out, estimate(out - inside)
        words = name if k == "all" else f"{name}, k={k}"
        lines.append(f"| {words} | {inside.mean():.3f} | {out.mean():.3f} | {lost[name, k].text('+.3f')} |")
    apart = {k: estimate(outside["SAE", k] - outside["all of x", "all"]) for k in KS}
    beyond = {k: estimate(outside["SAE", k] - outside["random SAE", k]) for k in KS}
    best = KS[-1]
    sparse = lost["SAE", best].mean >= -HOLDS
    dense = lost["all of x", "all"].mean >= -HOLDS
    words = {name: "holds" if holds else "does not hold" for name, holds in (("SAE", sparse), ("all of x", dense))}
    said = (
        f"On sources never seen, a probe of {best} latents {words['SAE']} ({lost['SAE', best].text('+.3f')} AUROC) "
        f"and a regression on all of x {words['all of x']} ({lost['all of x', 'all'].text('+.3f')}). There, {best} "
        f"latents are {'worse than' if apart[best].high < 0 else 'not shown to be worse than'} all of x: "
        f"{apart[best].text('+.3f')}; against as many latents of random SAEs {beyond[best].text('+.3f')}."
    )
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "harmful.svg", found)
    chosen = next(one for one in found.chosen if one.k == 5)
    facts = found.facts
    parts = [
        "# Does a probe of harmful intent hold on sources that it never saw?",
        "Written by `python studies/harmful.py --prompts PROMPTS`, as it came out.",
        f"**{said}**",
        "![AUROC by source](harmful.svg)",
        f"SmolLM2-135M-Instruct, {facts['hook']}, an SAE of {sae.n_latents:,} latents; {facts['train']:,} prompts to "
        f"learn from, {facts['test']:,} to be tried on; a prompt is the mean of its tokens' codes. Test prompts stand "
        "beside the harmless test prompts; with and without it the same prompts are tried. Means over "
        f"{len(found.left_out)} sources, differences with 95 % bootstrap intervals over the sources. "
        f"The 5 latents chosen on all training prompts (positive side {chosen.label!r}): "
        f"{', '.join(map(str, chosen.latents))}.",
        "\n".join(lines),
        f"Shuffled labels, k={best}: {found['shuffled labels', best].auroc.value:.3f}. "
        + " ".join(f"Not left out: {name.removeprefix('without ')}." for name in found.notes),
    ]
    (given.output / "harmful.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{time.perf_counter() - start:.0f} s; {given.output / 'harmful.md'}")


if __name__ == "__main__":
    main()
