"""Explanations to be read: some drawn by seed, each beside its strongest passages and others of every strength.

    python benchmarks/reading.py RUN [--seed 0] [--features 20] [--explainer rules]

They are read by a rule that was written before:

An explanation is right when what it says holds of what the feature fires on, at the level that it claims.
  1. What it says first (before "also") holds for at least half of the strongest passages, or it says "unclear".
  2. Nothing that it says first is seen in weak passages alone (less than half of the largest activation).
  3. Where the strongest passages all share what stands before, which the words alone do not have, that is said.
  4. Where it says "unclear", no reader sees at once what the strongest passages have in common and the line has not.
  5. It can be read.

[[ ]] marks the token of a passage, { } others on which the feature fires; before each stands its share of the largest
activation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from monosem.features import Example, FeatureStore

TOP, OTHERS = 8, 12


def line(example: Example) -> str:
    """A passage on one line, from some way before its token."""
    marked = "".join(example.before)[-40:]
    for i, text in enumerate(example.texts):
        marked += f"[[{text}]]" if i == example.peak else f"{{{text}}}" if example.activations[i] > 0 else text
    at = marked.find("[[")
    return marked[max(0, at - 60) : at + 60].replace("\n", "↵")


def main() -> None:
    """Print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--features", type=int, default=20)
    parser.add_argument("--explainer", default="rules")
    given = parser.parse_args()
    store = FeatureStore(given.run)
    said = {item.latents[0]: item for item in store.explanations(given.explainer) if item.side == "input"}
    drawn = np.random.default_rng(given.seed).choice(sorted(said), min(given.features, len(said)), replace=False)
    for feature in store.features(drawn.tolist()):
        print(f"{feature.latent}, {feature.count:,} firings: {said[feature.latent].text}")
        others = sorted(feature.samples, key=lambda example: -example.activation)
        for example in [*feature.top[:TOP], *others[:: max(1, len(others) // OTHERS)]]:
            print(f"  {example.activation / (feature.max or 1.0):.2f}  {line(example)}")
        print()


if __name__ == "__main__":
    main()
