"""A training step on one GPU beside the encoder's matmul alone, and the bars.

    python benchmarks/gpu.py [--batch 4096] [--d 2304] [--n 65536] [--k 64] [--steps 20] [--sparsify] [--profile]

Times are medians of CUDA events, after five steps that are not counted. `--sparsify` times that library's step too,
where it is installed. `--profile` prints instead the kernels that the time of a whole step goes to.
"""

import argparse
import statistics
from collections.abc import Callable

import torch
from step import Step, sparsify

import monosem as ms
from monosem.sae import TrainingContext

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
    weight = torch.randn(n, d, device="cuda", dtype=torch.bfloat16)
    return lambda x: x.bfloat16() @ weight.T


def monosem(d: int, n: int, k: int) -> tuple[Step, Step]:
    """A step without the optimiser, and a whole one."""
    sae = ms.TopKSAE(d, n, k=k, device="cuda")
    trainer = ms.Trainer(sae)

    def without_optimiser(x: torch.Tensor) -> None:
        inputs = sae.transform(x)
        sae.training_loss(inputs, inputs, TrainingContext(None, trainer.screen)).loss.backward()
        for parameter in sae.parameters():
            parameter.grad = None

    sae.initialise(torch.randn(8192, d, device="cuda"))
    return without_optimiser, trainer.step


def print_profile(step: Callable[[torch.Tensor], object], x: torch.Tensor) -> None:
    for _ in range(WARM_UP):
        step(x)
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(5):
            step(x)
    print(profile.key_averages().table(sort_by="self_device_time_total", row_limit=30))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 4096), ("d", 2304), ("n", 65536), ("k", 64), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sparsify", action="store_true")
    parser.add_argument("--profile", action="store_true")
    o = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a GPU that torch can use")
    torch.manual_seed(0)
    batches = [torch.randn(o.batch, o.d, device="cuda") for _ in range(4)]
    without_optimiser, whole = monosem(o.d, o.n, o.k)
    if o.profile:
        return print_profile(whole, batches[0])
    matmul = seconds(matmul16(o.d, o.n), batches, o.steps)
    torch.cuda.reset_peak_memory_stats()
    first, second = seconds(without_optimiser, batches, o.steps), seconds(whole, batches, o.steps)
    peak = torch.cuda.max_memory_allocated() / 2**30
    rows = [
        ("step without the optimiser / matmul", first / matmul, "<= 1.5", first <= 1.5 * matmul),
        ("whole step / matmul", second / matmul, "<= 3", second <= 3 * matmul),
    ]
    if o.sparsify:
        other = seconds(sparsify(o.d, o.n, o.k, o.batch, "cuda"), batches, o.steps)
        rows.append(("speed over sparsify", other / second, ">= 2", other >= 2 * second))
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}; batch {o.batch}, d {o.d}, n {o.n}, k {o.k}")
    print(f"matmul in bfloat16 {1000 * matmul:.2f} ms, step without the optimiser {1000 * first:.2f} ms,")
    print(f"whole step {1000 * second:.2f} ms, {o.batch / second:,.0f} rows a second, peak memory {peak:.1f} GiB\n")
    print("| ratio | measured | bar | |\n|---|---|---|---|")
    for name, measured, bar, met in rows:
        print(f"| {name} | {measured:.2f} | {bar} | {'met' if met else 'missed'} |")
    return None


if __name__ == "__main__":
    main()
