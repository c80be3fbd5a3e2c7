"""What an attribution graph costs, and how exactly it adds up, beside the bars.

    python benchmarks/circuits.py                       # the bundled model, 250 tokens, 5,000 features
    python benchmarks/circuits.py --model MODEL --coders RUN... --tokens 60
    python benchmarks/circuits.py --layers 26 --tokens 2300 --features 2000   # a narrow model of so many layers
    python benchmarks/circuits.py --peer PYTHON         # beside circuit-tracer, in one call

Without `--coders` a transcoder of 4,096 latents (24 on) stands for each MLP, of random directions: time and memory do
not depend on what latents mean. Memory is the most that the process has held.

PYTHON is an interpreter that has circuit-tracer and TransformerLens 2 (`make interop` makes one in
tests/interop/.peers/transformer_lens_2). Both trace the same prompt of the bundled model with the same JumpReLU
transcoders, to the same tokens, with as many features; the model and the set are handed to it by object.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path

import torch
import transformers

import monosem as ms
from monosem.circuits import plan_trace
from monosem.models import SubjectModel
from monosem.sae import SAE

SCRIPT = Path(__file__).parents[1] / "tests" / "interop" / "peers" / "circuit_tracer_graph.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--coders", nargs="*", default=[], help="run folders of transcoders")
    parser.add_argument("--tokens", type=int, default=250)
    parser.add_argument("--features", type=int, default=5_000)
    parser.add_argument("--edges", type=float, default=1.0)
    parser.add_argument("--verify", type=int, default=0)
    parser.add_argument("--layers", type=int, help="a narrow model of random weights with so many layers")
    parser.add_argument("--peer", type=Path, help="an interpreter that has circuit-tracer")
    options = parser.parse_args()
    if options.peer is not None:
        beside_peer(options.peer)
        return
    model = ms.load_model(options.model) if options.layers is None else narrow(options.layers, options.tokens)
    coders = [ms.load_sae(path) for path in options.coders] or random_coders(model)
    size = model.module.get_input_embeddings().weight.shape[0]
    tokens = torch.randint(3, size, (1, options.tokens), generator=torch.Generator().manual_seed(0))
    limits = {"max_features": options.features, "edges": options.edges}
    before = resident()
    print(f"{model}\nexpected: {plan_trace(model, coders, options.tokens, **limits)}")
    start, worked = time.perf_counter(), time.process_time()
    graph = ms.trace(model, coders, tokens, **limits)
    seconds, worked = time.perf_counter() - start, time.process_time() - worked
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{graph.n_features:,} features, {graph.n_sources:,} sources, {len(graph.values):,} edges")
    print(f"time                {seconds:9.1f} s      ({worked:.1f} s of processors)")
    print("                                 bars: 20 s (bundled, 250 tokens), 60 s (SmolLM2, 60 tokens)")
    print(f"memory              {held:9.2f} GiB    ({held - before:.2f} beside model, dictionaries and libraries)")
    print("                                 bars: 2 GiB (bundled), 4 GiB (SmolLM2, 400 tokens), 3 GiB (26 x 2,300)")
    print(f"conservation error  {graph.audit().largest_error:9.1e}        bar: 1e-04 of a row's absolute sum")
    if options.verify:
        print(graph.verify(options.verify))


def beside_peer(python: Path, length: int = 64, features: int = 2_000, batch: int = 128) -> None:
    """Both, one after the other: seconds of the graph alone, model and transcoders loaded."""
    model = ms.load_model("bundled")
    generator = torch.Generator().manual_seed(0)
    tokens = [0, *torch.randint(3, 4_096, (length - 1,), generator=generator).tolist()]
    targets = model.forward(torch.tensor([tokens]))[0, -1].topk(10).indices.tolist()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.module.save_pretrained(folder / "model")
        for coder in jumping_coders(model, tokens):
            ms.export_sae(coder, folder / "coders", "circuit_tracer")
        task = {"tokens": tokens, "targets": targets, "features": features, "batch": batch}
        (folder / "task.json").write_text(json.dumps(task))
        coders = [ms.load_sae(folder / "coders" / f"layer_{layer}.safetensors") for layer in range(model.n_layers)]
        start, worked = time.perf_counter(), time.process_time()
        graph = ms.trace(model, coders, tokens, targets, max_features=features, progress=False)
        ours, worked = time.perf_counter() - start, time.process_time() - worked
        run = [str(python), str(SCRIPT), str(folder)]
        done = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True)
        theirs = json.loads(done.stdout.splitlines()[-1])
    active = graph.settings["active_features"]
    print(f"bundled model, {length} tokens, {graph.n_features:,} of {active:,} features, {len(targets)} logits")
    shares = ours / theirs["seconds"], worked / theirs["worked"]
    print(f"monosem             {ours:9.2f} s     ({worked:.2f} s of processors)")
    print(f"circuit-tracer      {theirs['seconds']:9.2f} s     ({theirs['worked']:.2f} s, {batch} rows at a time)")
    print(f"share               {shares[0]:9.2f}       ({shares[1]:.2f} of processors)   bar: at most 0.20")


def resident() -> float:
    """GiB that the process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**30


def narrow(layers: int, length: int) -> SubjectModel:
    """A Llama of two heads of 32 with random weights: as deep and with as long a context as asked for."""
    config = transformers.LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=length,
    )
    torch.manual_seed(0)
    return SubjectModel(transformers.LlamaForCausalLM(config).eval(), None, f"{layers} layers")


def jumping_coders(model: SubjectModel, tokens: list[int], n_latents: int = 4_096, on: int = 24) -> list[SAE]:
    """A transcoder for each MLP, random, its threshold such that about so many latents are on at a position."""
    names = [f"{point}.{layer}" for layer in range(model.n_layers) for point in ("mlp_in", "mlp_out")]
    seen = model.capture(torch.tensor([tokens]), names)
    found: list[SAE] = []
    for layer in range(model.n_layers):
        reads, wanted = seen[f"mlp_in.{layer}"][0], seen[f"mlp_out.{layer}"][0]
        one = ms.JumpReLUSkipTranscoder(model.d_model, n_latents, transform="none", seed=layer)
        one.initialise(reads, wanted)
        with torch.no_grad():
            before = (reads @ one.W_enc.T + one.b_enc).flatten()
            one.threshold.fill_(float(before.kthvalue(len(before) - on * len(reads)).values.clamp_min(0)))
        known = {"hook": f"mlp_in.{layer}", "target_hook": f"mlp_out.{layer}"}
        one.metadata = one.metadata.model_copy(update=known)
        found.append(one)
    return found


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
