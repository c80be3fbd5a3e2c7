"""Does a dictionary of plain dialogues serve the same dialogues in the chat template, and the other way round?

    python studies/template.py [--model FOLDER] [--text FOLDER] [--output studies] [--runs runs/template] [--quick]

Rules, written before looking. SmolLM2-135M-Instruct at resid_post.9, without tokens of ten times the median norm. The
conversations of its recipe (recipes/smollm2), once as the chat template writes them and once as their words alone,
turns parted by an empty line. Of each a TopK dictionary (4,096 latents, k = 32, 30,000 tokens). Both are measured on
held-out conversations in both forms. As in `transfer.py`, a dictionary serves the other form if its loss recovered
there, less that of the form's own dictionary, is above -0.02 at the lower end of the paired interval over
conversations. Control: the first dictionary with its directions turned at random. Writes template.svg and .md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from smollm2 import opened
from transfer import MARGIN, rotated, text_of

import monosem as ms
from monosem.evaluation import EvaluationReport
from monosem.files import replacing, write_text

ROOT = Path(__file__).parent.parent
HOOK, FORMS = "resid_post.9", ("plain", "template")
LOSS = "loss_recovered_mean"


def written(source: Path, folder: Path) -> dict[str, Path]:
    """The conversations of a file of the recipe, in both forms."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {form: folder / f"{source.stem}_{form}.jsonl" for form in FORMS}
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    dialogues = [row["messages"] for row in rows if "messages" in row]
    words = {
        "plain": [{"text": "\n\n".join(turn["content"] for turn in dialogue)} for dialogue in dialogues],
        "template": [{"messages": dialogue} for dialogue in dialogues],
    }
    for form, path in found.items():
        write_text(path, "".join(json.dumps(row) + "\n" for row in words[form]))
    return found


def verdict(reports: dict[str, EvaluationReport]) -> str:
    """In words."""
    said: list[str] = []
    for own, other in (FORMS, FORMS[::-1]):
        columns = reports[other].columns
        gap = ms.paired_difference(columns[other][LOSS], columns[own][LOSS])
        assert gap is not None
        serves = "serves" if gap.low >= -MARGIN else "is not shown to serve"
        said.append(
            f"the dictionary of {own} dialogues {serves} the other form: loss recovered "
            f"{text_of(columns[own][LOSS])} there against {text_of(columns[other][LOSS])} of its own dictionary, "
            f"paired {gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f}); FVU {text_of(columns[own]['fvu'])} against "
            f"{text_of(columns[other]['fvu'])}"
        )
    words = "; ".join(said).replace("of template dialogues", "of dialogues in the template") + "."
    return words[:1].upper() + words[1:]


def draw(path: Path, reports: dict[str, EvaluationReport]) -> None:
    """FVU and loss recovered, by form and dictionary."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    colours = {"plain": "#1f6f8b", "template": "#b5532a", "rotated": "0.7"}
    for axis, (metric, label) in zip(axes, (("fvu", "FVU"), (LOSS, "loss recovered")), strict=True):
        for place, form in enumerate(FORMS):
            for shift, (name, colour) in enumerate(colours.items()):
                one = reports[form].columns[name][metric]
                error = [[one.value - (one.low or 0)], [(one.high or 0) - one.value]]
                named = f"dictionary: {name}" if not place else None
                axis.bar(place + 0.27 * (shift - 1), one.value, 0.24, color=colour, yerr=error, capsize=3, label=named)
        axis.set_xticks(range(2), [f"dialogues, {form}" for form in FORMS])
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    with replacing(path) as new:
        figure.savefig(new, metadata={"Date": None}, format="svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "recipes" / "smollm2" / "work" / "model")
    parser.add_argument("--text", type=Path, default=ROOT / "recipes" / "smollm2" / "work", help="what text.py wrote")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "template")
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, to see that it runs")
    options = parser.parse_args()
    began, small = time.process_time(), 10 if options.quick else 1
    model = opened(options.model)
    train, held_out = (written(options.text / f"{name}.jsonl", options.runs) for name in ("train", "held_out"))
    saes: dict[str, ms.SAE] = {}
    for form in FORMS:
        source = ms.activations(
            model, HOOK, text=str(train[form]), context_length=256, max_norm_ratio=10, buffer_tokens=16_384 // small
        )
        config = ms.TrainingConfig(batch_size=1024 // small)
        sae = ms.TopKSAE(source.d_in, 4096 // small, k=32)
        saes[form] = ms.train(sae, source, tokens=30_000 // small, config=config, path=options.runs / form).sae
    saes["rotated"] = rotated(saes["plain"])
    sizes = {"tokens": 4000 // small, "loss_tokens": 1500 // small}
    reports = {
        form: ms.evaluate(saes, model, HOOK, text=str(held_out[form]), controls=False, **sizes) for form in FORMS
    }
    words = verdict(reports)
    draw(options.output / "template.svg", reports)
    rows = ["| dictionary of | dialogues | FVU | L0 | loss recovered |", "|---|---|---|---|---|"]
    for form, report in reports.items():
        for name in saes:
            own = report.columns[name]
            rows.append(f"| {name} | {form} | {text_of(own['fvu'])} | {own['l0'].value:.1f} | {text_of(own[LOSS])} |")
    parts = [
        "# Does a dictionary of plain dialogues serve the chat template?",
        f"**{words}**",
        "![template](template.svg)",
        f"SmolLM2-135M-Instruct, {HOOK}; {saes['plain'].n_latents:,} latents, {30_000 // small:,} tokens each; "
        f"{sizes['tokens']:,} tokens of either form measured, losses on {sizes['loss_tokens']:,}. "
        '"rotated" is the control.',
        "\n".join(rows),
        f"{time.process_time() - began:.0f} s of processor time: `python studies/template.py"
        f"{' --quick' if options.quick else ''}`",
    ]
    write_text(options.output / "template.md", "\n\n".join(parts) + "\n")
    print(words)


if __name__ == "__main__":
    main()
