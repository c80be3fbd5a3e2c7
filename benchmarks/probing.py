"""k-sparse probing of 4,096 latents on 10,000 texts, beyond the forward pass and encoding: seconds beside the bar.

    python benchmarks/probing.py [--texts 10000] [--latents 4096]

Pooled codes of texts as a TopK dictionary of 24 latents a token gives them on passages of 50 tokens, made at random,
with four labels that a few latents each give away; probes of 1, 2, 5, 10 and 20 latents of the SAE, of three random
ones, of 256 channels and their principal components, with shuffled labels and of all channels, each with its intervals:
all that `ms.probe` does when it has read the texts.
"""

import argparse
import time
from typing import Any

import numpy as np
from scipy import sparse

from monosem.evaluation.probing.columns import Columns
from monosem.evaluation.probing.labelled import Labelled
from monosem.evaluation.probing.measure import CHANNELS, RANDOM, measure
from monosem.evaluation.probing.pooled import Pooled
from monosem.evaluation.probing.report import ProbeReport
from monosem.evaluation.probing.splits import drawn_split

BAR, KS = 60.0, (1, 2, 5, 10, 20)
TOKENS, L0, WIDTH, LABELS = 50, 24, 256, 4


def codes(n_texts: int, n_latents: int, labels: np.ndarray, rng: np.random.Generator) -> Columns:
    """Means over tokens of Zipf-distributed latents; a rare latent is on in most texts of each label."""
    rates = 1 / np.arange(1, n_latents + 1) ** 0.7
    drawn = rng.choice(n_latents, (n_texts, TOKENS * L0), p=rates / rates.sum())
    drawn[:, 0] = np.where(rng.random(n_texts) < 0.7, n_latents - 1 - labels, drawn[:, 0])
    rows = np.repeat(np.arange(n_texts), TOKENS * L0)
    values = rng.random(n_texts * TOKENS * L0) / TOKENS
    return Columns(sparse.csr_array((values, (rows, drawn.ravel())), shape=(n_texts, n_latents)))


def main() -> None:
    """Print seconds and the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=10_000)
    parser.add_argument("--latents", type=int, default=4_096)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    labels = rng.integers(0, LABELS, given.texts)
    x = rng.standard_normal((given.texts, WIDTH)) + 0.3 * rng.standard_normal((LABELS, WIDTH))[labels]
    columns = {"SAE": codes(given.texts, given.latents, labels, rng), CHANNELS: Columns(x)}
    columns |= {f"{RANDOM} {i}": codes(given.texts, given.latents, labels * 0, rng) for i in range(3)}
    names = np.array([f"label {label}" for label in labels])
    keys = [f"{i:06}" for i in range(given.texts)]
    data = Labelled(keys, names, np.full(given.texts, ""), keys, "made at random")
    facts: dict[str, Any] = {}
    report = ProbeReport(facts)
    start = time.perf_counter()
    split = drawn_split(data, 0.2)
    measure(
        report, Pooled(columns, np.full(given.texts, TOKENS)), data, split, KS, "greedy", ["SAE"], 0, lambda _: None
    )
    seconds = time.perf_counter() - start
    met = "met" if seconds <= BAR else "not met"
    print(f"probing {given.latents:,} latents on {given.texts:,} texts, {LABELS} labels, with all controls")
    print(f"{seconds:.1f} s beyond forward and encoding; bar {BAR:.0f} s: {met}")
    told, shuffled = (report[name, 5].auroc.value for name in ("SAE", "shuffled labels"))
    print(f"AUROC with k=5: {told:.3f}, shuffled labels {shuffled:.3f}")


if __name__ == "__main__":
    main()
