"""A training step on one GPU beside the encoder's matmul alone, by each screen; exact encoding beside dense; the bars.

    python benchmarks/gpu.py [--batch 4096] [--d 2304] [--n 65536] [--k 64] [--steps 20] [--sparsify] [--profile]

Times are medians of CUDA events, after five steps that are not counted. `--sparsify` times that library's step too,
where it is installed. `--profile` prints instead the kernels that the time of a whole step goes to.

The rows are sums of `k` of 16,384 directions and noise, and the dictionary has learned from them for 200 steps before
its selections are compared. The demo's dictionary is compared on activations of the bundled model, too.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from step import Step, sparsify
from torch.nn.functional import linear, normalize

import monosem as ms
from monosem import kernels
from monosem.kernels import cuda, matmul
from monosem.kernels.triton_screens import Screen, rounded
from monosem.sae import TrainingContext

DEVICE = torch.device("cuda")

WARM_UP = 5


def seconds(step: Step, batches: list[torch.Tensor], steps: int) -> float:
    """The median time of a step on the device."""
    for i in range(WARM_UP):
        step(batches[i % len(batches)])
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(steps)]
    for i, (start, stop) in enumerate(events):
        start.record()
        step(batches[i % len(batches)])
        stop.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in events) / 1000


def matmul16(d: int, n: int) -> Step:
    weight = torch.randn(n, d, device=DEVICE, dtype=torch.bfloat16)
    return lambda x: x.bfloat16() @ weight.T


def monosem(sae: ms.TopKSAE, screen: kernels.Precision | None = None) -> tuple[Step, Step]:
    """A step without the optimiser, and a whole one."""
    trainer = ms.Trainer(sae)
    trainer.screen = screen or trainer.screen

    def without_optimiser(x: torch.Tensor) -> None:
        inputs = sae.transform(x)
        sae.training_loss(inputs, inputs, TrainingContext(trainer.screen)).loss.backward()
        for parameter in sae.parameters():
            parameter.grad = None

    return without_optimiser, trainer.step


def planted(d: int, k: int, batch: int, seed: int) -> Callable[[], torch.Tensor]:
    """Batches of sums of k of 16,384 directions."""
    generator = torch.Generator(DEVICE).manual_seed(seed)
    directions = normalize(torch.randn(16_384, d, device=DEVICE, generator=torch.Generator(DEVICE).manual_seed(0)))

    def rows() -> torch.Tensor:
        places = torch.randint(0, 16_384, (batch, k), device=DEVICE, generator=generator)
        sizes = torch.empty(batch, k, device=DEVICE).exponential_(generator=generator)
        offsets = torch.arange(batch + 1, device=DEVICE) * k
        noise = 0.02 * torch.randn(batch, d, device=DEVICE, generator=generator)
        return cuda.weighted_sum(sizes.flatten(), places.flatten().int(), offsets, directions) + noise + 0.1

    return rows


def known() -> list[kernels.Precision]:
    """The precisions of this GPU; of others it is said why it has them not."""
    found = list[kernels.Precision]()
    for name in ("bfloat16", "int8", "float8"):
        if kernels.knows(name, DEVICE):
            found.append(name)
            continue
        try:
            matmul._matmul(matmul._dtype(name), DEVICE)()
            why = "it can be had, and failed when it was timed"
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            why = str(error).splitlines()[0]
        print(f"no {name}: {why}")
    return found


def differing(x: torch.Tensor, sae: ms.TopKSAE, screen: kernels.Precision) -> tuple[int, int]:
    """Rows whose selection by a rough screen, and by an exact one, is not float32's."""
    W, bias, k = sae.W_enc.detach(), sae.b_enc.detach(), sae.k
    true = cuda.top_k_screened(x, W, bias, k, "float32", True)[1].sort().values
    rough = kernels.top_k(x, W, bias, k, screen=screen)[1].indices.reshape(len(x), k).sort().values
    exact = true
    if screen != "float8":
        exact = cuda.top_k_screened(x, W, bias, k, screen, True)[1].sort().values
    return int((rough != true).any(1).sum()), int((exact != true).any(1).sum())


def compare_demo(screens: list[kernels.Precision]) -> None:
    """Selections of the demo's dictionary on real activations."""
    sae = ms.load_sae(Path(__file__).parents[1] / "tests" / "data" / "demo_sae").to(DEVICE).float()
    assert isinstance(sae, ms.TopKSAE)
    source = ms.activations(ms.load_model("bundled"), "resid_post.2", "bundled:held_out", buffer_tokens=16_384)
    parts = [sae.centred(sae.transform(source.pool(i).to(DEVICE))).detach() for i in range(3)]
    rows = sum(len(part) for part in parts)
    for screen in screens:
        rough, exact = (sum(column) for column in zip(*(differing(x, sae, screen) for x in parts), strict=True))
        print(f"demo's dictionary, {rows:,} rows, {screen}: training {rough / rows:.3%} differ, exact {exact} rows")


def print_profile(step: Callable[[torch.Tensor], object], x: torch.Tensor) -> None:
    for _ in range(WARM_UP):
        step(x)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(5):
            step(x)
    print(profile.key_averages().table(sort_by="self_device_time_total", row_limit=30))


Bars = list[tuple[str, float, str, bool]]


