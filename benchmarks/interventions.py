"""What interventions cost: steered generation beside plain, exact effects beside two forward passes, attribution.

    python benchmarks/interventions.py [--model /path/of/smollm2 --sae /path/of/its/run]

Without `--model` the bundled model with the dictionary of the tests. Every figure is the ratio of best times, ours and
the plain one in turns in one process.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import monosem as ms
from monosem.data import read_documents
from monosem.models import SubjectModel
from monosem.sae import SAE

DEMO_SAE = Path(__file__).parents[1] / "tests" / "data" / "demo_sae"
NEW_TOKENS, SETTINGS = 96, 16
CONTEXTS, LENGTH, PROMPT = 1_000, 32, 256
PROMPTS = ["The history of", "One day", "In the middle of the night", "The best way to"] * (SETTINGS // 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--sae", default=str(DEMO_SAE))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contexts", type=int, default=CONTEXTS)
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS)
    options = parser.parse_args()
    model, sae = ms.load_model(options.model), ms.load_sae(options.sae).float()
    print(f"{model}\n{sae.architecture} of {sae.n_latents:,} latents at {sae.metadata.hook}")
    print(f"{'':46} {'plain':>9} {'ours':>9}   share, bar")
    generation(model, sae, options.rounds, options.new_tokens)
    exact_effects(model, sae, options.rounds, options.contexts)
    attribution(model, sae, options.rounds)


def generation(model: SubjectModel, sae: SAE, rounds: int, new_tokens: int) -> None:
    """Tokens/s; a batch of 16 has 16 features, each row its own."""
    latents = torch.randperm(sae.n_latents, generator=torch.Generator().manual_seed(0))[:SETTINGS].tolist()
    own = torch.eye(SETTINGS)
    known = {"max_new_tokens": new_tokens, "temperature": 1.0, "top_k": 0}
    cases: list[tuple[str, Any, list[Any], float]] = [
        ("one text, Add", PROMPTS[0], [ms.Add(sae, latents[0], 2.0)], 0.85),
        ("one text, Scale (encodes)", PROMPTS[0], [ms.Scale(sae, latents[0], 2.0)], 0.85),
        ("one text, AddVector generated only", PROMPTS[0], [vector(model, sae)], 0.85),
        ("16 texts, 16 settings of Add", PROMPTS, [ms.Add(sae, latents, 2 * own)], 0.75),
        ("16 texts, 16 settings of Scale (encodes)", PROMPTS, [ms.Scale(sae, latents, 1 + own)], 0.75),
    ]
    for name, prompt, edits, bar in cases:
        count = [0, 0]

        def written(which: int, edits: list[Any], prompt: Any = prompt, count: list[int] = count) -> None:
            out = ms.generate(model, prompt, edits=edits, seed=1, **known)
            count[which] = sum(len(one.tokens) for one in (out if isinstance(out, list) else [out]))

        plain, ours = alternate(rounds, lambda: written(0, []), lambda e=edits: written(1, e))
        show(name, count[0] / plain, count[1] / ours, "tokens/s", bar, above=True)


def vector(model: SubjectModel, sae: SAE) -> Any:
    v = torch.randn(sae.d_in, generator=torch.Generator().manual_seed(1))
    return ms.AddVector(str(sae.metadata.hook), v, where=ms.Where(phase="generated"))


@torch.no_grad()
def exact_effects(model: SubjectModel, sae: SAE, rounds: int, n: int) -> None:
    """Seconds; of a latent that is on in most contexts, and the logits of both passes are needed by both."""
    tokens = bundled_tokens(model, n * LENGTH).reshape(n, LENGTH)
    sample = model.capture(tokens[:64], [str(sae.metadata.hook)])[str(sae.metadata.hook)]
    latent = int(sae.encode(sample).firing_counts().argmax())
    at_once = model.contexts_at_once(LENGTH)

    def two() -> None:
        for part in tokens.split(at_once):
            model(part)
            model(part)

    plain, ours = alternate(max(2, rounds // 2), two, lambda: ms.effects(model, sae, tokens, latent))
    show(f"effects of a latent, {n:,} contexts of {LENGTH}", plain, ours, "s", 1.2, above=False)


def attribution(model: SubjectModel, sae: SAE, rounds: int) -> None:
    tokens = bundled_tokens(model, min(PROMPT, model.context_length or PROMPT))[None]

    def one() -> None:
        leaf: list[torch.Tensor] = []

        def begin(x: torch.Tensor, _: Any) -> torch.Tensor:
            leaf.append(x.detach().clone().requires_grad_())
            return leaf[0].clone()

        with model.edit({model.hook_points[0]: begin}):
            logits = model._call(tokens).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), tokens[0, 1:])
        torch.autograd.grad(loss, leaf[0])

    plain, ours = alternate(rounds, one, lambda: ms.attribute(model, sae, tokens, "loss"))
    show(f"gradient x activation, {tokens.shape[1]} tokens", plain, ours, "s", 3, above=False)


def bundled_tokens(model: SubjectModel, n: int) -> torch.Tensor:
    found: list[int] = []
    for document in read_documents("bundled:held_out"):
        found += model.tokenizer(document.text, add_special_tokens=False)["input_ids"]
        if len(found) >= n:
            break
    return torch.tensor(found[:n], device=model.device)


def alternate(rounds: int, first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """The best seconds of each, in turns, after one of each that does not count."""
    best = [float("inf")] * 2
    for turn in range(rounds + 1):
        for which, work in enumerate((first, second)):
            begun = time.perf_counter()
            work()
            if turn:
                best[which] = min(best[which], time.perf_counter() - begun)
    return best[0], best[1]


def show(name: str, plain: float, ours: float, unit: str, bar: float, *, above: bool) -> None:
    share = ours / plain
    met = "met" if (share >= bar if above else share <= bar) else "NOT MET"
    form = "9,.0f" if unit == "tokens/s" else "9.3f"
    print(
        f"{name:46} {plain:{form}} {ours:{form}}   {share:.2f} {'>=' if above else '<='} {bar} {met} ({unit})",
        flush=True,
    )


if __name__ == "__main__":
    main()
