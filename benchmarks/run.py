"""`make bench`: every figure that monosem promises, beside its bar; ours and each peer in turn, in one call.

    python benchmarks/run.py [demo] [engine] [stacked] [streaming] [harvest] [store] [resume] [tokens] [explorer]
        [quality] [architectures] [--no-peers]

demo      the whole demo: minutes, memory, quality, share of latents alive; time that `import monosem` adds to torch's
engine    a training step of each architecture, of each peer, and the encoder's matmul alone; peak memory
stacked   eight SAEs trained together on one stream of the bundled model, and one after the other
streaming the stream against the bare forward; what it waits for; four SAEs of two hook points from one pass
harvest   a pass that harvests every latent; what a store weighs; SAEDashboard on the same model, SAE and text
store     stored activations: read and written, and a reader's memory, also of ten billion rows
resume    from a killed run to its first step; what checkpoints take of a run's time
tokens    tokens a second with equal loss curves, ours and each peer on one store, at three sizes
explorer  what the explorer's server answers in, on runs/demo (`make demo SERVE=0`) and on a million features
quality   FVU at everyone's defaults on the same activations, five seeds each
architectures   the same for each architecture at L0 = 32, beside SAELens's of that name
Without names: all but the last, which takes an hour or more. Peers are installed into environments of their own on
first use (benchmarks/peers.py).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import peers
from rich import box
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
LONG = "architectures"
"""Done only when asked for."""
console = Console(highlight=False, width=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    order = (demo, engine, stacked, streaming, harvest, store, resume, tokens, explorer, quality, architectures)
    parts = {part.__name__: part for part in order}
    parser.add_argument("parts", nargs="*", default=[name for name in parts if name != LONG])
    parser.add_argument("--no-peers", action="store_true", help="leave other libraries out")
    options = parser.parse_args()
    unknown = [name for name in options.parts if name not in parts]
    if unknown:
        parser.error(f"no part {unknown[0]!r}: choose from {', '.join(parts)}")
    for name in options.parts:
        parts[name](not options.no_peers)


def show(title: str, rows: list[tuple[str, str, str, bool | None]]) -> None:
    """Figures, their bars, and whether they are met."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "measured", "bar", ""):
        table.add_column(column, justify="right" if column == "measured" else "left")
    for label, measured, bar, met in rows:
        table.add_row(label, measured, bar, {True: "met", False: "[red]missed[/red]", None: ""}[met])
    console.print(table)


