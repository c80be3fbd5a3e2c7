"""Screens of few bits beside the float32 encoder: is what they find the same, and how much faster?

    python benchmarks/screening.py [--tokens 300000] [--rows 100000] [--dictionary RUN --text FILE [--proof]]

Dictionaries of the bundled model, first untrained, then trained (with `--dictionary` a run's own, on its model and a
text), on held-out rows. For each precision that the processor has:

    exact rows     share of rows whose selection, in use, is float32's to the bit (a bar: all)
    training rows  share of rows in which a training step chooses otherwise (a bar: 0.1 %; TopK alone)
    candidates     a row, evaluated in float32; whole: share of rows that had too many, and were evaluated whole
    time           of the exact selection over the dense float32 encoder (matmul and selection), and over its matmul

With `--proof` exact selections of the k largest alone are compared, pool after pool: what a million rows of real
activations were tried with.

The text is that of the dictionary's kind of data, the times are the least of three. Prints JSON, a line each; the
processor's abilities first.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import monosem as ms
from monosem import kernels
from monosem.kernels import cpu, matmul, screening

DEVICE = torch.device("cpu")
TIMED_ROWS = 4096


def precisions() -> list[kernels.Precision]:
    """Those of the processor in which products are faster than in float32, or are to be had at all."""
    named: tuple[kernels.Precision, ...] = ("bfloat16", "int8")
    return [precision for precision in named if kernels.knows(precision, DEVICE)]


def seconds(work: Callable[[], object]) -> float:
    """The least of three."""
    found = list[float]()
    for _ in range(4):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def prove(sae: ms.TopKSAE, rows: Iterator[Tensor], k: int) -> Iterator[dict[str, object]]:
    """After every pool, how many rows there were, and how many selections or values differed from float32's."""
    W, bias, names = sae.W_enc.detach(), sae.b_enc.detach(), precisions()
    total, differ = 0, dict.fromkeys(names, 0)
    for pool in rows:
        x = sae.centred(sae.transform(pool)).detach()
        total += len(x)
        values, indices = cpu.top_k_screened(x, W, bias, k, "float32", True)
        for name in names:
            found = cpu.top_k_screened(x, W, bias, k, name, True)
            differ[name] += int(((found[0] != values) | (found[1] != indices)).any(1).sum())
        yield {"rows": total, "rows_that_differ": differ}


def compare(sae: ms.SAE, rows: Iterator[Tensor]) -> Iterator[dict[str, object]]:
    """A line for each precision."""
    k = getattr(sae, "k", None) if isinstance(sae, ms.TopKSAE) and not isinstance(sae, ms.BatchTopKSAE) else None
    W, bias = sae.W_enc.detach(), sae.b_enc.detach()
    held = {**dict(sae.named_parameters()), **dict(sae.named_buffers())}
    limits = None if k else held["threshold"].detach()
    names = precisions()
    same, rough, candidates, whole = (dict.fromkeys(names, 0) for _ in range(4))
    total, first = 0, None

    def evaluated(x: Tensor, places: Tensor) -> Tensor:
        among = torch.arange(len(x) + 1) * places.shape[1]
        return cpu.gather_dot(x, W, places.reshape(-1), among).reshape(places.shape) + bias[places]

    for pool in rows:
        for x in pool.split(TIMED_ROWS):
            x = sae.centred(sae.transform(x)).detach()
            first = x if first is None else first
            total += len(x)
            found = {name: _found(x, W, bias, k, limits, name) for name in ["float32", *names]}
            for name in names:
                same[name] += int((_rows(*found[name], len(W)) == _rows(*found["float32"], len(W))).all(1).sum())
                if k:
                    picked = cpu.top_k_screened(x, W, bias, k, name, False)[1].sort().values
                    rough[name] += int((picked != found["float32"][1].reshape(-1, k).sort().values).any(1).sum())
                    found_in = screening.largest(x, screening.Screen.of(W, bias, name, x), k, evaluated)
                    candidates[name] += len(found_in.others) + found_in.places.numel()
                    whole[name] += int(found_in.unsure.sum())
    assert first is not None
    product = seconds(lambda: [matmul.linear(part, W, bias) for part in first.split(cpu.TILE_ROWS)])
    dense = seconds(lambda: cpu.top_k(first, W, bias, k) if k else cpu.above(first, W, bias, limits.float()))
    for name in names:
        took = seconds(lambda name=name: _found(first, W, bias, k, limits, name))
        yield {
            "precision": name,
            "rows": total,
            "exact_rows": same[name] / total,
            "training_rows_differ": rough[name] / total if k else None,
            "candidates": candidates[name] / total if k else None,
            "whole": whole[name] / total if k else None,
            "over_dense_encoder": round(took / dense, 3),
            "over_matmul": round(took / product, 3),
        }


def _found(
    x: Tensor, W: Tensor, bias: Tensor, k: int | None, limits: Tensor | None, name: kernels.Precision
) -> tuple[Tensor, Tensor, Tensor]:
    if k:
        values, indices = cpu.top_k_screened(x, W, bias, k, name, True)
        return values.reshape(-1), indices.reshape(-1), torch.arange(len(x) + 1) * k
    assert limits is not None
    return cpu.above_screened(x, W, bias, limits.float(), name)


def _rows(values: Tensor, indices: Tensor, offsets: Tensor, n: int) -> Tensor:
    """Rows as they would be dense."""
    return cpu.to_dense(values, indices, offsets, n)


def pools(source: object, rows: int) -> Iterator[Tensor]:
    """Held-out activations, so many."""
    number = 0
    while rows > 0:
        pool = source.pool(number)[:rows]  # pyright: ignore
        number, rows = number + 1, rows - len(pool)
        yield pool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=300_000)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--latents", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--dictionary")
    parser.add_argument("--model")
    parser.add_argument("--text")
    parser.add_argument(
        "--proof", action="store_true", help="with --dictionary: compare exact selections, time nothing"
    )
    options = parser.parse_args()
    speeds = {name: round(matmul.speed(getattr(torch, name), DEVICE), 2) for name in ("bfloat16", "int8")}
    print(
        json.dumps({"times_float32": speeds, "levels": matmul.integer_levels(), "takes": kernels.fastest(DEVICE, 768)})
    )
    if options.dictionary:
        sae = ms.load_sae(options.dictionary)
        model = ms.load_model(options.model or sae.metadata.model)
        source = ms.activations(model, sae.metadata.hook, options.text, context_length=256, buffer_tokens=16384)
        rows = pools(source, options.rows)
        lines = prove(sae, rows, getattr(sae, "k")) if options.proof else compare(sae, rows)  # noqa: B009
        for line in lines:
            print(json.dumps({"latents": sae.n_latents, **line}), flush=True)
        return
    model, hook = ms.load_model("bundled"), "resid_post.2"
    for n in options.latents:
        held_out = ms.activations(model, hook, "bundled:held_out")
        sae = ms.TopKSAE(model.d_model, n, k=32)
        sae.initialise(held_out.pool(0)[:16_384])
        for trained in (0, options.tokens):
            if trained:
                ms.train(sae, ms.activations(model, hook), tokens=trained, progress=False)
            for line in compare(sae, pools(held_out, options.rows)):
                print(json.dumps({"latents": n, "trained": trained, **line}), flush=True)


if __name__ == "__main__":
    main()
