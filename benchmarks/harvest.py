"""What harvesting costs, what a store weighs, how fast it is read; and SAEDashboard on the same model, SAE and text.

    python benchmarks/harvest.py [RUN] [--tokens 1000000] [--store-latents 1000000] [--dashboard]

RUN is a finished run; an untrained SAE of 4,096 latents if left out. Forward, encode and harvest are timed batch by
batch in one pass, so that whatever else the machine does slows all three alike.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import peers
import torch
from explorer import widen

import monosem as ms
from monosem.data import PackedText, read_documents
from monosem.features import FeatureStore, HarvestObserver, HarvestSettings, new_harvest, write_store

HERE = Path(__file__).parent
HOOK = "resid_post.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--store-latents", type=int, default=1_000_000)
    parser.add_argument("--dashboard", action="store_true", help="only compare with SAEDashboard")
    parser.add_argument("--dashboard-prompts", type=int, default=2048, help="of 128 tokens")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    model = ms.load_model("bundled")
    if options.dashboard:
        dashboard(model, options.dashboard_prompts)
        return
    sae = ms.load_sae(options.run) if options.run else untrained(model)
    with tempfile.TemporaryDirectory() as folder:
        store = passing(sae, model, options.tokens, Path(folder) / "features")
        reading(store)
        wide(Path(folder) / "wide", store, options.store_latents)


def untrained(model: ms.SubjectModel) -> ms.SAE:
    sae = ms.TopKSAE(model.d_model, 4096, k=24)
    sae.initialise(model.capture(text_of(model).read(0, 16).tokens, [HOOK])[HOOK].reshape(-1, model.d_model))
    return sae


def text_of(model: ms.SubjectModel, length: int = 256) -> PackedText:
    return PackedText(read_documents("bundled"), model.tokenizer, length)


def passing(sae: ms.SAE, model: ms.SubjectModel, tokens: int, folder: Path) -> FeatureStore:
    """One pass, timed stage by stage."""
    contexts = text_of(model)
    compile_kernels(sae, model, contexts)
    harvest = new_harvest(sae, model, HOOK, "bundled")
    observer = HarvestObserver(harvest, sae)
    seconds = {"forward": 0.0, "encode": 0.0, "harvest": 0.0}
    at_once = model.contexts_at_once(256)
    for start in range(0, -(-tokens // 256), at_once):
        batch = contexts.read(start, start + at_once)
        kept = ~(batch.special | batch.padding)
        clock = [time.perf_counter()]
        x = model.capture(batch.tokens, [HOOK])[HOOK][kept]
        clock.append(time.perf_counter())
        codes = sae.encode(x)
        clock.append(time.perf_counter())
        observer(batch, kept, codes, x)
        clock.append(time.perf_counter())
        for name, spent in zip(seconds, np.diff(clock), strict=True):
            seconds[name] += float(spent)
    begun = time.perf_counter()
    store = FeatureStore(write_store(harvest, folder, sae, model))
    writing = time.perf_counter() - begun
    plain = seconds["forward"] + seconds["encode"]
    share = plain / (plain + seconds["harvest"])
    n = harvest.n_tokens
    print(f"{n:,} tokens, {sae.n_latents:,} latents: " + ", ".join(f"{k} {v:.1f} s" for k, v in seconds.items()))
    show(
        "tokens/s of harvest over forward + encode",
        f"{share:.1%} ({n / (plain + seconds['harvest']):,.0f})",
        share,
        0.8,
    )
    beyond = seconds["encode"] + seconds["harvest"] + writing
    show("beyond the model's forward, with writing", f"{beyond:.1f} s (writing {writing:.1f})", -beyond, -60)
    size = sum(part["bytes"] for table in store.index["tables"].values() for part in table["parts"]) / sae.n_latents
    examples = store.sql("select count(*)::double / ? as n from examples", [sae.n_latents]).column("n")[0].as_py()
    show(f"bytes a feature on disk, {examples:.0f} examples", f"{size:,.0f}", -size, -3072)
    show("bytes of memory a latent", f"{harvest.memory_per_latent:,.0f}", -harvest.memory_per_latent, -8192)
    return store


def compile_kernels(sae: ms.SAE, model: ms.SubjectModel, contexts: PackedText) -> None:
    """Numba compiles once per machine, and keeps it."""
    warm = new_harvest(sae, model, HOOK, "warm", HarvestSettings(near_every=1))
    batch = contexts.read(0, 2)
    kept = ~batch.special
    x = model.capture(batch.tokens, [HOOK])[HOOK][kept]
    HarvestObserver(warm, sae)(batch, kept, sae.encode(x), x)
    with tempfile.TemporaryDirectory() as folder:
        write_store(warm, folder, sae, model)


def reading(store: FeatureStore) -> None:
    latents = np.random.default_rng(0).choice(store.n_latents, 60, replace=False).tolist()
    spent: list[float] = []
    for latent in latents:
        begun = time.perf_counter()
        store[latent]
        spent.append(1000 * (time.perf_counter() - begun))
    median = statistics.median(spent[10:])
    show("one feature, read whole", f"{median:.1f} ms", -median, -20)


def wide(folder: Path, like: FeatureStore, n: int) -> None:
    """A page of the feature table of a wide dictionary: the rows of a real one, many times over, with noise."""
    widen(like, folder, n)
    store = FeatureStore(folder)
    spent: list[float] = []
    for i in range(12):
        begun = time.perf_counter()
        page = store.table(f"rate between 1e-3 and 1e-2 and max > {2 + i / 10}", sort="-max", limit=50, offset=50 * i)
        spent.append(1000 * (time.perf_counter() - begun))
        assert len(page) == 50
    median = statistics.median(spent[2:])
    show(f"a filtered, sorted page of {n:,} features", f"{median:.0f} ms", -median, -150)


def show(what: str, measured: str, value: float, bar: float) -> None:
    print(f"{what:<48} {measured:>24}   bar {abs(bar):g}: {'met' if value >= bar else 'missed'}")


def dashboard(model: ms.SubjectModel, prompts: int) -> None:
    """SAEDashboard beside a harvest on the same ReLU SAE and tokens, both with the model's forward and with writing.

    Features per minute of SAEDashboard as its README uses it, which runs the model anew for every 64 features; and as
    its script for Neuronpedia does, 128 at a time: of the script's first batch, which runs the model and caches its
    activations, and of a whole dictionary, which takes that and as many like the second as there are others. A harvest
    has all features at once; more than half of its time is the model's forward, which no store can be without.
    """
    if not peers.set_up("sae_dashboard"):
        raise SystemExit("SAEDashboard cannot be installed here")
    contexts = PackedText(read_documents("bundled"), model.tokenizer, 128)
    sae = ms.ReLUSAE(model.d_model, 4096)
    source = ms.activations(model, HOOK, context_length=128)
    with torch.enable_grad():
        ms.train(sae, source, tokens=400_000, progress=False)
    compile_kernels(sae, model, text_of(model, 128))
    tokens = contexts.read(0, prompts).tokens
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        ms.harvest(sae, Path(folder) / "ours", model, HOOK, text="bundled", tokens=tokens.numel(), progress=False)
        ours = time.perf_counter() - begun
        np.savez(Path(folder) / "task.npz", tokens=tokens.numpy(), **raw_weights(sae))
        module: Any = model.module
        module.save_pretrained(Path(folder) / "model")
        model.tokenizer.save_pretrained(Path(folder) / "model")
        about = Path(folder) / "model" / "tokenizer_config.json"  # its transformers is older and knows not the class
        about.write_text(json.dumps(json.loads(about.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
        command = [str(peers.python_of("sae_dashboard")), str(HERE / "dashboard.py"), folder, "2"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        said = json.loads(done.stdout.splitlines()[-1])
    (first, later), size = said["script"]["seconds"], said["script"]["features"]
    l0 = sae.encode(model.capture(tokens[:16], [HOOK])[HOOK]).l0().double().mean().item()
    print(f"ReLU SAE of {sae.n_latents:,} latents, L0 {l0:.0f}, {tokens.numel():,} tokens; ours: {ours:.1f} s for all")
    quick, n = said["readme"]["seconds"], said["readme"]["features"]
    print(f"SAEDashboard's README: {quick:.0f} s for {n} features")
    print(f"    its script: {first:.0f} s for the first {size}, {later:.0f} s for the next {size}")
    rate, quick_rate, one = (60 * count / spent for count, spent in ((sae.n_latents, ours), (n, quick), (size, first)))
    whole = 60 * sae.n_latents / (first + later * (sae.n_latents / size - 1))
    ratio = rate / quick_rate
    show("features/min over SAEDashboard's", f"{rate:,.0f} / {quick_rate:,.0f} = {ratio:.0f}x", ratio, 50)
    print(f"    over its script's first batch: {rate:,.0f} / {one:,.0f} = {rate / one:.0f}x")
    print(f"    over its script's whole dictionary: {rate:,.0f} / {whole:,.0f} = {rate / whole:.0f}x")


def raw_weights(sae: ms.SAE) -> dict[str, Any]:
    """The encoder on raw activations, the transform folded in: the same pre-activations up to one scale."""
    x = torch.eye(sae.d_in)
    zero = torch.zeros(1, sae.d_in)
    offset = sae.transform(zero)  # the transform is affine: t(x) = x A + offset
    A = sae.transform(x) - offset
    W_enc = sae.W_enc @ A.T
    b_enc = sae.b_enc + (offset - sae.b_dec) @ sae.W_enc.T
    sample = torch.randn(8, sae.d_in)
    ours = sae.encode(sample).to_dense()
    assert torch.allclose(ours, torch.relu(sample @ W_enc.T + b_enc), atol=1e-3, rtol=1e-3)
    folded = {"W_enc": W_enc, "b_enc": b_enc[0], "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    return {name: value.detach().numpy() for name, value in folded.items()}


if __name__ == "__main__":
    main()
