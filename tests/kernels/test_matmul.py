"""Matmuls in every precision on every processor: what oneDNN does not know falls back, and speed is asked by trying."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import torch

from monosem import kernels
from monosem.kernels import matmul
from monosem.kernels.matmul import linear

# without NUMBA_CPU_NAME: numba would compile everything anew, and has nothing to do with precisions
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
ALL_TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", ALL_TYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (70, 48, 130), (2, 1, 9)])
def test_linear_is_the_product_in_every_precision(dtype: torch.dtype, shape: tuple[int, int, int]) -> None:
    rows, d, n = shape
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*s, generator=generator).to(dtype) for s in ((rows, d), (n, d), (n,)))
    expected = x.double() @ weight.double().T + bias.double()
    scale = (x.double().abs() @ weight.double().abs().T + bias.double().abs()).max().item()
    torch.testing.assert_close(
        linear(x, weight, bias).double(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps * scale
    )


def test_the_speed_of_a_precision_is_a_ratio_to_float32s() -> None:
    device = torch.device("cpu")
    assert 0.5 < kernels.speed(torch.float32, device) < 2
    assert kernels.speed(torch.complex64, device) != kernels.speed(torch.float32, device)
    assert kernels.fast_bfloat16(device) == (kernels.speed(torch.bfloat16, device) > 1.2)
    assert not kernels.fast_bfloat16(torch.device("meta"))


def test_a_precision_is_as_fast_beside_other_work() -> None:
    """What is taken decides the bits of a run, and so must not depend on what else the machine does."""
    device, dtypes = torch.device("cpu"), (torch.int8, torch.bfloat16)
    quiet = [kernels.speed(dtype, device) > matmul.FAST for dtype in dtypes]
    busy = [subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000))"]) for _ in range(2)]
    try:
        again = [[matmul.speed.__wrapped__(dtype, device) > matmul.FAST for dtype in dtypes] for _ in range(2)]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert again == [quiet] * 2


@pytest.mark.parametrize("ratio", [0.15, 1.03, 1.5, 8])
def test_trials_that_are_far_off_do_not_change_what_is_fast(ratio: float) -> None:
    rng = np.random.default_rng(0)

    def trial() -> float:
        return ratio * rng.normal(1, 0.02) * (rng.choice([0.4, 2.5]) if rng.random() < 0.1 else 1)

    found = np.array([matmul._ratio(trial) > matmul.FAST for _ in range(5000)])
    assert (found != (ratio > matmul.FAST)).mean() < 1e-3


WITH_AVX2_ALONE = """
import warnings, torch
from monosem import kernels
from monosem.models import load_model

assert not kernels.fast_bfloat16(torch.device("cpu"))
g = torch.Generator().manual_seed(0)
x, W, b = (torch.randn(*s, generator=g) for s in ((300, 24), (400, 24), (400,)))
best = (x @ W.T + b).topk(9).values.sort().values
for backend in ("cpu", "plain"):
    with kernels.use_backend(backend):
        values, _ = kernels.top_k(x, W, b, 9, screen="bfloat16")
        close = (values.view(300, 9).sort().values - best).abs() < 1e-4
        assert close.all(1).double().mean() > 0.99, backend
        values, _, _ = kernels.batch_top_k(x, W, b, 2000, 5.0, screen="bfloat16")
        assert torch.allclose(values.sort().values, (x @ W.T + b).flatten().topk(2000).values.sort().values, atol=1e-4)
for dtype in (torch.bfloat16, torch.float16):
    values, selection = kernels.top_k(x.to(dtype), W.to(dtype), b.to(dtype), 9)
    assert torch.allclose(values.view(300, 9).float().sort().values, best, rtol=0.05, atol=0.1), dtype
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load_model(torch.nn.Sequential(torch.nn.Linear(3, 4)).to(dtype))
    assert [str(w.message) for w in said if "times slower than float32: load it" in str(w.message)], said
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="AVX2 is a set of x86's")
def test_with_avx2_alone_every_selection_falls_back() -> None:
    """In a process of its own, because libraries look at the processor once."""
    command = [sys.executable, "-c", WITH_AVX2_ALONE]
    ran = subprocess.run(command, env={**os.environ, **AVX2}, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
