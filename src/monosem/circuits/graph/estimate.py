"""What a trace will take, before it runs: memory and time, from shapes alone; and whether there is room for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from monosem.arguments import NotNegative, Positive, Share, checked
from monosem.circuits.frozen.pattern import BLOCK, BLOCK_NUMBERS, HELD_BYTES, Pattern
from monosem.circuits.frozen.steps import Linear, Mix
from monosem.circuits.frozen.units import Dictionaries, DictionaryUnit, Unit, units_of
from monosem.circuits.graph.rows import AT_LEAST, BATCH_NUMBERS, a_round, edges_a_row, kept_rows
from monosem.circuits.graph.sources import LAID_OUT
from monosem.errors import DataError
from monosem.models import SubjectModel
from monosem.models.attention import Attended
from monosem.models.families import main_config
from monosem.work import free_memory

GIB = 2**30
EDGE = 8
"""Bytes of an edge: its value and its column."""
WORKED_ON = 4
"""Copies of a part of a pattern while it is made."""
SITES = 12
"""Values as wide as the stream that are kept of each layer and position."""
ROWS_OF_TARGETS = 20
"""What targets take, in rows of features: they go through all layers, at all positions."""
OF_ITS_OWN = 0.3
"""What a feature's own layer takes, which it leaves from one position, as a share of the layers below."""
TRIALS = 8
LATE = 0.65
"""Where in the text the features that are chosen stand, in the mean."""
HANDLED = 1.5
"""Copies of edges while they are put together."""
BESIDE = 2**27
"""Bytes of what is worked on at a time."""
OTHER_WORK = 1.15
"""All that rows take, by what their layers and their keeping take."""
BEGINNINGS = 2.5
"""All that is done before and after rows, by the time that looking at the dictionaries takes."""


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
    seconds: float | None = None
    """Tried on this processor; only of a plan."""

    @property
    def memory(self) -> int:
        """Bytes, without the model and the dictionaries themselves."""
        return self.pass_bytes + self.dictionary_bytes + self.edge_bytes + BESIDE

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
        ]
        if self.seconds is not None:
            parts.append(f"time    {self.seconds:6.0f} s")
        return "\n".join(parts)


@checked
def plan_trace(
    model: SubjectModel,
    dictionaries: Dictionaries,
    prompt: str | Positive | Sequence[int] | Tensor,
    *,
    max_features: NotNegative = 5_000,
    edges: Share = 1.0,
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
    if not length:
        raise DataError("the prompt is empty")
    start = time.process_time()
    units = units_of(model, dictionaries)
    looked = (time.process_time() - start) / torch.get_num_threads()
    found = estimate(model, units, length, [expected(unit, length) for unit in units], max_features, edges)
    a_layer, a_row = tried(model, length, found, len(units))
    rows = found.features + ROWS_OF_TARGETS
    below = layers_below(model.n_layers) + OF_ITS_OWN
    return replace(found, seconds=BEGINNINGS * looked + OTHER_WORK * rows * (a_row + below * a_layer))


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
    """Memory, from the number of features that are on in each unit."""
    config = main_config(model.module)
    heads, layers, d = int(config.num_attention_heads), model.n_layers, model.d_model
    size = max(4, torch.finfo(next(model.module.parameters()).dtype).bits // 8)
    total = sum(active)
    features = min(max_features, total)
    sources = features + length * (layers + len(units) + 2)
    patterns = min(size * layers * heads * length * length, HELD_BYTES)
    part = min(BLOCK_NUMBERS, heads * length * min(BLOCK, length))
    passed = patterns + size * (2 * WORKED_ON * part + SITES * layers * length * d)
    rows = min(LAID_OUT, size * total * d)
    below = layers_below(layers)
    of_features = min(LATE * below / layers * total * (1 if edges == 1 else 0.35), edges_a_row(features))
    stored = HANDLED * EDGE * features * (of_features + LATE * length * (below + 2))
    return Estimate(length, total, features, sources, int(passed), int(rows), int(stored))


def layers_below(layers: int) -> float:
    """Layers under a feature that is chosen, in the mean: somewhat less than half, as many stand at the first."""
    return max(0.5, (layers - 1) / 2 - 1)


@torch.no_grad()
def tried(model: SubjectModel, length: int, plan: Estimate, n_units: int) -> tuple[float, float]:
    """Seconds that one row takes in a layer, and to be kept: tried on numbers of these shapes, the best of a few."""
    config = main_config(model.module)
    heads, d = int(config.num_attention_heads), model.d_model
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    width = int(getattr(config, "head_dim", None) or d // heads)
    reach = max(1, round(LATE * length))  # no row goes beyond its feature's position, nor its batch, which is sorted
    n, active = min(reach, BLOCK), plan.active
    of_a_unit = max(1, min(plan.features, a_round(plan.features)) // max(1, n_units))
    batch = min(of_a_unit, max(AT_LEAST, BATCH_NUMBERS // (reach * d)))
    at_a_place = max(1, active // (length * model.n_layers))
    g, out = torch.randn(batch, n, d), Linear(0, 0, torch.randn(d, heads * width) / d)
    written, columns = torch.randn(n, at_a_place, d), torch.randn(2, active + length * (model.n_layers + 2))
    query, key = torch.randn(1, heads, n, width), torch.randn(1, kv_heads, n, width)
    pattern = Pattern(Attended(model.module, query, key, None, "", {}), g.dtype, torch.rand(heads, n, n))
    mix = Mix(0, 0, torch.randn(kv_heads * width, d) / d, None, pattern, kv_heads, torch.ones(n, 1))

    def layer() -> None:
        torch.add(g, mix.transpose(out.transpose(g)))
        torch.matmul(written, g.permute(1, 2, 0))

    def row() -> None:
        others = np.arange(columns.shape[1] - active)
        varies = np.ones(columns.shape[1])
        kept_rows(columns.numpy(), active, varies, others, len(others), 1.0, edges_a_row(5_000))

    return _best(layer) / torch.get_num_threads() / batch * reach / n, _best(row) / len(columns)


def _best(trial: Callable[[], None]) -> float:
    """Seconds of all processors together, of the quickest of some runs, the first left out."""
    trial()
    found: list[float] = []
    for _ in range(TRIALS):
        start = time.process_time()
        trial()
        found.append(time.process_time() - start)
    return min(found)
