"""Interventions along directions of the model's own space."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError, MismatchError
from monosem.interventions.amounts import Amount, Places
from monosem.interventions.base import Intervention
from monosem.interventions.where import Condition
from monosem.models import SubjectModel

Direction = Float[Tensor, " d"] | Sequence[float]
Vectors = Float[Tensor, "*rows d"] | Sequence[float]
"""One, or one for each row of a batch."""


class AddVector(Intervention):
    """A vector is added: x + strength v."""

    unchanged = "the vector or its strength is 0"

    fields = ("hook", "vector", "strength", "where")
    required = ("hook", "vector")

    @checked
    def __init__(self, hook: str, vector: Vectors, *, strength: Any = 1.0, where: Condition = None) -> None:
        """Make the edit.

        Args:
            hook: name of a hook point.
            vector: in the model's own units; (batch, d) for one of each row of the batch.
            strength: a number, or one for each row of the batch, (batch, 1).
            where: at which positions; see `ms.Where`.

        Raises:
            ConfigError: a number is not finite, or of a wrong shape.
        """
        super().__init__([hook], where)
        self.vector, self.strength = _vector(vector, "vector", 2), Amount(strength, 1, "strength")

    def replace(self, rows: Float[Tensor, "chosen d"], places: Places) -> Float[Tensor, "chosen d"]:
        vector = self.vector.to(rows.device)
        if vector.ndim == 2:
            _require_rows(len(vector), places)
            vector = vector[places.rows]
        _require_width(vector, rows, self.hooks[0])
        return rows + self.strength.at(places, vector) * vector

    def join(self, model: SubjectModel) -> None:
        """Ask whether the hook point is there."""
        model.hook_point(self.hooks[0])

    def __repr__(self) -> str:
        return f"AddVector({self.hooks[0]!r}, strength={self.strength})"


class _Along(Intervention):
    """The part of activations along a direction u of norm 1 is another: x + (new - <x, u>) u."""

    @checked
    def __init__(self, hook: str, direction: Direction, where: Condition) -> None:
        super().__init__([hook], where)
        self.direction = _unit(direction)

    @abstractmethod
    def new(self, along: Float[Tensor, "chosen 1"], places: Places) -> Float[Tensor, "chosen 1"]:
        """The new part, of what it is."""

    def replace(self, rows: Float[Tensor, "chosen d"], places: Places) -> Float[Tensor, "chosen d"]:
        direction = self.direction.to(rows.device, torch.promote_types(rows.dtype, torch.float32))
        _require_width(direction, rows, self.hooks[0])
        along = (rows.to(direction.dtype) @ direction)[:, None]
        return rows + (self.new(along, places) - along) * direction


class Project(_Along):
    """The part of activations along a direction is removed or rescaled: x + (scale - 1) <x, u> u, with u of norm 1."""

    unchanged = "there is nothing along the direction, or the scale is 1"

    fields = ("hook", "direction", "scale", "where")
    required = ("hook", "direction")

    @checked
    def __init__(self, hook: str, direction: Direction, *, scale: Any = 0.0, where: Condition = None) -> None:
        """Make the edit.

        Args:
            hook: name of a hook point.
            direction: of any length but 0.
            scale: what remains of the part: 0 nothing, 1 all; a number, or one for each row of the batch, (batch, 1).
            where: at which positions; see `ms.Where`.

        Raises:
            ConfigError: a number is not finite, or the direction is 0.
        """
        super().__init__(hook, direction, where)
        self.scale = Amount(scale, 1, "scale")

    def new(self, along: Float[Tensor, "chosen 1"], places: Places) -> Float[Tensor, "chosen 1"]:
        return self.scale.at(places, along) * along

    def __repr__(self) -> str:
        return f"Project({self.hooks[0]!r}, scale={self.scale})"


class CapProjection(_Along):
    """The part of activations along a direction is at most so long: x - relu(<x, u> - most) u, with u of norm 1."""

    unchanged = "the cap was never reached"

    fields = ("hook", "direction", "most", "where")
    required = ("hook", "direction", "most")

    @checked
    def __init__(self, hook: str, direction: Direction, *, most: Any, where: Condition = None) -> None:
        """Make the edit.

        Args:
            hook: name of a hook point.
            direction: of any length but 0; what points the other way is not capped.
            most: a number, or one for each row of the batch, (batch, 1).
            where: at which positions; see `ms.Where`.

        Raises:
            ConfigError: a number is not finite, or the direction is 0.
        """
        super().__init__(hook, direction, where)
        self.most = Amount(most, 1, "most")

    def new(self, along: Float[Tensor, "chosen 1"], places: Places) -> Float[Tensor, "chosen 1"]:
        return torch.minimum(along, self.most.at(places, along))

    def __repr__(self) -> str:
        return f"CapProjection({self.hooks[0]!r}, most={self.most})"


def _vector(value: Any, name: str, most_dimensions: int = 1) -> Tensor:
    try:
        vector = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{name} must be numbers, got a {type(value).__name__}") from error
    if not 1 <= vector.ndim <= most_dimensions or vector.numel() == 0:
        raise ConfigError(f"{name} must be of shape (d,), got {tuple(vector.shape)}")
    vector = vector if vector.dtype == torch.float64 else vector.to(torch.float32)
    if not bool(vector.isfinite().all()):
        raise ConfigError(f"{name} has numbers that are not finite")
    return vector


def _unit(value: Any) -> Tensor:
    direction = _vector(value, "direction").double()
    length = direction.norm()
    if not length > 0:
        raise ConfigError("the direction is 0: it points nowhere")
    return direction if abs(length - 1) < 1e-15 else direction / length


def _require_width(vector: Tensor, rows: Tensor, hook: str) -> None:
    if vector.shape[-1] != rows.shape[-1]:
        raise MismatchError(f"the vector has width {vector.shape[-1]}, {hook} has width {rows.shape[-1]}")


def _require_rows(n: int, places: Places) -> None:
    if places.context.rows is None and n != len(places.chosen):
        raise MismatchError(f"there are vectors for {n} rows, the batch has {len(places.chosen)}")
