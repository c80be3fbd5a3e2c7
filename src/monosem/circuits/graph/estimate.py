"""What a trace will take, before it runs: memory and time, from shapes alone; and whether there is room for it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from monosem.circuits.frozen.pattern import BLOCK, BLOCK_NUMBERS, HELD_BYTES
from monosem.circuits.frozen.units import Dictionaries, DictionaryUnit, Unit, units_of
from monosem.circuits.graph.rows import edges_a_row
from monosem.errors import DataError
from monosem.models import SubjectModel
from monosem.models.families import main_config

GIB = 2**30
EDGE = 8
"""Bytes of an edge: its value and its column."""
LAID_OUT = 2**28
"""Bytes of decoder rows that are kept laid out by position."""
WORKED_ON = 4
"""Copies of a part of a pattern while it is made."""
FULL = 0.5
"""Share of the edges between earlier and later places that are there: what is later makes nothing."""


@dataclass(frozen=True)
class Estimate:
    """What a trace will take on this machine."""

    tokens: int
    active: int
    """Features that are on, in all dictionaries: counted, or expected by their L0."""
    features: int
    """Of these, those that become nodes."""
    sources: int
    pass_bytes: int
    """Attention patterns, and values at all sites."""
    dictionary_bytes: int
    """Rows of latents that are on."""
    edge_bytes: int
    """Edges from all features that are on, as rows are made."""
    flops: float
    seconds: float

    @property
    def memory(self) -> int:
        """Bytes, without the model and the dictionaries themselves."""
        return self.pass_bytes + self.dictionary_bytes + self.edge_bytes

    def require_room(self) -> None:
        """Raise DataError where this machine has not so much memory left.

        Raises:
            DataError: with how much it takes, and what to lower.
        """
        free = free_memory()
        if free is not None and self.memory > free:
            lower = "edges=0.9, " if self.edge_bytes > self.memory / 2 else ""
            raise DataError(
                f"this graph takes about {self.memory / GIB:.1f} GiB ({self.tokens} tokens, {self.active:,} active "
                f"features, {self.features:,} of them nodes), and {free / GIB:.1f} GiB are free: give {lower}a smaller "
                "max_features, or a shorter prompt"
            )

    def __str__(self) -> str:
        sizes = (self.memory, self.pass_bytes, self.dictionary_bytes, self.edge_bytes)
        memory, passed, rows, edges = (size / GIB for size in sizes)
        parts = [
            f"{self.tokens} tokens, {self.active:,} active features, {self.features:,} of them nodes",
            f"memory  {memory:6.2f} GiB beside model and dictionaries: "
            f"pass {passed:.2f}, rows {rows:.2f}, edges {edges:.2f}",
            f"time    {self.seconds:6.0f} s ({self.flops / 1e12:.2f} TFLOP)",
        ]
        return "\n".join(parts)


def plan_trace(
    model: SubjectModel, dictionaries: Dictionaries, prompt: Any, *, max_features: int = 5_000, edges: float = 1.0
) -> Estimate:
    """What `ms.trace` of a prompt will take, without running the model.

    Args:
        model: the model.
        dictionaries: as `ms.trace` takes them.
        prompt: a text, or token ids; or a number of tokens.
        max_features: as there.
        edges: as there.
    """
    if isinstance(prompt, str):
        length = int(model.tokens(prompt).shape[1])
    else:
        length = prompt if isinstance(prompt, int) else int(torch.as_tensor(prompt).numel())
    units = units_of(model, dictionaries)
    return estimate(model, units, length, [expected(unit, length) for unit in units], max_features, edges)


def expected(unit: Unit, length: int) -> int:
    """Features that will be on: L0 as measured in training, or k, or a percent of all; all neurons."""
    if not isinstance(unit, DictionaryUnit):
        model: SubjectModel = unit.model  # type: ignore[attr-defined]
        return length * int(getattr(main_config(model.module), "intermediate_size", 0) or 4 * model.d_model)
    sae = unit.sae
    known = sae.metadata.fingerprint.l0 if sae.metadata.fingerprint is not None else getattr(sae, "k", None)
    layers = getattr(sae, "n_layers", 1)
    return round(length * (known if known is not None else 0.01 * sae.n_latents) / layers)


def estimate(
    model: SubjectModel, units: Sequence[Unit], length: int, active: Sequence[int], max_features: int, edges: float
) -> Estimate:
    """From the number of features that are on in each unit."""
    config = main_config(model.module)
    heads, layers, d = int(config.num_attention_heads), model.n_layers, model.d_model
    size = max(4, torch.finfo(next(model.module.parameters()).dtype).bits // 8)
    total = sum(active)
    features = min(max_features, total)
    sources = features + length * (layers + len(units) + 2)
    patterns = min(size * layers * heads * length * length, HELD_BYTES)
    part = min(BLOCK_NUMBERS, heads * length * min(BLOCK, length))
    passed = patterns + size * (2 * WORKED_ON * part + 12 * layers * length * d)
    rows = 0
    for unit, n in zip(units, active, strict=True):
        latents = min(n, unit.sae.n_latents if isinstance(unit, DictionaryUnit) else n)
        rows += size * latents * d * (1 + len(unit.writes))
    rows += min(LAID_OUT, size * total * d)
    of_features = min(FULL * total * (1 if edges == 1 else 0.35), edges_a_row(features))
    stored = features * (of_features + FULL * length * (layers + len(units))) * EDGE
    width = getattr(config, "head_dim", None) or d // heads
    a_layer = 4 * length * d * heads * width + 2 * length * length * heads * width
    a_target = 0.5 * 0.5 * layers * a_layer + 2 * total * d * 0.25
    flops = features * a_target
    return Estimate(
        length,
        total,
        features,
        sources,
        int(passed),
        int(rows),
        int(stored),
        float(flops),
        float(flops / speed() + features * 5e-4),
    )


def speed() -> float:
    """Multiplications and additions a second of this processor, tried for a few hundredths of a second."""
    a = torch.randn(512, 512)
    torch.matmul(a, a)
    start = time.perf_counter()
    for _ in range(4):
        torch.matmul(a, a)
    return 0.4 * 4 * 2 * 512**3 / max(time.perf_counter() - start, 1e-6)  # most of the work is not in large products


def free_memory() -> int | None:
    """Bytes that are free here; None where nothing says it."""
    found: list[int] = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        pass
    return min(found) if found else None
