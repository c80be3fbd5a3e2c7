"""Select, encode, decode: the differentiable face of the kernels.

Two operations, each the other's adjoint, are enough for every architecture:

    encode   value[e]  = x[row(e)] . W_enc[latent(e)] + b_enc[latent(e)]
    decode   out[row]  = sum over the row's entries of value[e] * W_dec[latent(e)]
"""

from __future__ import annotations

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

_forced: str | None = None


@contextmanager
def use_backend(name: str) -> Generator[None]:
    """Within this block all kernels come from one backend: "cpu" (numba) or "plain" (torch)."""
    global _forced
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before


def _backend(x: Tensor) -> ModuleType:
    half = x.dtype in (torch.float16, torch.bfloat16)
    name = _forced or ("cpu" if x.device.type == "cpu" and not half else "plain")
    return importlib.import_module(f"monosem.kernels.{name}")


@dataclass(frozen=True, eq=False)
class Selection:
    """Which latents are on in which row; remembers its own transpose, which both weight gradients need."""

    indices: Int32[Tensor, " entries"]
    offsets: Int[Tensor, " rows_plus_1"]
    n_latents: int

    @cached_property
    def by_latent(self) -> tuple[Tensor, Tensor, Tensor]:
        return _backend(self.indices).by_latent(self.indices, self.offsets, self.n_latents)


def top_k(
    x: Float[Tensor, "rows d"], W: Float[Tensor, "n d"], bias: Float[Tensor, " n"], k: int
) -> tuple[Float[Tensor, " entries"], Selection]:
    """The k largest pre-activations of each row. Not differentiable: pass the values to `encode` for gradients."""
    with torch.no_grad():
        values, indices = _backend(x).top_k(x, W, bias, k)
        offsets = torch.arange(x.shape[0] + 1, device=x.device) * k
        return values.reshape(-1), Selection(indices.reshape(-1), offsets, W.shape[0])


def above(
    x: Float[Tensor, "rows d"], W: Float[Tensor, "n d"], bias: Float[Tensor, " n"], threshold: Tensor
) -> tuple[Float[Tensor, " entries"], Selection]:
    """The pre-activations above a threshold (one number, or one per latent)."""
    with torch.no_grad():
        values, indices, offsets = _backend(x).above(x, W, bias, threshold)
        return values, Selection(indices, offsets, W.shape[0])


def encode(
    x: Float[Tensor, "rows d"],
    W_enc: Float[Tensor, "n d"],
    b_enc: Float[Tensor, " n"],
    b_dec: Float[Tensor, " d"] | None,
    selection: Selection,
    values: Float[Tensor, " entries"] | None = None,
) -> Float[Tensor, " entries"]:
    """The selected pre-activations `W_enc (x - b_dec) + b_enc`, with gradients.

    `x` must have had `b_dec` subtracted already; `b_dec` is named so that its gradient can be had without a matmul
    (the column sums of the gradients of the values, times W_enc). `values` are those that the selection has computed.
    """
    if values is None:
        products: Tensor = _backend(x).gather_dot(x.detach(), W_enc.detach(), selection.indices, selection.offsets)
        values = products + b_enc.detach()[selection.indices]
    return _Encode.apply(x, W_enc, b_enc, b_dec, selection, values)  # pyright: ignore


def decode(
    values: Float[Tensor, " entries"], W_dec: Float[Tensor, "n d"], selection: Selection
) -> Float[Tensor, "rows d"]:
    """The sum of each row's values times their decoder rows, with gradients."""
    return _Decode.apply(values, W_dec, selection)  # pyright: ignore


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W: Tensor, b: Tensor, b_dec: Tensor | None, selection: Selection, values: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.selection = selection
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        x, W = ctx.saved_tensors
        selection: Selection = ctx.selection
        grad: Tensor = grads[0].contiguous()
        backend = _backend(x)
        need_x, need_W, need_b, need_b_dec = ctx.needs_input_grad[:4]
        grad_x = backend.weighted_sum(grad, selection.indices, selection.offsets, W) if need_x else None
        grad_W = backend.scatter_outer(grad, *selection.by_latent, x) if need_W else None
        grad_b = None
        if need_b or need_b_dec:
            grad_b = grad.new_zeros(selection.n_latents).index_add_(0, selection.indices, grad)
        grad_b_dec = -(grad_b @ W) if need_b_dec and grad_b is not None else None
        return grad_x, grad_W, grad_b if need_b else None, grad_b_dec, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, W: Tensor, selection: Selection) -> Tensor:
        ctx.save_for_backward(values, W)
        ctx.selection = selection
        return _backend(W).weighted_sum(values, selection.indices, selection.offsets, W)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        values, W = ctx.saved_tensors
        selection: Selection = ctx.selection
        grad: Tensor = grads[0].contiguous()
        backend = _backend(W)
        need_values, need_W = ctx.needs_input_grad[:2]
        grad_values = backend.gather_dot(grad, W, selection.indices, selection.offsets) if need_values else None
        grad_W = backend.scatter_outer(values, *selection.by_latent, grad) if need_W else None
        return grad_values, grad_W, None
