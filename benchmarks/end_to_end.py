"""What an end-to-end step costs, beside the model's own forward and backward and a local step of the dictionary.

    python benchmarks/end_to_end.py [MODEL] [--hook HOOK ...] [--batch 2048] [--latents 4096] [--rounds 5]

One step of a TopK dictionary on the same tokens of the bundled text, all that it takes counted: the pass that gives its
rows, the pass as the model is, the pass with the reconstruction put in, the gradient through it, and the dictionary's
step. The bar is at most 1.3 of (the model's own forward and backward + the dictionary's local step). `own` is the
cross-entropy's backward to the weights; `frozen` to the embeddings alone, which no training of the model would do.
Medians of interleaved rounds; hook points: after a quarter, a half and three quarters of the blocks.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

import monosem as ms
from monosem.activations import LiveActivations, Place
from monosem.models import SubjectModel

BAR = 1.3


def own_pass(model: SubjectModel, tokens: torch.Tensor, weights: bool) -> None:
    """Forward and backward of the next token's cross-entropy."""
    for part in tokens.split(model.contexts_at_once(tokens.shape[1])):
        rows = model.module.get_input_embeddings()(part)  # pyright: ignore
        rows = rows if weights else rows.detach().requires_grad_()
        logits = model.module(inputs_embeds=rows, use_cache=False).logits
        F.cross_entropy(logits[:, :-1].flatten(0, 1), part[:, 1:].flatten(), reduction="sum").backward()
    model.module.zero_grad()


def seconds(call: Callable[[], object], device: torch.device) -> float:
    begun = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="bundled")
    parser.add_argument("--hook", nargs="*", default=[])
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--latents", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    model = ms.load_model(given.model, device=given.device)
    hooks = given.hook or [f"resid_post.{max(0, round(share * model.n_layers) - 1)}" for share in (0.25, 0.5, 0.75)]
    print(f"{model}, {given.latents:,} latents, {given.batch:,} tokens; seconds")
    print("hook            own  frozen   local  end to end   of own  of frozen   + downstream   of own")
    for hook in hooks:
        live = LiveActivations(model, hook, context_length=given.context, buffer_tokens=given.batch)
        source = live.by_context()
        rows = source.pool(0)[: given.batch].clone()
        standing = source.standing(Place(), 0, len(rows))
        tokens = torch.cat([batch.tokens for batch, _ in standing]).to(model.device)
        sae = ms.TopKSAE(rows.shape[1], given.latents, k=32, device=given.device)
        trainer = ms.Trainer(sae)
        losses = [ms.EndToEnd(model).opened(source)]
        behind = [n for n in model.hook_points if n.startswith("resid_post.")].index(f"resid_post.{model.n_layers - 1}")
        if hook != f"resid_post.{behind}":
            losses.append(ms.EndToEnd(model, downstream=True).opened(source))

        def end_to_end(
            loss: object, hook: str = hook, standing: list = standing, trainer: ms.Trainer = trainer
        ) -> None:
            read = [model.capture(batch.inputs, [hook])[hook][where.to(model.device)] for batch, where in standing]
            trainer.step(torch.cat(read), loss=loss.on(standing))  # pyright: ignore

        kinds: dict[str, Callable[[], object]] = {
            "own": lambda tokens=tokens: own_pass(model, tokens, True),
            "frozen": lambda tokens=tokens: own_pass(model, tokens, False),
            "local": lambda trainer=trainer, rows=rows: trainer.step(rows).metrics,
            "kl": lambda loss=losses[0], step=end_to_end: step(loss),
            "downstream": lambda loss=losses[-1], step=end_to_end: step(loss),
        }
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(given.rounds + 1):
            for name, call in kinds.items():
                model.module.requires_grad_(name == "own")
                took = seconds(call, model.device)
                if number:
                    times[name].append(took)
        own, frozen, local, kl, downstream = (statistics.median(times[name]) for name in kinds)
        print(
            f"{hook:<14}{own:>6.3f}{frozen:>8.3f}{local:>8.3f}{kl:>12.3f}{kl / (own + local):>9.2f}"
            f"{kl / (frozen + local):>11.2f}{downstream:>15.3f}{downstream / (own + local):>9.2f}"
            + ("" if max(kl, downstream) <= BAR * (own + local) else f"   above {BAR}"),
            flush=True,
        )


if __name__ == "__main__":
    main()
