"""How often does a selection screened in bfloat16 differ from float32's? On the bundled model's activations.

    python benchmarks/screening.py [--tokens 300000] [--rows 100000]

TopK SAEs of two widths, first untrained, then trained; every held-out row is selected both ways. A row differs where
the sets of latents do; what is missed is the share of such a row's activation that the screened selection lacks. (A
BatchTopK selection is screened within a bound on bfloat16's error and misses nothing.) Prints JSON, a line each.
"""

import argparse
import json

import torch
from torch import Tensor

import monosem as ms
from monosem import kernels


def compare(sae: ms.SAE, rows: Tensor, k: int) -> dict[str, float]:
    """Rows that differ, of how many, and the activation missed on them."""
    different, missed = 0, 0.0
    with torch.no_grad():
        for x in rows.split(4096):
            arguments = (sae.centred(sae.transform(x)), sae.W_enc, sae.b_enc)
            exact, found = kernels.top_k(*arguments, k)
            screened, seen = kernels.top_k(*arguments, k, screen=True)
            rows_differ = (found.indices.view(-1, k).sort().values != seen.indices.view(-1, k).sort().values).any(1)
            different += int(rows_differ.sum())
            losses = 1 - screened.view(-1, k).relu().sum(1) / exact.view(-1, k).relu().sum(1)
            missed = max(missed, float(losses.max()))
    return {"rows": len(rows), "rows_differ": different, "most_missed": missed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    model, hook = ms.load_model("bundled"), "resid_post.2"
    held_out, parts = ms.activations(model, hook, "bundled:held_out"), list[Tensor]()
    while sum(map(len, parts)) < options.rows:
        parts.append(held_out.pool(len(parts)))
    rows = torch.cat(parts)[: options.rows]
    for n in (4096, 16384):
        sae = ms.TopKSAE(model.d_model, n, k=32)
        sae.initialise(rows[:16_384])
        print(json.dumps({"latents": n, "trained": 0, **compare(sae, rows, 32)}), flush=True)
        ms.train(sae, ms.activations(model, hook), tokens=options.tokens, progress=False)
        print(json.dumps({"latents": n, "trained": options.tokens, **compare(sae, rows, 32)}), flush=True)


if __name__ == "__main__":
    main()