def demo(_: bool) -> None:
    """The demo, as a user runs it."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        command = [str(Path(sys.executable).parent / "monosem"), "demo", "--output", f"{folder}/demo"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        minutes, gib = (time.monotonic() - start) / 60, usage.ru_maxrss / 2**20
        if status:
            raise SystemExit("monosem demo failed: run it by itself to see why")
        report = json.loads((Path(folder) / "demo" / "evaluation.json").read_text())
    ours, pca = report["columns"]["SAE"], report["columns"]["PCA"]
    recovered, ratio = ours["loss_recovered_mean"]["value"], ours["fvu"]["value"] / pca["fvu"]["value"]
    alive, added = 1 - ours["dead_share"]["value"], import_time()
    rows: list[tuple[str, str, str, bool | None]] = [
        ("time", f"{minutes:.1f} minutes", "<= 6", minutes <= 6),
        ("peak memory", f"{gib:.2f} GiB", "<= 3", gib <= 3),
        ("loss recovered against mean ablation", f"{recovered:.3f}", ">= 0.90", recovered >= 0.90),
        ("FVU over PCA's at equal k", f"{ratio:.2f}", "<= 0.60", ratio <= 0.6),
        (
            f"latents that fire within {report['facts']['rows']:,} held-out tokens",
            f"{alive:.1%}",
            ">= 90 %",
            alive >= 0.9,
        ),
        ("import monosem beyond torch's import", f"{added:.2f} s", "<= 0.3", added <= 0.3),
    ]
    show("make demo", rows)


def import_time() -> float:
    """Seconds that `import monosem` takes once torch is imported; the least of three."""
    code = "import torch, time; t = time.perf_counter(); import monosem; print(time.perf_counter() - t)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)


def step(library: str, python: Path | str = sys.executable, **sizes: int) -> dict[str, float] | None:
    """What step.py measures for a library; None where it fails."""
    arguments = [f"--{name}={value}" for name, value in sizes.items()]
    command = [str(python), str(HERE / "step.py"), library, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        console.print(
            f"{library}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}", markup=False
        )
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def engine(with_peers: bool) -> None:
    """Whole training steps at d=768, n=24576, k=32, batch 4096."""
    ours = ["monosem-topk-float32", "monosem-topk", "monosem-topk-float32-aux", "monosem-topk-aux"]
    ours += ["monosem-batchtopk-float32", "monosem-batchtopk", "monosem-matryoshka-float32", "monosem-matryoshka"]
    ours += ["monosem-jumprelu-float32-sparse", "monosem-gated-float32-sparse", "monosem-relu-float32-sparse"]
    ours += ["monosem-switch-float32", "monosem-switch", "monosem-relu-float32"]
    found: dict[str, dict[str, float]] = {}
    for name in ["matmul", "matmul16", *ours]:
        measured = step(name)
        if measured:
            found[name] = measured
    for peer in peers.TRAINERS if with_peers else ():
        if peers.set_up(peer):
            for name in [peer, "saelens_relu"] if peer == "saelens" else [peer]:
                measured = step(name, peers.python_of(peer) or "", steps=3)
                if measured:
                    found[name] = measured
    table = Table(title="A training step: d=768, n=24576, k=32, batch 4096", title_justify="left", box=box.SIMPLE_HEAD)
    for column in ("", "seconds", "tokens/s", "peak GiB"):
        table.add_column(column, justify="right" if column else "left")
    for name, figures in found.items():
        seconds = figures["seconds"]
        table.add_row(name, f"{seconds:.3f}", f"{4096 / seconds:,.0f}", f"{figures['peak_gib']:.2f}")
    console.print(table)
    topk = "monosem-topk-float32"
    bars: list[tuple[str, str, str, str, float, bool]] = [
        ("topk float32, speed over SAELens", "saelens", "monosem-topk-float32", "seconds", 7, True),
        ("topk float32, speed over sparsify", "sparsify", "monosem-topk-float32", "seconds", 1.8, True),
        ("topk float32, over the encoder's matmul", "monosem-topk-float32", "matmul", "seconds", 1.35, False),
        ("topk auto, speed over SAELens", "saelens", "monosem-topk", "seconds", 14, True),
        ("topk auto, speed over sparsify", "sparsify", "monosem-topk", "seconds", 4, True),
        (
            "AuxK, 20 % dead, over the step without (float32)",
            "monosem-topk-float32-aux",
            "monosem-topk-float32",
            "seconds",
            1.8,
            False,
        ),
        ("AuxK, 20 % dead, over the step without (auto)", "monosem-topk-aux", "monosem-topk", "seconds", 1.8, False),
        ("batchtopk over topk (float32)", "monosem-batchtopk-float32", "monosem-topk-float32", "seconds", 1.4, False),
        ("batchtopk over topk (auto)", "monosem-batchtopk", "monosem-topk", "seconds", 1.4, False),
        (
            "matryoshka, 4 widths, over topk (float32)",
            "monosem-matryoshka-float32",
            "monosem-topk-float32",
            "seconds",
            2,
            False,
        ),
        ("matryoshka, 4 widths, over topk (auto)", "monosem-matryoshka", "monosem-topk", "seconds", 2, False),
        *[
            (
                f"{name}, as many latents on, over topk (float32)",
                f"monosem-{name}-float32-sparse",
                topk,
                "seconds",
                1.4,
                False,
            )
            for name in ("jumprelu", "gated", "relu")
        ],
        ("switch, 8 experts, over topk (float32)", "monosem-switch-float32", topk, "seconds", 0.55, False),
        ("switch, 8 experts, over topk (auto)", "monosem-switch", "monosem-topk", "seconds", 0.55, False),
        ("relu, all latents on, speed over SAELens", "saelens_relu", "monosem-relu-float32", "seconds", 1, True),
        ("peak memory over SAELens's", "monosem-topk-float32", "saelens", "peak_gib", 1 / 3, False),
    ]
    rows: list[tuple[str, str, str, bool | None]] = []
    for label, above, below, figure, bar, more_is_better in bars:
        if above in found and below in found:
            ratio = found[above][figure] / found[below][figure]
            met = ratio >= bar if more_is_better else ratio <= bar
            rows.append((label, f"{ratio:.2f}x", f"{'>=' if more_is_better else '<='} {bar:.2f}x", met))
    show("Ratios", rows)


def measured_by(script: str) -> dict[str, Any]:
    """The JSON that a benchmark of its own prints last."""
    done = subprocess.run([sys.executable, str(HERE / script)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def stacked(_: bool) -> None:
    """Eight SAEs together and alone, the model's forward included."""
    done = measured_by("stacked.py")
    ratio = done["together"] / done["alone"]
    rows: list[tuple[str, str, str, bool | None]] = [
        ("together", f"{done['together']:.0f} s", "", None),
        ("one after the other", f"{done['alone']:.0f} s", "", None),
        ("ratio", f"{ratio:.2f}x", "<= 0.75x", ratio <= 0.75),
        ("weights", "the same bits" if done["same_bits"] else "differ", "the same bits", done["same_bits"]),
    ]
    show("Eight SAEs of 4,096 latents, 1,000,000 tokens of the bundled model", rows)


