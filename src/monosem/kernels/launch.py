"""How a Triton kernel is started."""

from typing import Any

import torch


def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """On the device of its first argument, where there is anything to do."""
    if all(grid):
        with torch.cuda.device_of(arguments[0]):
            kernel[grid](*arguments, **{"enable_fp_fusion": True, **constants})
