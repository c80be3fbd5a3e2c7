"""One figure: L0 against FVU and against loss recovered, of every architecture, on the bundled model.

    python benchmarks/pareto.py [--tokens 1000000] [--n-latents 4096] [--only topk ...] [--output docs]

Finished points stand in OUTPUT/pareto.json, and a point that was interrupted goes on from its checkpoint: stop it when
you like, and call it again. Writes OUTPUT/pareto.svg after every point. New architectures appear by themselves.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import monosem as ms
from monosem.errors import MonosemError
from monosem.sae import SAE
from monosem.training import TrainingInterrupted

HOOK = "resid_post.2"
L0S = (8, 16, 32, 64)
L1S = (0.25, 0.5, 1.0, 2.0)
"""Of an architecture without k or target_l0: multiples of its default penalty, 0.2 / sqrt(d)."""
METRICS = {"fvu": "FVU, variance unexplained", "loss_recovered_mean": "loss recovered against the mean"}
COLOURS = ("#e07b00", "#2166ac", "#4d9221", "#8e0152", "#777777", "#01665e", "#762a83", "#b2182b", "#bf812d", "#35978f")
WORK = Path(__file__).parent / ".pareto"

Point = dict[str, Any]


def grid(kind: type[SAE], d: int) -> list[dict[str, Any]]:
    """The settings at which an architecture is measured."""
    parameters = kind.parameters_of()
    for name in ("k", "target_l0"):
        if name in parameters:
            return [{name: l0} for l0 in L0S]
    for name in ("coefficient",):
        if name in parameters:
            return [{name: round(factor * 0.2 / d**0.5, 6)} for factor in L1S]
    return [{}]


def measure(point: Point, model: ms.SubjectModel, eval_tokens: int) -> Point:
    """Train, in a folder of its own until it is done, and evaluate."""
    kind = SAE.registry[point["architecture"]]
    sae = kind(model.d_model, point["n_latents"], **point["settings"])
    name = "-".join([point["architecture"], *(f"{k}={v}" for k, v in point["settings"].items())])
    folder = WORK / f"{name}-{point['n_latents']}-{point['tokens']}"
    ms.train(sae, ms.activations(model, HOOK), tokens=point["tokens"], path=folder)
    report = ms.evaluate(sae, model, HOOK, tokens=eval_tokens, loss_tokens=eval_tokens, controls=False)
    shutil.rmtree(folder)
    return {**point, **{metric: list(report[metric]) for metric in ("l0", *METRICS)}}


def draw(points: list[Point], path: Path) -> None:
    """L0 to the right, a metric upwards, an interval at every point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    names = sorted({point["architecture"] for point in points})
    for axes, (metric, label) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        for number, name in enumerate(names):
            mine = sorted((p for p in points if p["architecture"] == name), key=lambda p: p["l0"][0])
            l0, values = ([p[key][0] for p in mine] for key in ("l0", metric))
            spans = [
                [abs(p[key][0] - (p[key][end] or p[key][0])) for p in mine] for key in ("l0", metric) for end in (1, 2)
            ]
            colour = COLOURS[number % len(COLOURS)]
            style: Point = {"marker": "o", "markersize": 4, "linewidth": 1.2, "capsize": 2, "color": colour}
            axes.errorbar(l0, values, xerr=spans[:2], yerr=spans[2:], label=name, **style)
        axes.set(xscale="log", xlabel="L0, latents on per token", ylabel=label)
        axes.xaxis.set_major_formatter("{x:.0f}")
    figure.axes[0].legend(frameon=False)
    first = points[0]
    figure.suptitle(
        f"{HOOK} of the bundled model, {first['n_latents']:,} latents, {first['tokens']:,} tokens; "
        "95 % intervals over held-out documents",
        fontsize=10,
    )
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--eval-tokens", type=int, default=100_000)
    parser.add_argument("--n-latents", type=int, default=4096)
    parser.add_argument("--only", nargs="*", choices=sorted(SAE.registry), default=sorted(SAE.registry))
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "docs")
    options = parser.parse_args()
    model = ms.load_model("bundled")
    options.output.mkdir(parents=True, exist_ok=True)
    file, figure = options.output / "pareto.json", options.output / "pareto.svg"
    points: list[Point] = json.loads(file.read_text()) if file.exists() else []
    run = {"n_latents": options.n_latents, "tokens": options.tokens, "eval_tokens": options.eval_tokens}
    for name in options.only:
        for settings in grid(SAE.registry[name], model.d_model):
            point: Point = {"architecture": name, "settings": settings, **run}
            if any(point.items() <= done.items() for done in points):
                continue
            try:
                done = measure(point, model, options.eval_tokens)
            except TrainingInterrupted as stop:
                raise SystemExit(str(stop)) from None
            except MonosemError as error:
                print(f"{name} {settings} is left out: {error}", flush=True)
                break
            points.append(done)
            new = file.with_name(".pareto.json.new")
            new.write_text(json.dumps(points, indent=1) + "\n")
            new.replace(file)
            figures = "  ".join(f"{metric} {done[metric][0]:.4f}" for metric in ("l0", *METRICS))
            print(f"{name} {settings}: {figures}", flush=True)
            draw([p for p in points if run.items() <= p.items()], figure)
    if shown := [p for p in points if run.items() <= p.items()]:
        draw(shown, figure)


if __name__ == "__main__":
    main()
