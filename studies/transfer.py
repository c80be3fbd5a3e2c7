"""Does a dictionary of a base model serve its chat-tuned model, and the other way round?

    python studies/transfer.py [--chat FOLDER] [--output studies] [--runs runs/transfer] [--quick]

Rules, written before looking. Base: the bundled model. Chat: the same, fine-tuned on dialogues (recipes/bundled_chat;
made first if FOLDER is not there). Of each a TopK dictionary (1,024 latents, k = 24, resid_post.2, 200,000 tokens of
the same plain text). The matrix {dictionary of base, of chat} x {activations of base, of chat} on the same held-out
tokens, all and without those of extreme norm in either model (`ms.transfer_matrix`). A dictionary transfers if its
loss recovered on the other model, less that of the other's own dictionary, is above -0.02 at the lower end of the
paired interval (the first trial compared intervals that were not paired, which can tell nothing at this size; changed
after it). What it costs to recover: each trained on, on the other's activations (`ms.fine_tuning_curve`), beside a
fresh dictionary (null). Control: the base's dictionary, its directions rotated at random. Writes transfer.svg and
.md.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
from pathlib import Path

import torch

import monosem as ms
from monosem.evaluation import FineTuningCurve, TransferMatrix
from monosem.files import replacing, write_text
from monosem.intervals import Interval

HOOK, K, NAMES = "resid_post.2", 24, ("base", "chat")
MARGIN = 0.02


def chat_model(folder: Path, quick: bool) -> Path:
    """The chat-tuned model, made if need be."""
    if not (folder / "config.json").is_file():
        recipe = Path(__file__).parent.parent / "recipes/bundled_chat/train.py"
        subprocess.run([sys.executable, str(recipe), str(folder), "--steps", "20" if quick else "300"], check=True)
    return folder


def rotated(sae: ms.SAE) -> ms.SAE:
    """The same dictionary with its directions turned at random."""
    found = copy.deepcopy(sae)
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(sae.d_in, sae.d_in, generator=generator))[0]
    with torch.no_grad():
        for parameter in (found.W_enc, found.W_dec):
            parameter.copy_(parameter @ turn)  # pyright: ignore
    return found


def text_of(one: Interval) -> str:
    """With its interval."""
    return f"{one.value:.4f} ({one.low:.4f} to {one.high:.4f})"


def draw(path: Path, matrix: TransferMatrix, curves: dict[str, FineTuningCurve]) -> None:
    """Left: the matrix; right: the curves."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained", width_ratios=(1.1, 1, 1))
    colours = {"base": "#1f6f8b", "chat": "#b5532a"}
    for place, model in enumerate(NAMES):
        for shift, name in enumerate(NAMES):
            for kind, alpha in (("all", 0.45), ("filtered", 1.0)):
                one = matrix[name, model, kind]["fvu"]
                x = place + (shift - 0.5) * 0.36 + (0.08 if kind == "filtered" else -0.08)
                error = [[one.value - (one.low or 0)], [(one.high or 0) - one.value]]
                label = f"dictionary of {name}, {kind}" if not place else None
                axes[0].bar(x, one.value, 0.15, color=colours[name], alpha=alpha, yerr=error, capsize=2, label=label)
    axes[0].set_xticks(range(2), [f"activations of {name}" for name in NAMES])
    axes[0].set_ylabel("FVU")
    axes[0].set_ylim(0, 1.4 * axes[0].get_ylim()[1])
    axes[0].legend(frameon=False, fontsize=7, loc="upper left")
    for axis, (way, curve) in zip(axes[1:], curves.items(), strict=True):
        tokens = sorted(curve.tuned)
        axis.plot(tokens, [curve.tuned[n].value for n in tokens], "o-", color="#1f6f8b", label="trained on")
        axis.plot(tokens, [curve.fresh[n].value for n in tokens], "o--", color="0.6", label="fresh")
        axis.axhline(curve.before.value, color="#1f6f8b", linewidth=1, linestyle=":", label="as it is")
        if curve.native is not None:
            axis.axhline(curve.native.value, color="#b5532a", linewidth=1, label="the other's own")
        axis.set(xscale="log", xlabel="tokens of the other model", title=way)
        axis.legend(frameon=False, fontsize=7)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    with replacing(path) as new:
        figure.savefig(new, metadata={"Date": None}, format="svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chat", type=Path, default=Path("recipes/bundled_chat/work/model"))
    parser.add_argument("--output", type=Path, default=Path("studies"))
    parser.add_argument("--runs", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    options = parser.parse_args()
    began, small = time.monotonic(), 8 if options.quick else 1
    models = {"base": ms.load_model("bundled"), "chat": ms.load_model(str(chat_model(options.chat, options.quick)))}
    config = ms.TrainingConfig(batch_size=1024 // small)
    saes: dict[str, ms.SAE] = {}
    sources = {name: ms.activations(model, HOOK, buffer_tokens=65_536 // small) for name, model in models.items()}
    for name, source in sources.items():
        sae = ms.TopKSAE(d_in=source.d_in, n_latents=1024 // small, k=K // (2 if small > 1 else 1))
        saes[name] = ms.train(sae, source, tokens=200_000 // small, config=config, path=options.runs / name).sae
    both = {**saes, "rotated": rotated(saes["base"])}
    matrix = ms.transfer_matrix(both, models, tokens=40_000 // small, loss_tokens=16_384 // small)
    curves: dict[str, FineTuningCurve] = {}
    for own, other in (NAMES, NAMES[::-1]):
        held_out = ms.activations(models[other], HOOK, text="bundled:held_out", buffer_tokens=32_768 // small)
        tuning = ms.activations(models[other], HOOK, buffer_tokens=65_536 // small, seed=1)
        curves[f"{own} to {other}"] = ms.fine_tuning_curve(
            saes[own],
            tuning,
            budgets=[n // small for n in (8192, 32_768, 131_072)],
            held_out=held_out,
            native=saes[other],
            held_out_tokens=30_000 // small,
            config=config,
            path=options.runs / f"{own}_to_{other}",
        )
    said: list[str] = []
    for own, other in (NAMES, NAMES[::-1]):
        moved, native = (matrix[name, other]["loss_recovered_mean"] for name in (own, other))
        gap = ms.paired_difference(native, moved)
        assert gap is not None
        curve = curves[f"{own} to {other}"]
        after = "no budget tried" if curve.recovered is None else f"{curve.recovered:,} tokens"
        what = "transfers" if gap.low >= -MARGIN else "is not shown to transfer"
        paired = f"{gap.value:+.4f} ({gap.low:+.4f} to {gap.high:+.4f})"
        said.append(
            f"{own} to {other} {what}: loss recovered {text_of(moved)} against "
            f"{text_of(native)} of {other}'s own, paired {paired}; FVU {text_of(matrix[own, other]['fvu'])} against "
            f"{text_of(matrix[other, other]['fvu'])}, reached after {after}"
        )
    verdict = "; ".join(said) + "."
    verdict = verdict[:1].upper() + verdict[1:]
    draw(options.output / "transfer.svg", matrix, curves)
    rows = ["| dictionary of | activations of | tokens | FVU | L0 | loss recovered |", "|---|---|---|---|---|---|"]
    for (name, model, kind), own in matrix.cells.items():
        cells = (text_of(own["fvu"]), f"{own['l0'].value:.1f}", text_of(own["loss_recovered_mean"]))
        rows.append(f"| {name} | {model} | {kind} | " + " | ".join(cells) + " |")
    tuned = ["| way | tokens | trained on: FVU | fresh: FVU |", "|---|---|---|---|"]
    for way, curve in curves.items():
        tuned.append(f"| {way} | 0 | {text_of(curve.before)} | |")
        tuned += [
            f"| {way} | {n:,} | {text_of(curve.tuned[n])} | {text_of(curve.fresh[n])} |" for n in sorted(curve.tuned)
        ]
    extreme = ", ".join(f"{share:.3%} in {name}" for name, share in matrix.extreme.items())
    clean = ", ".join(f"{name} {text_of(one)}" for name, one in matrix.clean.items())
    parts = [
        "# Does a dictionary of a base model serve its chat-tuned model?",
        f"**{verdict}**",
        "![transfer](transfer.svg)",
        f"The same {matrix.rows['all']:,} held-out tokens in every cell ({matrix.rows['filtered']:,} filtered). Tokens "
        f'of extreme norm: {extreme}. Cross-entropy of plain text: {clean}. "rotated" is the control.',
        "\n".join(rows),
        "What it costs to recover, and the null, a fresh dictionary on the same batches:",
        "\n".join(tuned),
        f"`python studies/transfer.py{' --quick' if options.quick else ''}`",
    ]
    with replacing(options.output / "transfer.md") as new:
        write_text(new, "\n\n".join(parts) + "\n")
    print(verdict, f"{time.monotonic() - began:.0f} s", sep="\n")


if __name__ == "__main__":
    main()
