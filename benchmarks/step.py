"""Time one whole training step of a sparse autoencoder, in whichever library this interpreter has.

    python benchmarks/step.py LIBRARY [--batch 4096] [--d 768] [--n 24576] [--k 32] [--steps 6]

LIBRARY: matmul, matmul16 (the encoder's matmul alone, float32 and bfloat16), monosem-ARCHITECTURE[-VARIANT]
(VARIANTS: float32; aux, 20 % of the latents dead; sparse, k latents on per token, as late in a run of an architecture
with limits), saelens, saelens_relu, sparsify, dictionary_learning. A step is the library's own: forward, backward,
optimiser, norm upkeep. Two warm-up steps are not counted. Prints JSON: median seconds, the peak memory in GiB, and for
ours the latents on per token in the last step.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[torch.Tensor], object]


def matmul(d: int, n: int, k: int, batch: int, dtype: torch.dtype = torch.float32) -> Step:
    weight = torch.randn(n, d, dtype=dtype)
    out = torch.empty(1024, n, dtype=dtype)

    def step(x: torch.Tensor) -> None:
        for tile in x.to(dtype).split(1024):
            torch.mm(tile, weight.T, out=out[: len(tile)])

    return step


def monosem(name: str, d: int, n: int, k: int, batch: int) -> Step:
    import monosem as ms
    from monosem.sae import SAE

    _, architecture, *variants = name.split("-")
    kind = SAE.registry[architecture]
    sae = kind(d, n, **({"k": k} if "k" in kind.parameters_of() else {}))
    matmul = "float32" if "float32" in variants else "auto"
    config = ms.TrainingConfig(batch_size=batch, matmul=matmul, lr=1e-7 if "sparse" in variants else None)
    trainer = ms.Trainer(sae, config)
    if "sparse" in variants:
        make_sparse(sae, torch.randn(batch, d), k)
    if "aux" in variants:
        trainer.tokens = 10 * trainer.dead_after
        dead = torch.arange(n) % 5 == 0

        def step_with_dead(x: torch.Tensor) -> object:
            trainer.tokens_since_fired = torch.where(dead, 10 * trainer.dead_after, 0)
            return trainer.step(x).output.fired.sum().item() / len(x)

        return step_with_dead
    return lambda x: trainer.step(x).output.fired.sum().item() / len(x)


@torch.no_grad()
def make_sparse(sae: Any, x: torch.Tensor, k: int) -> None:
    """Set the limits of latents such that k are on per token."""
    sae.initialise(x)
    pre = torch.nn.functional.linear(sae.centred(sae.transform(x[:512])), sae.W_enc, sae.bias).flatten()
    sae.move_limits(pre.kthvalue(len(pre) - 512 * k).values - sae.limits.mean())
    sae.density.fill_(k / sae.n_latents)


def saelens_trainer(
    d: int, n: int, tokens: int, name: str, *, lr: float = 3e-4, batch: int = 4096, decay: bool = False, **settings: Any
) -> tuple[Any, Any]:
    """An SAE of SAELens ("TopK", "Standard", ...) and its trainer, at its defaults; with decay over the last 20 %."""
    import sae_lens
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    config = getattr(sae_lens, f"{name}TrainingSAEConfig")(d_in=d, d_sae=n, device="cpu", **settings)
    sae = getattr(sae_lens, f"{name}TrainingSAE")(config)
    trainer_config = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=tokens,
        device="cpu",
        autocast=False,
        lr=lr,
        lr_end=lr / 10,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=tokens // batch // 5 if decay else 0,
        n_restart_cycles=1,
        train_batch_size_samples=batch,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(sae=sae, data_provider=iter([]), evaluator=None, cfg=trainer_config)
    return sae, trainer


def saelens(d: int, n: int, k: int, batch: int) -> Step:
    sae, trainer = saelens_trainer(d, n, batch * 1000, "TopK", k=k)
    return lambda x: trainer._train_step(sae=sae, sae_in=x)


def saelens_relu(d: int, n: int, k: int, batch: int) -> Step:
    sae, trainer = saelens_trainer(d, n, batch * 1000, "Standard")
    return lambda x: trainer._train_step(sae=sae, sae_in=x)


def sparsify(d: int, n: int, k: int, batch: int, device: str = "cpu") -> Step:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    sae = SparseCoder(d, SparseCoderConfig(num_latents=n, k=k), device=device)
    optimizer = torch.optim.Adam(sae.parameters(), lr=3e-4)

    def step(x: torch.Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x)
        (out.fvu + out.auxk_loss / 32).backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()

    return step


def dictionary_learning(d: int, n: int, k: int, batch: int) -> Step:
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10_000, activation_dim=d, dict_size=n, k=k, layer=0, lm_name="none", seed=0, device="cpu"
    )
    return lambda x: trainer.update(1, x)


def build(library: str, d: int, n: int, k: int, batch: int) -> Step:
    if library.startswith("monosem-"):
        return monosem(library, d, n, k, batch)
    if library == "matmul16":
        return matmul(d, n, k, batch, torch.bfloat16)
    others = (matmul, saelens, saelens_relu, sparsify, dictionary_learning)
    return {f.__name__: f for f in others}[library](d, n, k, batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--d", type=int, default=768)
    parser.add_argument("--n", type=int, default=24576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    torch.manual_seed(0)
    batches = [torch.randn(options.batch, options.d) for _ in range(4)]
    step = build(options.library, options.d, options.n, options.k, options.batch)
    seconds, result = list[float](), None
    for i in range(options.steps + 2):
        start = time.perf_counter()
        result = step(batches[i % 4])
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures = {"library": options.library, "seconds": statistics.median(seconds[2:]), "peak_gib": peak}
    if isinstance(result, float):
        figures["l0"] = result
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
