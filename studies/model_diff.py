"""Which features does a chat-tuned model have that its base has not, and do the features that they share do the same?

    python studies/model_diff.py [--chat FOLDER] [--output studies] [--runs runs/model_diff]
        [--tokens 200000] [--checked 64] [--quick]

Rules, written before looking. Base: the bundled model; chat: the same, fine-tuned on dialogues (recipes/bundled_chat;
made first if FOLDER is not there). Crosscoders of both (1,024 latents, resid_post.2, --tokens of the same plain text,
200,000 if not given): BatchTopK (k = 24) and L1. A latent looks exclusive if 9/10 of its decoder norms are one
model's; it is confirmed if latent scaling finds less than 0.2 of it in the other's errors and less than 0.5 in its
reconstructions (`ms.diff_models`). Published (Minder et al., 2025): most latents that look exclusive under L1 are
not, under BatchTopK they are; here that holds if the shares confirmed differ with 95 % intervals apart. Shared
latents do the same if taking one out of either model changes logits more alike than taking out another shared latent
in the second model (paired over latents, interval above 0). Null: the base beside itself must have none that looks
exclusive. Writes model_diff.svg and .md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import monosem as ms
from monosem.analysis import ModelDiff
from monosem.analysis.cosines import over_latents
from monosem.files import replacing, write_text
from monosem.intervals import Interval

HOOK, NAMES = "resid_post.2", ("base", "chat")
L1 = 0.06
"""At which planted features that one source has weakly look exclusive (docs/architectures.md)."""


def chat_model(folder: Path, quick: bool) -> Path:
    """The chat-tuned model, made if need be."""
    if not (folder / "config.json").is_file():
        recipe = Path(__file__).parent.parent / "recipes/bundled_chat/train.py"
        subprocess.run([sys.executable, str(recipe), str(folder), "--steps", "20" if quick else "300"], check=True)
    return folder


def share(part: int, whole: int) -> Interval:
    """With Wilson's 95 % interval."""
    if not whole:
        return Interval(float("nan"))
    p, z = part / whole, 1.959964
    middle, half = p + z * z / (2 * whole), z * (p * (1 - p) / whole + z * z / (4 * whole * whole)) ** 0.5
    return Interval(p, (middle - half) / (1 + z * z / whole), (middle + half) / (1 + z * z / whole))


def counted(diff: ModelDiff) -> tuple[int, int]:
    """How many latents look exclusive, and how many of these are."""
    looks = sum(kind.startswith("only ") for kind in diff.kinds)
    return looks, int(diff.confirmed.sum())


def said(value: Interval, form: str = ".2f") -> str:
    return f"{value.value:{form}}" + ("" if value.low is None else f" ({value.low:{form}} to {value.high:{form}})")


def verdict(diffs: dict[str, ModelDiff]) -> str:
    found: dict[str, Interval] = {}
    parts: list[str] = []
    for name in ("BatchTopK", "L1"):
        looks, confirmed = counted(diffs[name])
        found[name] = share(confirmed, looks)
        held = f", of which {said(found[name], '.0%')} are" if looks else ""
        parts.append(f"{name}: {looks} of {len(diffs[name].shares):,} latents look exclusive to one model{held}")
    known = [one for one in found.values() if one.low is not None]
    if len(known) < 2:
        artefact = "whether L1 makes more false exclusives cannot be told, as one kind has none"
    else:
        apart = (found["BatchTopK"].low or 0) > (found["L1"].high or 1)
        artefact = f"L1 makes {'' if apart else 'not visibly '}more false exclusives"
    causal = diffs["BatchTopK"].causal
    gap = over_latents((causal.agreement - causal.by_chance)[~(causal.agreement - causal.by_chance).isnan()])
    same = "do the same" if (gap.low or 0) > 0 else "are not shown to do the same"
    means = diffs["BatchTopK"].agreement
    return (
        f"{'; '.join(parts)}; {artefact}. Shared latents {same} in both models: cosine of the changes of logits "
        f"{said(means['agreement'])}, with another shared latent in the second {said(means['by chance'])}, with the "
        f"first model's direction in the second {said(means['exchanged'])}. The base beside itself: "
        f"{counted(diffs['null'])[0]} look exclusive."
    )


