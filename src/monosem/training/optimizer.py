"""Adam, in one pass over memory; rows of unit-norm decoders stay on the sphere."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from monosem import kernels

EPS = 1e-8
MOMENTS = ("mean", "square")
"""As `state` calls them."""


class Adam:
    """Adam (Kingma & Ba, 2015) on named parameters.

    Of `unit_rows` parameters only the part of the gradient that turns a row is used, and rows are rescaled to norm 1.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], beta1: float, beta2: float, unit_rows: Collection[str] = ()
    ) -> None:
        self.parameters, self.beta1, self.beta2, self.unit_rows = dict(parameters), beta1, beta2, set(unit_rows)
        self.mean = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.square = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def step(
        self, lr: float, gradients: Mapping[str, Tensor] | None = None, own: Mapping[str, slice] | None = None
    ) -> None:
        """Use up the gradients: those of the parameters, or others. Of those named in `own` some rows change alone."""
        self.steps += 1
        corrections = (1 - self.beta1**self.steps, 1 - self.beta2**self.steps)
        settings = (lr, self.beta1, self.beta2, EPS, *corrections)
        for name, grad in (self.gradients if gradients is None else gradients).items():
            parameter, rows = self.parameters[name], (own or {}).get(name, slice(None))
            changed = (t[rows] if t.ndim else t for t in (parameter.data, self.mean[name], self.square[name]))
            value, mean, square, used = (t.flatten(1) if t.ndim > 2 else t for t in (*changed, grad))
            kernels.adam_(value, used, mean, square, settings, unit_rows=name in self.unit_rows)
            parameter.grad = None
            kernels.done_with(grad)

    @property
    def gradients(self) -> dict[str, Tensor]:
        """Those of the parameters."""
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}

    def state(self) -> dict[str, Tensor]:
        """The moments, by name."""
        means = {f"mean.{name}": t for name, t in self.mean.items()}
        return means | {f"square.{name}": t for name, t in self.square.items()}

    def load_state(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take up what `state` returned."""
        for name in self.parameters:
            self.mean[name].copy_(tensors[f"mean.{name}"])
            self.square[name].copy_(tensors[f"square.{name}"])
        self.steps = steps
