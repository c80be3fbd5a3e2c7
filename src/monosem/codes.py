"""SparseCodes: which latents are on, and how strongly, for every row of a batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError


@dataclass(frozen=True, eq=False)
class SparseCodes:
    """The active latents of a batch, row after row (compressed sparse rows).

    Row `r` holds `values[offsets[r]:offsets[r + 1]]` at the latents `indices[offsets[r]:offsets[r + 1]]`. Within a row
    indices are unique and unordered. An entry whose value is 0 may be stored (a fixed k after ReLU) but never counts.
    `values` carries autograd, `indices` never.
    """

    values: Float[Tensor, " entries"]
    indices: Int32[Tensor, " entries"]
    offsets: Int[Tensor, " rows_plus_1"]
    n_latents: int
    batch_shape: tuple[int, ...] = field(default=(-1,))
    """(rows,) if not given; () for a single row without a batch dimension."""

    def __post_init__(self) -> None:
        if self.batch_shape == (-1,):
            object.__setattr__(self, "batch_shape", (self.offsets.numel() - 1,))

    @staticmethod
    def from_dense(dense: Float[Tensor, "*batch n_latents"]) -> SparseCodes:
        """The non-zero entries of a dense tensor; gradients flow back to it."""
        flat = dense.reshape(-1, dense.shape[-1])
        on = flat != 0
        rows, latents = on.nonzero(as_tuple=True)
        offsets = torch.zeros(flat.shape[0] + 1, dtype=torch.int64, device=dense.device)
        torch.cumsum(on.sum(1), 0, out=offsets[1:])
        return SparseCodes(flat[rows, latents], latents.to(torch.int32), offsets, dense.shape[-1], dense.shape[:-1])

    @staticmethod
    def from_top_k(
        values: Float[Tensor, "*batch k"], indices: Int32[Tensor, "*batch k"], n_latents: int
    ) -> SparseCodes:
        """A fixed number of entries a row."""
        *batch_shape, k = values.shape
        offsets = torch.arange(math.prod(batch_shape) + 1, device=values.device) * k
        return SparseCodes(values.reshape(-1), indices.reshape(-1), offsets, n_latents, tuple(batch_shape))

    @staticmethod
    def cat(codes: Sequence[SparseCodes]) -> SparseCodes:
        """Batches one after another along the first dimension."""
        first = codes[0]
        starts = itertools.accumulate((c.values.numel() for c in codes), initial=0)
        offsets = [c.offsets[1:] + start for c, start in zip(codes, starts, strict=False)]
        return SparseCodes(
            torch.cat([c.values for c in codes]),
            torch.cat([c.indices for c in codes]),
            torch.cat([first.offsets[:1], *offsets]),
            first.n_latents,
            (sum(c.batch_shape[0] for c in codes), *first.batch_shape[1:]),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """(*batch, n_latents), the shape of the dense tensor that this stands for."""
        return (*self.batch_shape, self.n_latents)

    @property
    def n_rows(self) -> int:
        return self.offsets.numel() - 1

    @property
    def device(self) -> torch.device:
        return self.values.device

    def rows(self) -> Int[Tensor, " entries"]:
        """The row of every entry."""
        counts = self.offsets.diff()
        return torch.repeat_interleave(
            torch.arange(self.n_rows, device=self.device), counts, output_size=self.values.numel()
        )

    def to_dense(self) -> Float[Tensor, "*batch n_latents"]:
        """The dense tensor. For small batches and tests: it holds rows x n_latents numbers."""
        dense = self.values.new_zeros(self.n_rows, self.n_latents)
        dense = dense.index_put((self.rows(), self.indices.long()), self.values)
        return dense.reshape(self.shape)

    def l0(self) -> Int[Tensor, "*batch"]:
        """How many latents are on, per row."""
        counts = torch.zeros(self.n_rows, dtype=torch.int64, device=self.device)
        counts.index_add_(0, self.rows(), (self.values != 0).long())
        return counts.reshape(self.batch_shape)

    def firing_counts(self) -> Int[Tensor, " n_latents"]:
        """On how many rows each latent is on."""
        counts = torch.zeros(self.n_latents, dtype=torch.int64, device=self.device)
        return counts.index_add_(0, self.indices, (self.values != 0).long())

    @checked
    def top(self, k: int) -> tuple[Float[Tensor, "*batch k"], Int32[Tensor, "*batch k"]]:
        """The k strongest entries of every row, strongest first: values and indices; 0 and -1 where there are fewer."""
        if k < 0:
            raise ConfigError(f"k strongest entries cannot be {k}: give a number from 0")
        rows = self.rows()
        strength = self.values.detach().masked_fill(self.values == 0, -torch.inf)
        order = torch.argsort(strength, descending=True, stable=True)
        order = order[torch.argsort(rows[order], stable=True)]
        rank = torch.arange(self.values.numel(), device=self.device) - self.offsets[:-1][rows]
        kept = (rank < k) & (self.values[order] != 0)
        values = self.values.new_zeros(self.n_rows, k)
        indices = torch.full((self.n_rows, k), -1, dtype=torch.int32, device=self.device)
        indices[rows[kept], rank[kept]] = self.indices[order[kept]]
        values = values.index_put((rows[kept], rank[kept]), self.values[order[kept]])
        return values.reshape(*self.batch_shape, k), indices.reshape(*self.batch_shape, k)

    @checked
    def select(self, latents: Sequence[int] | Int[Tensor, " m"]) -> SparseCodes:
        """Only these latents, renumbered: `codes.select([3, 7]).to_dense()` is `codes.to_dense()[..., [3, 7]]`.

        Raises:
            ConfigError: one is not there, or is named twice.
        """
        chosen = torch.as_tensor(latents, dtype=torch.int64, device=self.device)
        named: list[int] = chosen.tolist()  # pyright: ignore
        if len(set(named)) < len(named) or not all(0 <= latent < self.n_latents for latent in named):
            raise ConfigError(f"give different latents from 0 to {self.n_latents - 1}, got {named!s:.60}")
        new_index = torch.full((self.n_latents,), -1, dtype=torch.int32, device=self.device)
        new_index[chosen] = torch.arange(chosen.numel(), dtype=torch.int32, device=self.device)
        indices = new_index[self.indices.long()]
        return self._keep(indices >= 0, indices, chosen.numel())

    def _keep(self, kept: Tensor, indices: Tensor, n_latents: int) -> SparseCodes:
        before = torch.zeros(kept.numel() + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(kept, 0, out=before[1:])
        offsets = before[self.offsets]
        return SparseCodes(self.values[kept], indices[kept], offsets, n_latents, self.batch_shape)

    def __getitem__(self, key: Any) -> SparseCodes:
        """Rows, by any index that the batch dimensions of a tensor take."""
        rows = torch.arange(self.n_rows, device=self.device).reshape(self.batch_shape)[key]
        flat = rows.reshape(-1)
        counts = self.offsets.diff()[flat]
        offsets = torch.zeros(flat.numel() + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(counts, 0, out=offsets[1:])
        within = torch.arange(int(offsets[-1]), device=self.device) - torch.repeat_interleave(offsets[:-1], counts)
        entries = torch.repeat_interleave(self.offsets[:-1][flat], counts) + within
        return SparseCodes(self.values[entries], self.indices[entries], offsets, self.n_latents, tuple(rows.shape))

    def to(self, device: torch.device | str) -> SparseCodes:
        moved = (self.values.to(device), self.indices.to(device), self.offsets.to(device))
        return SparseCodes(*moved, self.n_latents, self.batch_shape)

    def detach(self) -> SparseCodes:
        return SparseCodes(self.values.detach(), self.indices, self.offsets, self.n_latents, self.batch_shape)

    def __repr__(self) -> str:
        l0 = self.l0().float().mean().item() if self.n_rows else 0.0
        return f"SparseCodes(shape={self.shape}, mean L0 {l0:.1f}, {self.values.dtype}, {self.device})"
