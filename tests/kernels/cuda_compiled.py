"""Compile every kernel for an H100 as a step calls it, without a GPU, and print what each takes of the chip.

python tests/kernels/cuda_compiled.py FOLDER        FOLDER: for what is compiled
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from monosem.kernels import cuda, launch
from monosem.kernels.triton_screens import Screen, rounded

FOLDER = Path(sys.argv[1])
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
H100 = GPUTarget("cuda", 90, 32)
OPTIONS = ("num_warps", "enable_fp_fusion")
POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.int8: "*i8",
    torch.float8_e4m3fn: "*fp8e4nv",
}


def compile_only(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Stands in for the launch of a kernel."""
    signature: dict[str, str] = dict.fromkeys(constants, "constexpr")
    aligned: dict[tuple[int], list[list[object]]] = {}
    for place, (name, argument) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if isinstance(argument, Tensor):
            signature[name] = POINTERS[argument.dtype]
        else:
            signature[name] = "i32" if isinstance(argument, int) else "fp64"
        if isinstance(argument, Tensor) or (isinstance(argument, int) and argument % 16 == 0):
            aligned[(place,)] = [["tt.divisibility", 16]]
    options = {"enable_fp_fusion": True, **{name: constants.pop(name) for name in OPTIONS if name in constants}}
    source = ASTSource(kernel, {k: v for k, v in signature.items() if k not in OPTIONS}, constants, aligned)
    compiled = triton.compile(source, target=H100, options=options)
    binary = FOLDER / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", str(binary)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    takes = re.findall(r"REG:.*LOCAL:\d+ ", usage)
    loads = sorted(set(re.findall(r"ld\.global\.\S+", compiled.asm["ptx"])))
    print(kernel.__name__, *takes, options, constants, *loads)


def step(rows: int, d: int, n: int, k: int, dtype: torch.dtype) -> None:
    """Everything that a step calls. The rows are few: no kernel is compiled differently for it."""
    x, y = torch.zeros(rows, d, dtype=dtype), torch.zeros(4096, d, dtype=dtype)
    weight, bias = torch.zeros(n, d, dtype=dtype), torch.zeros(n, dtype=dtype)
    pre = torch.zeros(rows, n, dtype=dtype)
    cuda._largest(pre.bfloat16(), k + k // 4)
    cuda._largest(pre, k)
    cuda._pre_activations = lambda *_: iter([pre])
    cuda.above(x, weight, bias, bias)
    indices, offsets = torch.zeros(rows * k, dtype=torch.int32), torch.arange(rows + 1) * k
    cuda.gather_dot(x, weight, indices, offsets)
    cuda.weighted_sum(bias[: rows * k], indices, offsets, weight)
    cuda.scatter_outer(bias[: rows * k], *cuda.by_latent(indices, offsets, n), y)
    for unit_rows in (False, True):
        cuda.adam_(weight, weight, weight, weight, (0.1,) * 6, unit_rows)


def screens(rows: int, d: int, n: int, k: int) -> None:
    """What a screened step, and an exact selection, call beside that."""
    x, weight, bias = torch.zeros(rows, d), torch.zeros(n, d), torch.zeros(n)
    for precision in ("bfloat16", "int8", "float8"):
        screen, few = Screen.of(weight, bias, precision), rounded(x, precision)
        product = torch.zeros(rows, n, dtype=torch.int32 if precision == "int8" else torch.bfloat16)
        cuda._largest(product, 2 * k, screen.beside(few))
        if precision != "float8":
            edges, offsets = torch.zeros(rows), torch.zeros(rows + 1, dtype=torch.int64)
            screen.counts(product, few, edges, bias)
            screen.places(product, few, edges, bias, offsets)


def main() -> None:
    launch.run = compile_only
    screens(8, 2304, 65536, 64)
    step(8, 2304, 65536, 64, torch.float32)
    step(8, 768, 4096, 32, torch.bfloat16)


if __name__ == "__main__":
    main()
