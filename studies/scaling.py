"""How does the loss of a dictionary fall with its width and its tokens, and what is best for a budget?

    python studies/scaling.py [--output studies] [--runs runs/scaling] [--quick]

Rules, written before looking. Sixteen TopK dictionaries (k = 24) of the bundled model at resid_post.2, 256 to 2,048
latents, 62,500 to 500,000 tokens, each with a schedule of its own, from one pass; FVU on held-out text. Told is the law
with 95 % intervals, and the best width's exponent in compute, beta / (alpha + beta). Test: a dictionary of twice the
largest compute (4,096 latents, 500,000 tokens), trained in the same pass and not fitted, against what the law foretold.
Control: the law from checkpoints of the longest runs in place of runs that end, of batches on which both are measured:
whether their exponent of tokens differs. Null: losses that belong to other dictionaries (permuted) are too poor to
recommend from. Writes scaling.svg and .md. About 5 minutes on two cores; killed, it goes on.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

import monosem as ms
from monosem.activations import HookSource
from monosem.files import replacing, write_text
from monosem.training.loggers import read_history

K, HOOK = 24, "resid_post.2"
WIDTHS, TOKENS = (256, 512, 1024, 2048), (62_500, 125_000, 250_000, 500_000)
TEST = (4096, 500_000)
AVERAGED = 3
"""Logged steps whose mean is the loss of a place in a run."""
NULLS = 20


def trained(folder: Path, quick: bool) -> tuple[dict[str, ms.SAE], dict[str, tuple[int, int]]]:
    """All dictionaries, the one of the test last."""
    model = ms.load_model("bundled")
    pairs = {f"{n}x{d}": (n, d) for n, d in [*((n, d) for n in WIDTHS for d in TOKENS), TEST]}
    if quick:
        pairs = {name: (n // 8, d // 10) for name, (n, d) in pairs.items()}
    source = ms.activations(model, HOOK, buffer_tokens=65_536)
    assert isinstance(source, HookSource)
    saes: dict[str, ms.SAE] = {name: ms.TopKSAE(d_in=model.d_model, n_latents=n, k=K) for name, (n, _) in pairs.items()}
    config = ms.TrainingConfig(batch_size=1024 if not quick else 256, log_every=1)
    ms.train_together(saes, source, tokens={name: d for name, (_, d) in pairs.items()}, config=config, path=folder)
    return saes, pairs


def on_batches(folder: Path, pairs: dict[str, tuple[int, int]]) -> tuple[ms.ScalingLaw, ms.ScalingLaw]:
    """The law of runs that end, and of checkpoints of the longest, by the FVU of the same training batches."""
    ends, checkpoints = list[float](), list[float]()
    points = list(pairs.items())[:-1]
    longest = max(d for _, (_, d) in points)
    for name, (n, d) in points:
        whole = next(other for other, pair in points if pair == (n, longest))
        for found, run in ((ends, name), (checkpoints, whole)):
            history = [row for row in read_history(folder / run / "metrics.jsonl") if row["tokens"] <= d + 1024]
            found.append(float(np.mean([row["fvu"] for row in history[-AVERAGED:]])))
    widths, lengths = zip(*(pair for _, pair in points), strict=True)
    return ms.ScalingLaw.fit(widths, lengths, ends), ms.ScalingLaw.fit(widths, lengths, checkpoints)


def said(law: ms.ScalingLaw, name: str) -> str:
    """A parameter in words."""
    value, low, high = law[name]
    return f"{value:.3g} ({low:.3g} to {high:.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("studies"))
    parser.add_argument("--runs", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    options = parser.parse_args()
    began = time.monotonic()
    saes, pairs = trained(options.runs, options.quick)
    report = ms.evaluate(saes, tokens=10_000 if options.quick else 100_000, loss_tokens=0, controls=False)
    losses = {name: report.columns[name]["fvu"] for name in pairs}
    fitted = list(pairs)[:-1]
    test = list(pairs)[-1]
    widths, lengths = zip(*(pairs[name] for name in fitted), strict=True)
    values = [losses[name].value for name in fitted]
    draws = np.stack([losses[name].draws for name in fitted])  # pyright: ignore[reportAttributeAccessIssue]
    law = ms.ScalingLaw.fit(widths, lengths, values, measured=draws)
    rng = np.random.default_rng(0)
    poor = [ms.ScalingLaw.fit(widths, lengths, rng.permutation(values)).too_poor for _ in range(NULLS)]
    ended, running = on_batches(options.runs, pairs)
    foretold = law.foretell(*pairs[test])
    low, high = foretold.low or 0.0, foretold.high or 0.0
    hit = low <= losses[test].value <= high
    exponent = law.draws[:, 4] / (law.draws[:, 2] + law.draws[:, 4])
    alpha, beta = law["alpha"].value, law["beta"].value
    edges = np.quantile(exponent, [0.025, 0.975])
    verdict = (
        f"FVU falls as {said(law, 'floor')} + a N^-alpha + b D^-beta with alpha {said(law, 'alpha')} and beta "
        f"{said(law, 'beta')}: the best width grows with compute to the power "
        f"{beta / (alpha + beta):.2f} ({edges[0]:.2f} to {edges[1]:.2f}). Of twice the largest compute it foretold "
        f"{foretold.value:.4f} ({low:.4f} to {high:.4f}); measured was {losses[test].value:.4f}, "
        f"{'inside' if hit else 'outside'}."
    )
    law.draw(options.output / "scaling.svg")
    budgets = [float(law.compute.max()) * times for times in (1, 4, 16)]
    advice = [f"- No recommendation: {law.too_poor}."] if law.too_poor else [f"- {law.recommend(c)}" for c in budgets]
    named = {pairs[name]: losses[name] for name in pairs}
    across = list(dict.fromkeys(lengths))
    rows = ["| | " + " | ".join(f"{d:,}" for d in across) + " |", "|---" * (1 + len(across)) + "|"]
    rows += [
        f"| {n:,} | " + " | ".join(f"{named[n, d].value:.4f}" for d in across) + " |" for n in dict.fromkeys(widths)
    ]
    early = running.tokens == running.tokens.min()
    worse = float(np.mean((running.losses / ended.losses)[early]))
    caught = sum(one is not None for one in poor)
    parts = [
        "# How the loss of a dictionary falls with width and tokens",
        f"**{verdict}**",
        "![scaling](scaling.svg)",
        "FVU on held-out text, by latents (down) and tokens (across):",
        "\n".join(rows),
        f"{law.explained:.2%} of the variance of log FVU is explained; the runs of the largest compute, foretold "
        f"by the smaller ones alone, are missed by {law.held_out_error:.2%}.",
        "Recommended, for the largest compute of the sweep and 4 and 16 times as much:",
        "\n".join(advice),
        f"Control: by the FVU of the last training batches, runs that end have beta {said(ended, 'beta')} and alpha "
        f"{said(ended, 'alpha')}; checkpoints of the longest runs, whose rate has not been lowered, beta "
        f"{said(running, 'beta')} and alpha {said(running, 'alpha')}. At the fewest tokens the checkpoints' FVU is "
        f"{worse:.3f} times that of runs that end there.",
        f"Null: of {NULLS} sweeps with permuted losses, {caught} are said to be too poor.",
        f"`python studies/scaling.py{' --quick' if options.quick else ''}`",
    ]
    with replacing(options.output / "scaling.md") as new:
        write_text(new, "\n\n".join(parts) + "\n")
    print(verdict, f"{time.monotonic() - began:.0f} s", sep="\n")


if __name__ == "__main__":
    main()
