"""A loss of raw reconstructions, as architectures ask for it: of errors in transformed units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from monosem import kernels
from monosem.activations import ActivationSource, Standing
from monosem.sae import SAE


class Cost(NamedTuple):
    """What reconstructions cost, with a gradient."""

    loss: Float[Tensor, ""]
    terms: dict[str, Tensor]
    """Its parts, for the log."""


CostFunction = Callable[[Float[Tensor, "rows *source d"]], Cost]
"""From raw reconstructions of a batch to a mean over the rows of all ranks; the gradient is that of the rows here."""


class OpenedLoss(Protocol):
    """A loss of the reconstructions of one dictionary."""

    def on(self, standing: list[Standing]) -> CostFunction:
        """The loss of the rows that stand there."""
        ...


class Loss(Protocol):
    """In place of the squared error, a loss that needs more than reconstructions."""

    @property
    def words(self) -> str:
        """What it is, for people."""
        ...

    def opened(self, source: ActivationSource) -> OpenedLoss:
        """That of what a dictionary predicts of a source; refuses what cannot be."""
        ...


@dataclass
class _Asked:
    """An error whose cost an architecture has asked for."""

    error: Float[Tensor, "rows d"]
    terms: dict[str, Tensor]
    gradient: Float[Tensor, "rows d"] | None = None


@dataclass
class ErrorCost:
    """Costs of errors in one step. An architecture may ask several times: nested dictionaries, gates, a wider k."""

    function: CostFunction
    sae: SAE
    goal: Float[Tensor, "rows d"]
    """What is to be reconstructed, in transformed units."""
    x: Float[Tensor, "rows d"]
    """What the dictionary reads, raw."""
    _asked: list[_Asked] = field(default_factory=list[_Asked])

    def __call__(self, error: Float[Tensor, "rows d"]) -> Float[Tensor, ""]:
        """What the reconstruction costs that leaves this error."""
        raw = self.sae.target_transform.inverse(self.goal - error, self.x)
        cost = self.function(raw.reshape(len(raw), *self.sae.out_shape))
        asked = _Asked(error.detach(), cost.terms)

        def keep(gradient: Tensor) -> None:
            asked.gradient = gradient

        if error.requires_grad:
            error.register_hook(keep)
        self._asked.append(asked)
        return cost.loss

    def terms(self, residual: Float[Tensor, "rows d"]) -> dict[str, Tensor]:
        """The parts of the cost of what the whole dictionary leaves."""
        return self._of(residual).terms

    def wanted(self, residual: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """In which direction reconstructions must change to cost less, as large in all as what is left.

        Of the squared error that is what is left itself. It is what dead latents are to explain.
        """
        gradient = self._of(residual).gradient
        if gradient is None:
            return torch.zeros_like(residual)
        sizes = [kernels.mean_square(part).sqrt() for part in (residual, gradient)]
        return gradient * (sizes[0] / sizes[1].clamp_min(torch.finfo(gradient.dtype).tiny))

    def _of(self, residual: Float[Tensor, "rows d"]) -> _Asked:
        """The error that is the residual: the same memory."""
        return next(asked for asked in self._asked if asked.error.data_ptr() == residual.data_ptr())
