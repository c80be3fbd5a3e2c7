"""How a batch's rows and a dictionary's latents are divided, and sums over what others hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosem.errors import ConfigError
from monosem.ranks.group import ALONE, Group


@dataclass(frozen=True)
class Division:
    """Who has what of one step. Ranks stand in a grid: those of a row hold the latents, those of a column the rows."""

    rows: Group = ALONE
    """Those that hold other rows of the batch, and the same latents."""
    latents: Group = ALONE
    """Those that hold other latents, and the same rows."""
    every: Group = ALONE

    @staticmethod
    def of(every: Group, over_latents: int = 1) -> Division:
        """Every `over_latents` ranks hold a dictionary together; there are as many parts of the batch as such bands.

        Raises:
            ConfigError: the ranks cannot be divided so.
        """
        if over_latents < 1 or every.size % over_latents:
            raise ConfigError(
                f"training.latent_ranks: a dictionary over {over_latents} processes needs a multiple of so many, there "
                f"{'is' if every.size == 1 else 'are'} {every.size}: start torchrun with another --nproc-per-node, or "
                "set another training.latent_ranks"
            )
        bands = [list(range(i, i + over_latents)) for i in range(0, every.size, over_latents)]
        latents = every.subgroup(bands)
        return Division(every.subgroup([list(column) for column in zip(*bands, strict=True)]), latents, every)

    @property
    def alone(self) -> bool:
        return self.every.size == 1

    @property
    def same_rows(self) -> Division:
        """As this, where all have the same rows: before training."""
        return Division(latents=self.latents, every=self.latents)

    def own_rows(self, n: int) -> slice:
        """This rank's part of a batch of n rows."""
        share = n // self.rows.size
        return slice(self.rows.rank * share, (self.rows.rank + 1) * share)

    def own(self, by_latent: Tensor) -> Tensor:
        """This rank's part of what belongs to latents, first dimension: every `size`-th, so that the first latents of
        nested dictionaries, which fire most, are dealt to all.
        """
        return by_latent[self.latents.rank :: self.latents.size]

    def whole(self, by_latent: Tensor) -> Tensor:
        """The reverse of `own`, on all ranks."""
        return torch.stack(self.latents.gather(by_latent), 1).flatten(0, 1) if self.latents.size > 1 else by_latent


class CommonWeight:
    """A matrix that ranks with other rows of the batch have in common, in one memory.

    The kernels hand over of its gradient only what belongs to the rows of the matrix that are this rank's, but of all
    rows of the batch. What else there is of it is a parameter's gradient, as ever: of this rank's rows of the batch.
    """

    def __init__(self, parameter: nn.Parameter, group: Group) -> None:
        self.parameter, self.group = parameter, group
        n = len(parameter)
        self.own = slice(group.rank * n // group.size, (group.rank + 1) * n // group.size)
        self.gradient: Tensor | None = None

    def add(self, gradient: Tensor) -> None:
        """Part of the gradient of this rank's rows."""
        self.gradient = gradient if self.gradient is None else self.gradient.add_(gradient)


_weights: ContextVar[Sequence[CommonWeight]] = ContextVar("_weights", default=())


def common_weight(weight: Tensor) -> CommonWeight | None:
    """What is known of a matrix that ranks have in common; None of others."""
    return next((one for one in _weights.get() if one.parameter is weight), None)


_current: ContextVar[Division] = ContextVar("_current")
_UNDIVIDED = Division()


def division() -> Division:
    """The division of the step that is being made."""
    return _current.get(_UNDIVIDED)


@contextmanager
def divided(by: Division, weights: Sequence[CommonWeight] = ()) -> Iterator[None]:
    """Within this block rows and latents are divided so, and those with other rows have these matrices in common."""
    tokens = _current.set(by), _weights.set(weights)
    try:
        yield
    finally:
        _current.reset(tokens[0])
        _weights.reset(tokens[1])


class _Sum(torch.autograd.Function):
    """The sum over a group. Everyone has the whole sum's loss, and gives its own part the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        return group.sum_(values.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:  # pyright: ignore
        return grads[0], None


class _Read(torch.autograd.Function):
    """What all latents read, and so has the gradients of those that others hold too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:  # pyright: ignore
        return ctx.group.sum_(grads[0].clone()), None


def read_by_all(values: Tensor) -> Tensor:
    """The same; its gradient is that of all latents, those of others too."""
    latents = division().latents
    return values if latents.size == 1 else _Read.apply(values, latents)  # pyright: ignore


def _summed(values: Tensor, group: Group) -> Tensor:
    return values if group.size == 1 else _Sum.apply(values, group)  # pyright: ignore


def over_rows(sums: Tensor) -> Tensor:
    """Sums over rows, over those that others hold too."""
    return _summed(sums, division().rows)


def over_latents(sums: Tensor) -> Tensor:
    """Sums over latents, over those that others hold too."""
    return _summed(sums, division().latents)


def a_row(total: Tensor, rows: int) -> Tensor:
    """Of a sum over the latents and rows here, so many: the sum over all latents, a mean over all rows."""
    return over_latents(over_rows(total)) / rows_in_all(rows)


def rows_in_all(own: int) -> int:
    """Rows of the batch, of which there are so many here."""
    return own * division().rows.size


def latents_in_all(own: int) -> int:
    """Latents of the dictionary, of which there are so many here."""
    return own * division().latents.size


def mean_over_rows(values: Tensor) -> Tensor:
    """The mean over all rows, along the first dimension."""
    return over_rows(values.mean(0)) / division().rows.size


def mean_square(error: Float[Tensor, "rows d"]) -> Float[Tensor, ""]:
    """The mean of the squares of all elements, of all rows."""
    return over_rows(error.pow(2).mean()) / division().rows.size