def draw(path: Path, diffs: dict[str, ModelDiff]) -> None:
    """Left: shares of decoder norms; middle: latent scaling of those that look exclusive; right: the causal check."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name, one in diffs.items():
        alive = one.scaling.fired > 0
        axes[0].hist(one.shares[alive].numpy(), bins=50, range=(0, 1), histtype="step", label=name)
    axes[0].set(xlabel="chat's share of the decoder norms", ylabel="latents", yscale="log", title="Whose they are")
    for name in ("BatchTopK", "L1"):
        looks = np.array([kind.startswith("only ") for kind in diffs[name].kinds])
        x, y = (diffs[name].scaling.ratio(kind).numpy()[looks] for kind in ("error", "reconstruction"))
        axes[1].plot(np.clip(x, -1, 2), np.clip(y, -1, 2), ".", label=name)
    axes[1].axvline(0.2, color="0.8", linewidth=1)
    axes[1].axhline(0.5, color="0.8", linewidth=1)
    axes[1].set(
        xlabel="in the other's errors", ylabel="in the other's reconstructions", title="Those that look exclusive"
    )
    causal = diffs["BatchTopK"].causal
    for name, values in (("same latent", causal.agreement), ("another latent", causal.by_chance)):
        axes[2].hist(values.numpy(), bins=30, range=(-1, 1), histtype="step", label=name)
    axes[2].set(xlabel="cosine of the changes of logits", ylabel="latents", title="Shared latents taken out")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    with replacing(path) as new:
        figure.savefig(new, metadata={"Date": None}, format="svg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chat", type=Path, default=Path("recipes/bundled_chat/work/model"))
    parser.add_argument("--output", type=Path, default=Path("studies"))
    parser.add_argument("--runs", type=Path, default=Path("runs/model_diff"))
    parser.add_argument("--tokens", type=int, default=200_000, help="that the crosscoders read")
    parser.add_argument("--checked", type=int, default=64, help="shared latents of BatchTopK's that are taken out")
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    options = parser.parse_args()
    began, small = time.process_time(), 10 if options.quick else 1
    base, chat = ms.load_model("bundled"), ms.load_model(str(chat_model(options.chat, options.quick)))
    tokens, rows = options.tokens // small, min(40_000, options.tokens) // small
    latents = 1024 // (4 if options.quick else 1)
    diffs: dict[str, ModelDiff] = {}
    for models, names in ((ms.ModelSet([base, chat]), ("BatchTopK", "L1")), (ms.ModelSet([base, base]), ("null",))):
        made: dict[str, ms.SAE] = {
            name: ms.Crosscoder(base.d_model, latents, sparsity="l1", l1_coefficient=L1, k=24)
            if name == "L1"
            else ms.Crosscoder(base.d_model, latents, k=24)
            for name in names
        }
        source = ms.activations(models, HOOK, buffer_tokens=min(65_536 // small, tokens))
        config = ms.TrainingConfig(batch_size=max(64, 1024 * tokens // 200_000))
        ms.train_together(made, source, tokens=tokens, config=config, path=options.runs / "_".join(names))
        for name, crosscoder in made.items():
            assert isinstance(crosscoder, ms.Crosscoder)
            both = ("base", "base again") if name == "null" else NAMES
            checked = 0 if name != "BatchTopK" else min(8, options.checked) if options.quick else options.checked
            limits: dict[str, int] = {"rows": rows, "checked": checked, "contexts": 8}
            diffs[name] = ms.diff_models(crosscoder, models, HOOK, names=both, **limits)
            print(diffs[name], flush=True)
    words = verdict(diffs)
    options.output.mkdir(parents=True, exist_ok=True)
    draw(options.output / "model_diff.svg", diffs)
    shown = "\n\n".join(f"{name}:\n\n```\n{str(one).rstrip()}\n```" for name, one in diffs.items())
    quick = "".join(
        f" --{name} {getattr(options, name)}"
        for name in ("tokens", "checked")
        if getattr(options, name) != parser.get_default(name)
    ) + (" --quick" if options.quick else "")
    parts = [
        "# What a chat-tuned model has that its base has not, by crosscoders",
        f"**{words}**",
        "![shares, latent scaling and the causal check](model_diff.svg)",
        f"Crosscoders of {latents:,} latents at {HOOK}, {tokens:,} tokens of plain text; latent scaling on {rows:,} "
        f"rows held out; {len(diffs['BatchTopK'].causal.agreement)} shared latents taken out; intervals are 95 %, of "
        "shares over latents (Wilson) and of cosines over latents."
        + ("" if tokens >= 200_000 else " Made at less than the whole size, which is 200,000 tokens and 64 latents."),
        shown,
        f"`python studies/model_diff.py{quick}`",
    ]
    with replacing(options.output / "model_diff.md") as new:
        write_text(new, "\n\n".join(parts) + "\n")
    print(words, f"{time.process_time() - began:.0f} s of processor time", sep="\n")


if __name__ == "__main__":
    main()