def streaming(_: bool) -> None:
    """Capture, shuffle and reader against the bare forward; several dictionaries against one pass and their steps."""
    done, four = measured_by("streaming.py"), measured_by("together.py")
    rows: list[tuple[str, str, str, bool | None]] = [
        ("bare forward to resid_post.2", f"{done['bare']:,.0f} tokens/s", "", None),
        ("captured, shuffled, in batches", f"{done['stream']:,.0f} tokens/s", "", None),
        ("ratio", f"{done['ratio']:.1%}", ">= 85 %", done["ratio"] >= 0.85),
        ("model waits for its text", f"{done['idle']:.2%}", "<= 5 %", done["idle"] <= 0.05),
        ("the pass alone, two hook points", f"{four['one_pass']:.0f} s", "", None),
        ("the steps alone, four SAEs", f"{four['steps']:.0f} s", "", None),
        ("together", f"{four['together']:.0f} s", "", None),
        ("together over pass + 1.1 steps", f"{four['ratio']:.2f}x", "<= 1.00x", four["ratio"] <= 1),
    ]
    show("One pass of the bundled model", rows)


def harvest(with_peers: bool) -> None:
    """The harvest's figures, and SAEDashboard's."""
    for options in ([], ["--dashboard"]) if with_peers else ([],):
        subprocess.run([sys.executable, str(HERE / "harvest.py"), *options], check=True)


def store(_: bool) -> None:
    """The figures of stored activations."""
    subprocess.run([sys.executable, str(HERE / "store.py")], check=True)


def resume(_: bool) -> None:
    """Going on, and checkpoints."""
    subprocess.run([sys.executable, str(HERE / "resume.py")], check=True)


def tokens(with_peers: bool) -> None:
    """Tokens a second of training, and the curves."""
    subprocess.run([sys.executable, str(HERE / "tokens.py"), *([] if with_peers else ["--no-peers"])], check=True)


def explorer(_: bool) -> None:
    """The figures of the explorer's server."""
    subprocess.run([sys.executable, str(HERE / "explorer.py")], check=True)


def quality(with_peers: bool) -> None:
    """FVU of held-out activations at everyone's defaults."""
    import quality as study

    study.run(console, with_peers)


def architectures(with_peers: bool) -> None:
    """FVU at L0 = 32 of each architecture, ours and SAELens's."""
    import quality as study

    study.architectures(console, with_peers)


if __name__ == "__main__":
    main()
