"""Token sets: 200 sets of 4,096 tokens against 4,096 features, with 1,000 permutations and with the exact null.

    python benchmarks/token_sets.py [--features 4096] [--sets 200]

The bundled model and a dictionary at random; sets of random tokens, of 5 to 1,000 each. Everything is timed: logits,
ranking, scores, p values, their correction. Compilation is not: it is done once and kept. The bar: 60 s with
permutations, on two cores.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import monosem as ms
from monosem.models.vocabulary import Vocabulary

BAR = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=4096)
    parser.add_argument("--sets", type=int, default=200)
    given = parser.parse_args()
    model = ms.load_model("bundled")
    sae = ms.TopKSAE(model.d_model, given.features, k=24)
    vocabulary = Vocabulary.of(model.tokenizer)
    texts = sorted({vocabulary.text(token) for token in vocabulary.known.tolist()} - {"\ufffd"})  # parts of characters
    draw = np.random.default_rng(0)
    sizes = np.geomspace(5, 1000, given.sets).astype(int)
    chosen = [frozenset(np.array(texts)[draw.choice(len(texts), n, replace=False)].tolist()) for n in sizes]
    sets = {f"set {i}": each.__contains__ for i, each in enumerate(chosen)}
    ms.token_sets(sae, model, sets, latents=range(8), permutations=8, progress=False)
    ms.token_sets(sae, model, sets, latents=range(128), progress=False)
    size = f"{given.sets} sets x {given.features:,} features x {len(vocabulary):,} tokens"
    for name, permutations in (("1,000 permutations", 1000), ("the exact null", None)):
        start = time.perf_counter()
        found = ms.token_sets(sae, model, sets, permutations=permutations, progress=False)
        seconds = time.perf_counter() - start
        share = (found.p <= 0.05).mean()
        print(f"{size}, {name}: {seconds:.1f} s; p <= 0.05 of {share:.1%}", end="")
        print(f"; the bar is {BAR:.0f} s: {'met' if seconds <= BAR else 'missed'}" if permutations else "")


if __name__ == "__main__":
    main()
