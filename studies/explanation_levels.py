"""Which activation levels are explained? Weak firings are said to mean less: here is how much less.

    python studies/explanation_levels.py [RUN] [--output studies] [--features 300] [--judge MODEL]

Reads a run with a feature store (without RUN: harvests one of the dictionary in tests/data) and its held-out text.
Rules need no judge: of every feature, what share of its firings at each fifth of its maximum does the rule foretell,
and what do two floors: the rule of another feature, and its name taken as a rule? Beside it surprisal, by the subject
model: do passages of each level get likelier behind the explanation? Writes explanation_levels.svg and .md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import monosem as ms
from monosem.explain.held_out import HeldOut, held_out
from monosem.explain.measure import measured
from monosem.explain.names import rule_of_name
from monosem.explain.score import SHUFFLED, Scores
from monosem.features import Explanation, FeatureStore, Rule
from monosem.models import SubjectModel
from monosem.sae import SAE

LEVELS = [f"level {i}" for i in range(1, 6)]
FEWEST = 5
"""Firings at a level from which a feature counts there."""
DRAWS = 2000
TEXT = 150_000
"""Tokens of held-out text for rules."""
SAID = 24
"""Explanations whose surprisal is measured."""


@dataclass
class Curve:
    """A mean over features at every level, with 95 % bootstrap intervals over features."""

    name: str
    values: np.ndarray
    """(features, levels); NaN where a feature has too few firings."""

    @property
    def mean(self) -> np.ndarray:
        return np.nanmean(self.values, 0)

    @property
    def interval(self) -> np.ndarray:
        """(2, levels)"""
        weights = np.random.default_rng(0).multinomial(
            len(self.values), [1 / len(self.values)] * len(self.values), DRAWS
        )
        known = ~np.isnan(self.values)
        sums = weights @ np.where(known, self.values, 0)
        return np.quantile(sums / np.maximum(1, weights @ known), [0.025, 0.975], axis=0)

    @property
    def n(self) -> np.ndarray:
        return (~np.isnan(self.values)).sum(0)


def opened(run: Path | None, folder: Path) -> tuple[FeatureStore, SAE, SubjectModel]:
    """The dictionary, its store and its model."""
    if run is not None:
        found = ms.Run(run)
        model = found.config.model
        if not isinstance(model, str):
            raise SystemExit(f"{run} is not of one language model")
        return found.features(), found.sae(), ms.load_model(model)
    sae, model = ms.load_sae(Path(__file__).parent.parent / "tests" / "data" / "demo_sae"), ms.load_model("bundled")
    return ms.harvest(sae, folder / "features", model, text="bundled:held_out", tokens=300_000), sae, model


def recalls(rules: list[tuple[Rule, int]], store: FeatureStore, text: HeldOut) -> np.ndarray:
    """(features, levels) the share of the firings of a level that a rule foretells."""
    found = np.full((len(rules), len(LEVELS)), np.nan)
    maxima = store.columns(["max"]).column("max").to_pylist()
    for i, (rule, latent) in enumerate(rules):
        score = measured(rule, latent, maxima[latent], text)
        counts = counts_of(latent, maxima[latent], text)
        for level, name in enumerate(LEVELS):
            if score is not None and counts[level] >= FEWEST:
                found[i, level] = score.details.get(name, np.nan)
    return found


def counts_of(latent: int, maximum: float, text: HeldOut) -> np.ndarray:
    """(levels,) firings at each level."""
    levels = np.clip(np.ceil(text.of(latent)[1] / maximum * len(LEVELS)), 1, len(LEVELS)).astype(int)
    return np.bincount(levels - 1, minlength=len(LEVELS))


def curves(store: FeatureStore, items: list[Explanation], text: HeldOut) -> tuple[list[Curve], np.ndarray]:
    """Recall by level of rules, of other features' rules and of names; and the share of firings at each level."""
    latents = [item.latents[0] for item in items]
    rules = [item.rule or Rule(clauses=()) for item in items]
    features = store.features(latents)
    found = [
        Curve("rules", recalls(list(zip(rules, latents, strict=True)), store, text)),
        Curve("names as rules", recalls([(rule_of_name(f), f.latent) for f in features], store, text)),
        Curve(
            "rules of other features", recalls(list(zip(rules, latents[1:] + latents[:1], strict=True)), store, text)
        ),
    ]
    counts = np.sum([counts_of(f.latent, f.max or 1.0, text) for f in features], axis=0)
    return found, counts / counts.sum()


def judged_curves(table: Scores, scorer: str) -> list[Curve]:
    """Of explanations, by level; shuffled ones have means alone."""
    scores = [item.scores[scorer] for item in table.explanations if scorer in item.scores]
    rows = [[score.details.get(level, np.nan) for level in LEVELS] for score in scores]
    floor = table.row(scorer, SHUFFLED)
    return [
        Curve(f"{scorer} by {floor.judge}", np.array(rows)),
        Curve("shuffled", np.array([[floor.details.get(level, np.nan) for level in LEVELS]])),
    ]


