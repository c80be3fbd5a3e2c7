"""What the scripts share that run in the environments of other libraries: numbers, and how a case is written down."""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

D, F, K = 8, 24, 4


def rows(d: int = D) -> torch.Tensor:
    """Ordinary rows, rows of large and of small norm, and rows of zeros."""
    x = torch.randn(14, d, generator=torch.Generator().manual_seed(5)) + 0.3
    x[4:7] *= 300
    x[7:9] *= 1e-3
    x[9:11] = 0
    return x


@torch.no_grad()
def randomise(module: torch.nn.Module, seed: int = 1) -> None:
    """Every weight and bias random, none of them zero; thresholds positive."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(module.named_parameters()):
        noise = 0.5 * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise.abs() + 0.1 if "threshold" in name else noise)


@torch.no_grad()
def write(
    folder: Path,
    encode: Callable[[torch.Tensor], torch.Tensor],
    decode: Callable[[torch.Tensor], torch.Tensor],
    d: int = D,
) -> None:
    """What the library makes of the rows: codes (rows, latents), and reconstructions."""
    x = rows(d)
    codes = encode(x)
    folder.mkdir(parents=True, exist_ok=True)
    expected = {"x": x, "codes": codes.contiguous(), "reconstruction": decode(x).contiguous()}
    save_file({name: tensor.clone() for name, tensor in expected.items()}, folder / "expected.safetensors")


def run(cases: dict[str, Callable[[Path], None]]) -> None:
    """Write all cases into the folder named on the command line."""
    for name, case in cases.items():
        case(Path(sys.argv[1]) / name)
