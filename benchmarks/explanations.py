"""Rules against names: how well each foretells firings on text that the harvest did not see, and how long rules take.

    python benchmarks/explanations.py RUN [--features 500] [--tokens 131072] [--seed 0]

Of random features of a run that fire at least five times on the new text: F1 of the explanation's rule, of the
feature's name taken as a rule, and their difference feature by feature, with 95 % intervals by a bootstrap over
features; the rule of another feature as the floor; and the recall of every fifth of activation.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from monosem.explain import Rules, held_out, measured, rule_of_name
from monosem.features import FeatureStore, Rule
from monosem.models import load_model
from monosem.runs import Run

DRAWS = 10_000


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean with its 95 % interval."""
    draws = values[np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))].mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", help="what load_model takes; the run's if left out")
    parser.add_argument("--features", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    run = Run(given.run)
    store, sae = FeatureStore(given.run), run.sae()
    model = load_model(given.model or str(run.config.model))
    start, cpu = time.monotonic(), time.process_time()
    everything = Rules().explain(store, range(store.n_latents))
    seconds, cpu = time.monotonic() - start, time.process_time() - cpu
    rules = {item.latents[0]: item.rule or Rule(clauses=()) for item in everything if item.side == "input"}
    text = held_out(store, sae, model, text=run.config.text, tokens=given.tokens)
    assert text is not None, "there is no more text"
    random = np.random.default_rng(given.seed)
    drawn = random.permutation(sorted(rules))[: given.features].tolist()
    others = dict(zip(drawn, np.roll(drawn, 1).tolist(), strict=True))
    rows: list[tuple[float, float, float]] = []
    levels: dict[str, list[float]] = {}
    for feature in store.features(drawn):
        latent, most = feature.latent, feature.max or 1.0
        scores = [
            measured(rule, latent, most, text) for rule in (rules[latent], rule_of_name(feature), rules[others[latent]])
        ]
        if scores[0] is None:
            continue
        rows.append(tuple(score.value if score else 0.0 for score in scores))  # type: ignore[arg-type]
        for name, value in scores[0].details.items():
            levels.setdefault(name, []).append(value)
    rule, name, other = np.array(rows).T
    print(f"{store.n_latents:,} features explained in {seconds:.1f} s ({cpu:.1f} s of one processor)")
    print(f"F1 on {text.n_read:,} new tokens, {len(rows)} features drawn by seed {given.seed}:")
    found = {"rule": rule, "name": name, "rule of another feature": other, "rule - name, paired": rule - name}
    for what, values in found.items():
        one = interval(values)
        print(f"  {what:<26} {one['mean']:.3f}  [{one['low']:.3f}, {one['high']:.3f}]")
    for what in ("precision", "recall", *(f"level {i}" for i in range(1, 6))):
        one = interval(np.array(levels[what]))
        print(f"  {what:<26} {one['mean']:.3f}  [{one['low']:.3f}, {one['high']:.3f}]")
    print(json.dumps({what: interval(values) for what, values in found.items()}))


if __name__ == "__main__":
    main()
