"""What an attribution graph costs, and how exactly it adds up, beside the bars.

    python benchmarks/circuits.py                       # the bundled model, 250 tokens, 5,000 features
    python benchmarks/circuits.py --model MODEL --coders RUN... --tokens 60

Without `--coders` a transcoder of 4,096 latents (24 on) stands for each MLP, of random directions: time and memory do
not depend on what latents mean. Memory is the most that the process has held.
"""

import argparse
import resource
import time

import torch

import monosem as ms
from monosem.circuits import plan_trace
from monosem.models import SubjectModel
from monosem.sae import SAE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--coders", nargs="*", default=[], help="run folders of transcoders")
    parser.add_argument("--tokens", type=int, default=250)
    parser.add_argument("--features", type=int, default=5_000)
    parser.add_argument("--edges", type=float, default=1.0)
    parser.add_argument("--verify", type=int, default=0)
    options = parser.parse_args()
    model = ms.load_model(options.model)
    coders = [ms.load_sae(path) for path in options.coders] or random_coders(model)
    size = model.module.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(3, size, (1, options.tokens), generator=torch.Generator().manual_seed(0))
    limits = {"max_features": options.features, "edges": options.edges}
    print(f"{model}\nexpected: {plan_trace(model, coders, options.tokens, **limits)}")
    start = time.perf_counter()
    graph = ms.trace(model, coders, tokens, **limits)
    seconds = time.perf_counter() - start
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{graph.n_features:,} features, {graph.n_sources:,} sources, {len(graph.values):,} edges")
    print(f"time                {seconds:9.1f} s      bars: 20 s (bundled, 250 tokens), 60 s (SmolLM2, 60 tokens)")
    print(f"memory              {held:9.2f} GiB    bars: 2 GiB (bundled), 4 GiB (SmolLM2, 400 tokens)")
    print(f"conservation error  {graph.audit().largest_error:9.1e}        bar: 1e-04 of a row's absolute sum")
    if options.verify:
        print(graph.verify(options.verify))


def random_coders(model: SubjectModel) -> list[SAE]:
    """A transcoder for each MLP."""
    names = [f"{point}.{layer}" for layer in range(model.n_layers) for point in ("mlp_in", "mlp_out")]
    size = model.module.get_input_embeddings().weight.shape[0]
    sample = torch.randint(3, size, (1, 64), generator=torch.Generator().manual_seed(1))
    seen = model.capture(sample, names)
    found: list[SAE] = []
    for layer in range(model.n_layers):
        one = ms.Transcoder(model.d_model, 4_096, k=24, seed=layer)
        one.initialise(seen[f"mlp_in.{layer}"][0], seen[f"mlp_out.{layer}"][0])
        known = {"hook": f"mlp_in.{layer}", "target_hook": f"mlp_out.{layer}"}
        one.metadata = one.metadata.model_copy(update=known)
        found.append(one)
    return found


if __name__ == "__main__":
    main()