def print_steps(sae: ms.TopKSAE, screens: list[kernels.Precision], batches: list[torch.Tensor], steps: int) -> Bars:
    """A step with each screen, beside the matmul in bfloat16; the bars of the one that is taken."""
    product, bars = seconds(matmul16(sae.d_in, sae.n_latents), batches, steps), Bars()
    print(f"matmul in bfloat16 {1000 * product:.2f} ms\n")
    print("| screen | product, ms | selection, ms | without optimiser / matmul | whole / matmul | rows/s | GiB |")
    print("|---|---|---|---|---|---|---|")
    W, bias = sae.W_enc.detach(), sae.b_enc.detach()
    for screen in screens:
        held, few = Screen.of(W, bias, screen), rounded(batches[0], screen)
        alone = seconds(lambda _, held=held, few=few: held.product(few), batches, steps)
        del held, few
        chosen = seconds(lambda x, screen=screen: kernels.top_k(x, W, bias, sae.k, screen=screen), batches, steps)
        torch.cuda.reset_peak_memory_stats()
        first, second = (seconds(step, batches, steps) for step in monosem(sae, screen))
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(
            f"| {screen} | {1000 * alone:.2f} | {1000 * chosen:.2f} | {first / product:.2f} | {second / product:.2f} "
            f"| {len(batches[0]) / second:,.0f} | {peak:.1f} |"
        )
        if screen == kernels.fastest(DEVICE, sae.d_in):
            bars += [
                ("step without the optimiser / matmul in bfloat16", first / product, "<= 1.5", first <= 1.5 * product),
                ("whole step / matmul in bfloat16", second / product, "<= 3", second <= 3 * product),
            ]
    return bars


def print_encoders(sae: ms.TopKSAE, screens: list[kernels.Precision], tests: list[torch.Tensor], steps: int) -> Bars:
    """What screens choose otherwise than float32, and exact encoding beside dense encoders."""
    W, bias, k = sae.W_enc.detach(), sae.b_enc.detach(), sae.k
    half, bars = W.bfloat16(), Bars()
    dense = seconds(lambda x: linear(x, W, bias).topk(k), tests, steps)
    own = seconds(lambda x: cuda.top_k(x, W, bias, k), tests, steps)
    dense16 = seconds(lambda x: linear(x.bfloat16(), half, bias.bfloat16()).topk(k), tests, steps)
    print(f"\ndense: float32 and torch.topk {1000 * dense:.2f} ms, float32 and our selection {1000 * own:.2f} ms,")
    print(f"bfloat16 and torch.topk {1000 * dense16:.2f} ms; tf32 is {torch.backends.cuda.matmul.allow_tf32}")
    rows = sum(len(x) for x in tests)
    for screen in screens:
        rough, exact = (sum(found) for found in zip(*(differing(x, sae, screen) for x in tests), strict=True))
        line = f"{screen}: in training {rough / rows:.3%} of rows differ"
        bars.append((f"rows that differ in training, {screen}, %", 100 * rough / rows, "<= 0.1", rough <= 1e-3 * rows))
        if screen != "float8":
            took = seconds(lambda x, screen=screen: cuda.top_k_screened(x, W, bias, k, screen, True), tests, steps)
            line += f"; exact, {exact} rows differ, {1000 * took:.2f} ms: {took / dense:.2f} of float32 with topk, "
            line += f"{took / own:.2f} of float32 with our selection, {took / dense16:.2f} of bfloat16 with topk"
        print(line, flush=True)
    took = seconds(lambda x: kernels.top_k(x, W, bias, k), tests, steps)
    bars.append(("exact encoding / dense float32", took / min(own, dense), "<= 0.6", took <= 0.6 * min(own, dense)))
    return bars


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 4096), ("d", 2304), ("n", 65536), ("k", 64), ("steps", 20), ("learned", 200)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sparsify", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--screen", help="with --profile: the precision of its screen")
    o = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU that torch can use")
    torch.manual_seed(0)
    draw = planted(o.d, o.k, o.batch, 1)
    batches = [draw() for _ in range(4)]
    sae = ms.TopKSAE(o.d, o.n, k=o.k, device=DEVICE)
    sae.initialise(torch.cat(batches))
    if o.profile:
        return print_profile(monosem(sae, o.screen)[1], batches[0])
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; batch {o.batch}, d {o.d}, n {o.n}, k {o.k}")
    screens = known()
    speeds = {name: round(matmul.speed(matmul._dtype(name), DEVICE), 1) for name in screens}
    print(f"times the speed of float32: {speeds}; taken: {kernels.fastest(DEVICE, o.d)}")
    bars = print_steps(sae, screens, batches, o.steps)
    if o.sparsify:
        own = seconds(monosem(sae)[1], batches, o.steps)
        other = seconds(sparsify(o.d, o.n, o.k, o.batch, "cuda"), batches, o.steps)
        bars.append(("speed over sparsify", other / own, ">= 2", other >= 2 * own))
    step = monosem(sae)[1]
    for _ in range(o.learned):
        step(draw())
    bars += print_encoders(sae, screens, [sae.centred(sae.transform(draw())).detach() for _ in range(4)], o.steps)
    compare_demo(screens)
    print("\n| ratio | measured | bar | |\n|---|---|---|---|")
    for name, measured, bar, met in bars:
        print(f"| {name} | {measured:.2f} | {bar} | {'met' if met else 'missed'} |")
    return None


if __name__ == "__main__":
    main()
