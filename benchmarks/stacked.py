"""Eight SAEs on one stream of the bundled model, and the same eight trained one after the other.

    python benchmarks/stacked.py [--tokens 1000000] [--n 4096] [--hook resid_post.2]

Different k, learning rate and seed; the model's forward is included. Prints JSON: seconds of both, and whether the
weights are the same bits.
"""

import argparse
import json
import time

import torch

import monosem as ms

KS = (8, 12, 16, 24, 32, 40, 48, 64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--hook", default="resid_post.2")
    options = parser.parse_args()
    model = ms.load_model("bundled")
    configs = {f"k{k}": ms.TrainingConfig(lr=2e-3 if i % 2 else 1e-3) for i, k in enumerate(KS)}

    def saes() -> dict[str, ms.SAE]:
        return {f"k{k}": ms.TopKSAE(model.d_model, options.n, k=k, seed=i) for i, k in enumerate(KS)}

    def source() -> object:
        return ms.activations(model, options.hook)

    ms.train(ms.TopKSAE(model.d_model, options.n, k=8), source(), tokens=10_000, progress=False)  # compile the kernels
    start = time.perf_counter()
    together = ms.train_together(saes(), source(), tokens=options.tokens, config=configs, progress=False)
    middle = time.perf_counter()
    alone = {
        name: ms.train(sae, source(), tokens=options.tokens, config=configs[name], progress=False)
        for name, sae in saes().items()
    }
    end = time.perf_counter()
    same = all(
        torch.equal(tensor, together[name].sae.state_dict()[key])
        for name, result in alone.items()
        for key, tensor in result.sae.state_dict().items()
    )
    print(json.dumps({"together": middle - start, "alone": end - middle, "same_bits": same}))


if __name__ == "__main__":
    main()
