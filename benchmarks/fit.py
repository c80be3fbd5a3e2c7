"""Train one sparse autoencoder at a library's own defaults, and measure it on rows that it has not seen.

    python benchmarks/fit.py LIBRARY TRAIN.npy HELD_OUT.npy [--n 4096] [--k 32] [--tokens 1000000] [--seed 0]
        [--architecture topk] [--coefficient 1.0]

LIBRARY: monosem, saelens, sparsify, dictionary_learning, of which the last two have topk alone here. The same rows, in
the same order, for all. ARCHITECTURE: topk, batchtopk, matryoshka, relu, gated, jumprelu; without a k, monosem gets it
as target_l0, and SAELens a coefficient of its penalty. Prints JSON: FVU (centred, on the held-out rows), the share of
latents that fire on them, mean L0, seconds.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

Reconstruct = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Rows to their reconstruction and their dense codes."""


def batches(rows: np.ndarray, size: int, tokens: int, seed: int) -> Iterator[torch.Tensor]:
    rng, done = np.random.default_rng(seed), 0
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(rows) - size + 1, size):
            if done + size > tokens:
                return
            done += size
            yield torch.from_numpy(rows[order[start : start + size]])


@dataclass(frozen=True)
class Task:
    """What to train, alike for all libraries."""

    architecture: str
    n: int
    k: int
    tokens: int
    seed: int
    coefficient: float


def monosem(rows: np.ndarray, task: Task) -> Reconstruct:
    import monosem as ms

    n, k, tokens, seed = task.n, task.k, task.tokens, task.seed
    kind = ms.SAE.registry[task.architecture]
    sae = kind(rows.shape[1], n, seed=seed, **{"k" if "k" in kind.parameters_of() else "target_l0": k})
    ms.train(sae, ms.activations(rows, seed=seed), tokens=tokens, progress=False)
    return lambda x: (sae(x).reconstruction, sae.encode(x).to_dense())


def saelens(rows: np.ndarray, task: Task) -> Reconstruct:
    """Its defaults, but for k or the coefficient of the penalty, and the widths of Matryoshka, which has none: ours."""
    from step import saelens_trainer

    k, penalty, n = {"k": task.k}, {"l1_coefficient": task.coefficient}, task.n
    name, settings = {
        "topk": ("TopK", k),
        "batchtopk": ("BatchTopK", k),
        "matryoshka": ("MatryoshkaBatchTopK", {**k, "matryoshka_widths": [n // 8, n // 4, n // 2, n]}),
        "relu": ("Standard", penalty),
        "gated": ("Gated", penalty),
        "jumprelu": ("JumpReLU", {"l0_coefficient": task.coefficient}),
    }[task.architecture]
    sae, trainer = saelens_trainer(rows.shape[1], n, task.tokens, name, **settings)
    for x in batches(rows, 4096, task.tokens, task.seed):
        trainer._train_step(sae=sae, sae_in=x)

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = sae.encode(x)
        return sae.decode(codes), codes

    return reconstruct


def sparsify(rows: np.ndarray, task: Task) -> Reconstruct:
    """Its defaults: signum, schedule-free, at its own rate; b_dec from the mean of the first batch."""
    from schedulefree import ScheduleFreeWrapper
    from sparsify.config import SparseCoderConfig
    from sparsify.sign_sgd import SignSGD
    from sparsify.sparse_coder import SparseCoder

    n, k, tokens, seed = task.n, task.k, task.tokens, task.seed
    sae = SparseCoder(rows.shape[1], SparseCoderConfig(num_latents=n, k=k))
    optimizer = ScheduleFreeWrapper(SignSGD(sae.parameters(), lr=5e-3 / (n / 2**14) ** 0.5), momentum=0.95)
    optimizer.train()
    for i, x in enumerate(batches(rows, 4096, tokens, seed)):
        if i == 0:
            sae.b_dec.data = x.mean(0)
        sae.set_decoder_norm_to_unit_norm()
        sae(x).fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
    optimizer.eval()

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = sae(x)
        return out.sae_out, torch.zeros(len(x), n).scatter(1, out.latent_indices, out.latent_acts)

    return reconstruct


def dictionary_learning(rows: np.ndarray, task: Task) -> Reconstruct:
    """Its defaults, and its demonstration's batch of 2048; of its 1,000 steps of warm-up a tenth of the run at most."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    n, k, tokens, seed = task.n, task.k, task.tokens, task.seed
    steps = tokens // 2048
    trainer = TopKTrainer(
        steps=steps,
        activation_dim=rows.shape[1],
        dict_size=n,
        k=k,
        layer=0,
        lm_name="none",
        seed=seed,
        device="cpu",
        warmup_steps=min(1000, steps // 10),
    )
    for i, x in enumerate(batches(rows, 2048, tokens, seed)):
        trainer.update(i, x)

    def reconstruct(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes = trainer.ae.encode(x)
        return trainer.ae.decode(codes), codes

    return reconstruct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("train")
    parser.add_argument("held_out")
    parser.add_argument("--n", type=int, default=4096)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--architecture", default="topk")
    parser.add_argument("--coefficient", type=float, default=1.0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    fits = {f.__name__: f for f in (monosem, saelens, sparsify, dictionary_learning)}
    start = time.perf_counter()
    rows = np.load(options.train)
    o = options
    task = Task(o.architecture, o.n, o.k, o.tokens, o.seed, o.coefficient)
    reconstruct = fits[o.library](rows, task)
    seconds = time.perf_counter() - start
    held_out = torch.from_numpy(np.load(options.held_out))
    error, on, l0 = 0.0, torch.zeros(options.n, dtype=torch.bool), 0.0
    with torch.no_grad():
        for x in held_out.split(4096):
            rebuilt, codes = reconstruct(x)
            error += (x - rebuilt).double().pow(2).sum().item()
            on |= (codes != 0).any(0)
            l0 += (codes != 0).sum().item()
    total = (held_out.double() - held_out.double().mean(0)).pow(2).sum().item()
    alive = on.double().mean().item()
    print(json.dumps({"fvu": error / total, "alive": alive, "l0": l0 / len(held_out), "seconds": seconds}))


if __name__ == "__main__":
    main()
