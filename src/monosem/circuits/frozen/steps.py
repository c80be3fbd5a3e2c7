"""The steps of a forward pass held still: each is a linear map plus a constant, with its transpose written out.

Held still are attention patterns and the scales of norms; what a step reads and writes are sites, (batch, pos, width).
`constant` is what a step adds when its input is zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.circuits.frozen.pattern import Pattern


@dataclass
class Step(ABC):
    """From one site to another, to which it adds."""

    source: int
    to: int

    @abstractmethod
    def apply(self, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_out"]:
        """The linear part."""

    @abstractmethod
    def transpose(self, g: Float[Tensor, "batch pos d_out"]) -> Float[Tensor, "batch pos d_in"]:
        """What `apply` does, backwards: cotangents of the output to cotangents of the input."""

    def transpose_one(
        self, g: Float[Tensor, "batch d_out"], positions: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch d_in"]:
        """As `transpose`, of cotangents that are zero but at one position each."""
        return self.transpose(g[:, None])[:, 0]

    def constant(self) -> Float[Tensor, "pos_or_1 d_out"] | None:
        """What is added whatever comes in."""
        return None


@dataclass
class Same(Step):
    """The stream goes on, or what was written is added to it."""

    def apply(self, x: Tensor) -> Tensor:
        return x

    def transpose(self, g: Tensor) -> Tensor:
        return g


@dataclass
class Norm(Step):
    """A norm whose scale is held: (x - mean(x)) weight / scale + bias, or without the mean."""

    weight: Float[Tensor, " d"]
    bias: Float[Tensor, " d"] | None
    scale: Float[Tensor, "pos 1"]
    centred: bool

    def apply(self, x: Tensor) -> Tensor:
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        return x * (self.weight / self.scale[: x.shape[1]])

    def transpose(self, g: Tensor) -> Tensor:
        g = g * (self.weight / self.scale[: g.shape[1]])
        return g - g.mean(-1, keepdim=True) if self.centred else g

    def transpose_one(self, g: Tensor, positions: Tensor) -> Tensor:
        g = g * (self.weight / self.scale[positions])
        return g - g.mean(-1, keepdim=True) if self.centred else g

    def constant(self) -> Tensor | None:
        return None if self.bias is None else self.bias[None]


@dataclass
class Linear(Step):
    """A matrix, (d_out, d_in), and a bias."""

    weight: Float[Tensor, "d_out d_in"]
    bias: Float[Tensor, " d_out"] | None = None

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.weight.T

    def transpose(self, g: Tensor) -> Tensor:
        return g @ self.weight

    def constant(self) -> Tensor | None:
        return None if self.bias is None else self.bias[None]


@dataclass
class Scaled(Step):
    """A matrix between two rows of numbers, one a position: out (x in) W^T. The linear path of a skip transcoder."""

    weight: Float[Tensor, "d_out d_in"]
    inner: Float[Tensor, "pos 1"]
    outer: Float[Tensor, "pos 1"]

    def apply(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        return ((x * self.inner[:n]) @ self.weight.T) * self.outer[:n]

    def transpose(self, g: Tensor) -> Tensor:
        n = g.shape[1]
        return ((g * self.outer[:n]) @ self.weight) * self.inner[:n]

    def transpose_one(self, g: Tensor, positions: Tensor) -> Tensor:
        return ((g * self.outer[positions]) @ self.weight) * self.inner[positions]


@dataclass
class Mix(Step):
    """Values, mixed by a pattern that is held: heads side by side, as they stand before the output matrix.

    The norm before attention is part of it: `weight` holds its weights and its centring, `scale` what it divides by.
    """

    weight: Float[Tensor, "kv_heads_d_head d_in"]
    bias: Float[Tensor, " kv_heads_d_head"] | None
    pattern: Pattern
    kv_heads: int
    scale: Float[Tensor, "pos 1"]

    @property
    def heads(self) -> int:
        return self.pattern.heads

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    def apply(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        values = (x @ self.weight.T / self.scale[:n]).unflatten(2, (self.kv_heads, -1))
        values = values.repeat_interleave(self.group, dim=2).transpose(1, 2)
        blocks = self.pattern.blocks(n)
        mixed = torch.cat([torch.matmul(part, values[:, :, : part.shape[2]]) for _, part in blocks], dim=2)
        return mixed.transpose(1, 2).flatten(2)

    def transpose(self, g: Tensor) -> Tensor:
        batch, n = g.shape[:2]
        heads = g.unflatten(2, (self.heads, -1)).permute(2, 1, 0, 3).flatten(2)  # one product for all of the batch
        values = torch.zeros(heads.shape, dtype=g.dtype, device=g.device)
        for queries, part in self.pattern.blocks(n):
            values[:, : part.shape[2]].baddbmm_(part.mT, heads[:, queries])
        if self.group > 1:
            values = values.unflatten(0, (self.kv_heads, self.group)).sum(1)
        by_row = values.unflatten(2, (batch, -1)).permute(2, 1, 0, 3).flatten(2)
        return (by_row / self.scale[:n]) @ self.weight

    def transpose_one(self, g: Tensor, positions: Tensor) -> Float[Tensor, "batch pos d_in"]:
        """Of one position each to all positions up to it: an outer product for each head."""
        n = int(positions.max()) + 1
        by_head = self.weight.unflatten(0, (self.kv_heads, -1)).repeat_interleave(self.group, dim=0)
        back = torch.einsum("bhe,hed->bhd", g.unflatten(1, (self.heads, -1)), by_head)
        looked = self.pattern.rows(positions, n).permute(1, 2, 0) / self.scale[:n]
        return looked @ back

    def constant(self) -> Tensor | None:
        if self.bias is None:
            return None
        values = self.bias.unflatten(0, (self.kv_heads, -1)).repeat_interleave(self.group, dim=0)
        return (self.pattern.sums()[:, :, None] * values[:, None]).transpose(0, 1).flatten(1)
