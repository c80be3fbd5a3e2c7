"""How much: numbers of a setting, and the rows and positions that they are for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from monosem.errors import ConfigError, DataError
from monosem.models import EditContext


class Places(NamedTuple):
    """Where the rows stand that an intervention is given."""

    rows: Int[Tensor, " chosen"]
    """Of the batch."""
    positions: Int[Tensor, " chosen"]
    context: EditContext
    chosen: Bool[Tensor, "batch pos"]
    begins: Sequence[bool] | None = None
    """Of each latent, whether it is set here, and not at another hook point of this pass; None for all."""


class Amount:
    """Numbers of a setting: one, one for each latent, or one (or one for each latent) for each row of the batch."""

    def __init__(self, value: Any, n: int, name: str) -> None:
        """Take `value` for n latents.

        Raises:
            ConfigError: it is not numbers, not finite, or of another shape than 1, (n,), (batch, 1) or (batch, n).
        """
        try:
            numbers = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{name} must be numbers, got {value!r}") from error
        if isinstance(value, bool) or not bool(numbers.isfinite().all()):
            raise ConfigError(f"{name} must be finite numbers, got {_short(value)}")
        if numbers.ndim in (1, 2) and numbers.shape[-1] not in (1, n):
            raise ConfigError(
                f"{name} has shape {tuple(numbers.shape)} for {n} latents: give one number, one for each latent, or "
                f"one or {n} for each row of the batch"
            )
        if numbers.ndim > 2 or numbers.numel() == 0:
            raise ConfigError(f"{name} has shape {tuple(numbers.shape)}: give numbers, (latents,), or (batch, latents)")
        self.numbers, self.name = numbers, name

    def at(self, places: Places, like: Tensor) -> Tensor:
        """Broadcastable to (chosen, latents).

        Raises:
            DataError: it is for another number of rows than the batch has.
        """
        numbers = self.numbers.to(like)
        if numbers.ndim < 2:
            return numbers
        if places.rows.numel() and int(places.rows.max()) >= len(numbers):
            raise DataError(
                f"{self.name} is for {len(numbers)} rows, the batch has more: give one setting for all, or one a row"
            )
        if places.context.rows is None and len(places.chosen) != len(numbers):
            raise DataError(f"{self.name} is for {len(numbers)} rows, the batch has {len(places.chosen)}")
        return numbers[places.rows.to(numbers.device)]

    def __repr__(self) -> str:
        return f"{self.numbers.item():g}" if self.numbers.numel() == 1 else _short(self.numbers.tolist())


def _short(value: Any) -> str:
    words = str(value)
    return words if len(words) <= 60 else words[:57] + "..."
