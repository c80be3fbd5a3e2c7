"""The steps of a forward pass held still: each is a linear map plus a constant, with its transpose written out.

Held still are attention patterns and the scales of norms; what a step reads and writes are sites, (batch, pos, width).
`constant` is what a step adds when its input is zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


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


@dataclass
class Mix(Step):
    """Values, mixed by a pattern that is held: heads side by side, as they stand before the output matrix."""

    weight: Float[Tensor, "kv_heads_d_head d_in"]
    bias: Float[Tensor, " kv_heads_d_head"] | None
    pattern: Float[Tensor, "heads query key"]
    kv_heads: int

    @property
    def heads(self) -> int:
        return len(self.pattern)

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    def apply(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        values = (x @ self.weight.T).unflatten(2, (self.kv_heads, -1)).repeat_interleave(self.group, dim=2)
        mixed = torch.matmul(self.pattern[:, :n, :n], values.transpose(1, 2))
        return mixed.transpose(1, 2).flatten(2)

    def transpose(self, g: Tensor) -> Tensor:
        n = g.shape[1]
        heads = g.unflatten(2, (self.heads, -1)).transpose(1, 2)
        values = torch.matmul(self.pattern[:, :n, :n].mT, heads)
        grouped = values.unflatten(1, (self.kv_heads, self.group)).sum(2)
        return grouped.transpose(1, 2).flatten(2) @ self.weight

    def constant(self) -> Tensor | None:
        if self.bias is None:
            return None
        values = self.bias.unflatten(0, (self.kv_heads, -1)).repeat_interleave(self.group, dim=0)
        return (self.pattern.sum(-1)[:, :, None] * values[:, None]).transpose(0, 1).flatten(1)