def draw(path: Path, rules: list[Curve], shares: np.ndarray, judged: dict[str, list[Curve]]) -> None:
    """The figure."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "monosem"
    figure, axes = plt.subplots(1, 1 + len(judged), figsize=(4.6 * (1 + len(judged)), 3.4), squeeze=False)
    x = np.arange(1, 6)
    axes[0, 0].bar(x, shares, color="0.9", width=0.8, label="share of firings")
    panels = [("recall of rules", rules), *judged.items()]
    for axis, (title, lines) in zip(axes[0], panels, strict=True):
        for curve in lines:
            low, high = curve.interval
            error = np.maximum(0, [curve.mean - low, high - curve.mean]) if len(curve.values) > 1 else None
            axis.errorbar(x, curve.mean, error, marker="o", capsize=2, label=curve.name)
        axis.set(title=title, xlabel="activation, fifths of the maximum", ylim=(0, 1), xticks=x)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def table(lines: list[Curve]) -> str:
    """As Markdown."""
    rows = ["| | " + " | ".join(LEVELS) + " |", "|---" * 6 + "|"]
    for curve in lines:
        cells = [f"{mean:.2f}" for mean in curve.mean]
        if len(curve.values) > 1:
            cells = [
                f"{cell} ({low:.2f} to {high:.2f})" for cell, low, high in zip(cells, *curve.interval, strict=True)
            ]
        rows.append(f"| {curve.name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def verdict(rules: list[Curve], shares: np.ndarray) -> str:
    """What the figures say, whichever way they have come out."""
    rule, name, other = (curve.mean for curve in rules)
    low, high = rules[0].interval
    drop = "Weak firings are explained less" if high[0] < low[4] else "No fall from strong to weak firings is shown"
    above = [str(i) for i, (a, b) in enumerate(zip(low, rules[2].interval[1], strict=True), 1) if a > b]
    half = [str(i) for i, value in enumerate(rule, 1) if value >= 0.5]
    return (
        f"{drop}: rules foretell {rule[4]:.0%} of the strongest firings (level 5) and {rule[0]:.0%} of the weakest "
        f"(level 1); rules of other features {other[4]:.0%} and {other[0]:.0%}, names taken as rules {name[4]:.0%} and "
        f"{name[0]:.0%}. Above the floor are levels {', '.join(above) or 'none'}; more than half is foretold at levels "
        f"{', '.join(half) or 'none'}. {shares[0]:.0%} of all firings are of level 1, {shares[4]:.1%} of level 5: "
        f"over all firings rules foretell {float((shares * rule).sum()):.0%}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    parser.add_argument("--features", type=int, default=300)
    parser.add_argument("--judge", help="a model on this machine that is asked for detection too")
    given = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        store, sae, model = opened(given.run, Path(folder))
        text = held_out(store, sae, model, tokens=TEXT)
        if text is None:
            raise SystemExit("the store was harvested to the end of its text")
        rng = np.random.default_rng(0)
        alive = store.table(where="count >= 100", columns=["latent"], limit=None).column("latent").to_pylist()
        latents = sorted(rng.choice(alive, min(given.features, len(alive)), replace=False).tolist())
        explained = ms.explain(store, latents, save=False)
        items = [item for item in explained if item.side == "input"]
        rules, shares = curves(store, items, text)
        common: dict[str, Any] = {"limit": SAID, "model": model}
        judged = {
            "surprisal: AUC against silence": judged_curves(
                ms.score(store, explained, ["surprisal"], **common), "surprisal"
            )
        }
        if given.judge:
            asker = ms.LocalJudge(given.judge, Path(given.judge).name)
            found = ms.score(store, explained, ["detection"], asker, limit=SAID // 4)
            judged["detection: sensitivity"] = judged_curves(found, "detection")
    seconds = time.perf_counter() - start
    given.output.mkdir(parents=True, exist_ok=True)
    draw(given.output / "explanation_levels.svg", rules, shares, judged)
    said = verdict(rules, shares)
    about = store.index
    parts = [
        "# Which activation levels are explained?",
        "Written by `python studies/explanation_levels.py`, as it came out.",
        f"**{said}**",
        "![recall by level](explanation_levels.svg)",
        f"{len(items)} random features that fire 100 times at least, of {store.n_latents:,} of a "
        f"{about['architecture']} SAE at {about['hook']} of {about['model']}, explained by rules from "
        f"{store.n_tokens:,} tokens, on {text.n_read:,} tokens that the rules were not made from. Means over the "
        f"features with {FEWEST} firings at a level, and 95 % bootstrap intervals over them. Level 1: up to a fifth "
        "of the feature's maximum; 5: the strongest fifth. Features at each level: "
        f"{', '.join(map(str, rules[0].n))}. Share of all firings: {', '.join(f'{share:.1%}' for share in shares)}.",
        f"## Recall of rules\n\n{table(rules)}",
        *(f"## {title[:1].upper()}{title[1:]}\n\n{table(lines)}" for title, lines in judged.items()),
    ]
    (given.output / "explanation_levels.md").write_text("\n\n".join(parts) + "\n")
    print(f"{said}\n{seconds:.0f} s; {given.output / 'explanation_levels.md'}")


if __name__ == "__main__":
    main()
