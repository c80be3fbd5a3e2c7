"""ProLU: a bias that decides whether a latent is on, and leaves its value alone."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.sae.relu import ReLUSAE
from monosem.sae.threshold import Entries

Gradient = Literal["relu", "ste"]


class ProLUSAE(ReLUSAE):
    """codes = m where m > 0 and m + b_enc > 0, else 0, with m = W_enc (t(x) - b_dec).

    In use it is JumpReLU with thresholds max(0, -b_enc). The bias has no gradient of its own; where a latent is on and
    the loss has the slope g by its value, training takes one of two:

        "relu"   db = g        dm = g             as if the value were m + b
        "ste"    db = g m      dm = g (1 + m)     the straight-through estimate

    The second depends on the scale of m: keep an input transform that scales. The loss is that of `ReLUSAE`.

    Source: Taggart, ProLU: A Nonlinearity for Sparse Autoencoders, 2024.
    """

    architecture: ClassVar[str] = "prolu"
    good_for: ClassVar[str] = "relu without the bias's shrinkage, at the cost of relu"

    @checked
    def __init__(self, d_in: int, n_latents: int, *, gradient: Gradient = "relu", **settings: Any) -> None:
        """Make an untrained SAE.

        Args:
            d_in: width of the activations.
            n_latents: size of the dictionary.
            gradient: which of the two synthetic gradients.
            **settings: those of `ReLUSAE`.

        Raises:
            ConfigError: another gradient.
        """
        super().__init__(d_in, n_latents, **settings)
        self.gradient: Gradient = gradient

    @property
    def settings(self) -> dict[str, Any]:
        return {"gradient": self.gradient, **super().settings}

    @property
    def bias(self) -> Float[Tensor, " n_latents"]:
        return torch.zeros_like(self.b_enc)

    @property
    def limits(self) -> Float[Tensor, " n_latents"]:
        return (-self.b_enc.detach()).clamp_min(0)

    def add_to_pre_activations(self, by: Float[Tensor, " n_latents"]) -> None:
        if by.any():
            raise ConfigError(
                "the bias of prolu decides whether a latent is on and leaves its value alone: it cannot take up "
                "a shift of a transcoder's inputs: ms.convert(sae, 'jumprelu') first"
            )

    def activation(self, entries: Entries) -> Tensor:
        return _ProLU.apply(entries.pre, entries.spread(self.b_enc), self.gradient)  # pyright: ignore


class _ProLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, b: Tensor, gradient: Gradient) -> Tensor:
        values = torch.where((m > 0) & (m > -b), m, 0)
        ctx.save_for_backward(values)
        ctx.gradient = gradient
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (values,) = ctx.saved_tensors
        grad: Tensor = grads[0]
        if ctx.gradient == "relu":
            grad_m = torch.where(values > 0, grad, 0)
            return grad_m, grad_m, None
        grad_b = grad * values
        return torch.where(values > 0, grad + grad_b, 0), grad_b, None
