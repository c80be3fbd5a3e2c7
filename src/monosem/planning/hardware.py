"""The machines on which a run may be planned: one data file, with sources."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from monosem import kernels
from monosem.errors import ConfigError
from monosem.files import read_yaml
from monosem.kernels import Precision
from monosem.spelling import meant
from monosem.work import memory_here

FILE = Path(__file__).parent / "hardware.yaml"
GIB = 2**30
EIGHT_BITS = 2.0
"""Times the peak of bfloat16 that a GPU's maker gives for products of eight bits."""

Kind = Literal["model", "matmul", "sparse", "memory", "link", "network", "disk"]
"""Of work: multiplications and additions of the model's forward pass, and of the dictionary's matrix products; bytes of
weights that its sparse sums touch, of memory moved otherwise, sent within a node and between nodes, of disk."""


class Reached(BaseModel):
    """Shares of the peaks."""

    model_config = ConfigDict(extra="forbid")

    model: float = Field(gt=0, le=1)
    matmul: float = Field(gt=0, le=1)
    sparse: float = Field(gt=0, le=1)
    memory: float = Field(gt=0, le=1)
    link: float = Field(gt=0, le=1)


class Hardware(BaseModel):
    """One kind of device, as hardware.yaml has it."""

    model_config = ConfigDict(extra="forbid")

    name: str
    source: str
    memory_gib: float = Field(default=0.0, ge=0)
    float32_tflops: float = Field(gt=0)
    bfloat16_tflops: float = Field(gt=0)
    memory_gbs: float = Field(gt=0)
    link_gbs: float = Field(gt=0)
    network_gbs: float = Field(gt=0)
    devices_a_node: int = Field(ge=1)
    disk_gbs: float = Field(gt=0)
    libraries_gib: float = Field(ge=0)
    context_gib: float = Field(ge=0)
    start_s: float = Field(ge=0)
    reached: Reached
    per_core: bool = False

    @property
    def is_cpu(self) -> bool:
        """Whether all stands in one memory."""
        return self.per_core

    def peak_tflops(self, precision: Precision) -> float:
        """Of matrix products of dense matrices."""
        if precision == "float32":
            return self.float32_tflops
        if precision == "bfloat16":
            return self.bfloat16_tflops
        if self.is_cpu:
            return self.float32_tflops * max(1.0, kernels.speed(torch.int8, torch.device("cpu")))
        return EIGHT_BITS * self.bfloat16_tflops

    def screen(self, d: int) -> Precision:
        """In which precision a run looks for candidates among rows of width d: tried, where the device is here."""
        if self.is_cpu or torch.cuda.is_available():
            return kernels.fastest(torch.device("cpu" if self.is_cpu else "cuda"), d)
        return "bfloat16"

    def rates(self, screen: Precision) -> dict[Kind, float]:
        """What one device does of each kind of work in a second, the dictionary's matrix products in a precision."""
        cores = _cores() if self.per_core else 1
        reached, peak = self.reached, self.peak_tflops(screen)
        return {
            "model": 1e12 * self.float32_tflops * cores * reached.model,
            "matmul": 1e12 * peak * cores * reached.matmul,
            "sparse": 1e9 * self.memory_gbs * cores * reached.sparse,
            "memory": 1e9 * self.memory_gbs * cores * reached.memory,
            "link": 1e9 * self.link_gbs * reached.link,
            "network": 1e9 * self.network_gbs * reached.link,
            "disk": 1e9 * self.disk_gbs,
        }


def hardware(name: str | None = None) -> Hardware:
    """A kind of device by name; without one, what there is here.

    Raises:
        ConfigError: there is none of that name.
    """
    known = {key: Hardware.model_validate(value) for key, value in read_yaml(FILE, dict).items()}
    name = _here() if name is None else name
    if name not in known:
        raise ConfigError(f"hardware: {name!r} is not in the table; there are {', '.join(known)}{meant(name, known)}")
    found = known[name]
    return found if found.memory_gib else found.model_copy(update={"memory_gib": memory_here() / GIB})


def _cores() -> int:
    return torch.get_num_threads()


def _here() -> str:
    """The table's name of the GPU here; "cpu" where there is none, or one that the table does not have."""
    if not torch.cuda.is_available():
        return "cpu"
    called = torch.cuda.get_device_name().lower()
    return next((name for name in ("h100", "h200", "a100") if name in called), "cpu")
