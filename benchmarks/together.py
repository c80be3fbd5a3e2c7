"""Four dictionaries (two hooks, two k) from one pass of the bundled model, against that pass and their steps alone.

    python benchmarks/together.py [--tokens 262144] [--n 4096] [--rounds 3]

The bar: the run takes at most the time of the pass plus 1.1 times the time of the steps. The pass is what it takes to
make the same pools of both hook points and throw them away; the steps are those of the same four dictionaries on
batches that lie ready in memory. The best of the rounds counts. Prints JSON; `ratio` is at most 1 where the bar holds.
"""

import argparse
import json
import time

import monosem as ms
from monosem.activations import ActivationSource, LiveActivations, batches

HOOKS, KS, BATCH = ("attn_out.1", "resid_post.2"), (16, 32), 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model, config = ms.load_model("bundled"), ms.TrainingConfig(batch_size=BATCH)
    n_steps = options.tokens // BATCH

    def opened() -> LiveActivations:
        return LiveActivations(model, HOOKS, buffer_tokens=options.tokens // 4)

    def saes() -> dict[str, ms.SAE]:
        return {f"{hook}-k{k}": ms.TopKSAE(model.d_model, options.n, k=k) for hook in HOOKS for k in KS}

    def one_pass() -> float:
        source, start = opened(), time.perf_counter()
        for _, _ in zip(range(n_steps), batches(source, BATCH), strict=False):
            pass
        return time.perf_counter() - start

    def steps() -> float:
        source = opened()
        ready = {
            hook: [rows for (rows, _), _ in zip(batches(source.select(hook), BATCH), range(8), strict=False)]
            for hook in HOOKS
        }
        trainers = {name: ms.Trainer(sae, config, options.tokens) for name, sae in saes().items()}
        for name, trainer in trainers.items():
            trainer.sae.initialise(ready[name.rpartition("-")[0]][0])
        start = time.perf_counter()
        for number in range(n_steps):
            for name, trainer in trainers.items():
                trainer.step(ready[name.rpartition("-")[0]][number % 8])
        return time.perf_counter() - start

    def together() -> float:
        source = opened()
        sources: dict[str, ActivationSource] = {name: source.select(name.rpartition("-")[0]) for name in saes()}
        start = time.perf_counter()
        ms.train_together(saes(), sources, tokens=options.tokens, config=config, progress=False)
        return time.perf_counter() - start

    ms.train(ms.TopKSAE(model.d_model, options.n, k=8), opened().select(HOOKS[0]), tokens=3 * BATCH, progress=False)
    seconds = {f.__name__: [] for f in (one_pass, steps, together)}
    for _ in range(options.rounds):
        for measure in (one_pass, steps, together):
            seconds[measure.__name__].append(measure())
    best = {name: min(times) for name, times in seconds.items()}
    best["ratio"] = best["together"] / (best["one_pass"] + 1.1 * best["steps"])
    print(json.dumps({name: round(value, 3) for name, value in best.items()}))


if __name__ == "__main__":
    main()
