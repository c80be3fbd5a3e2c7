"""When each norm of a model is removed: layer by layer, what disturbs least first."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

from monosem.arguments import checked
from monosem.errors import ConfigError, DataError

Part = Literal["mlp", "queries and keys", "values", "final", "separators", "first"]
"""What is removed: the norm before an MLP, before attention for queries and keys or for values, the last one; and then
the scale apart of separators, and that of the first position."""


class Removal(NamedTuple):
    """One thing that is removed."""

    step: int
    part: Part
    layer: int | None = None


@checked
@dataclass(frozen=True)
class NormSchedule:
    """Steps of training at which norms are removed, each layer some steps after the one below.

    As it stands it is the published one, of 12 layers and 2,000 steps; `over` makes it as long as need be.
    Source: Heimersheim, You can remove GPT2's LayerNorm by fine-tuning, 2024.
    """

    warm_up: float = 100
    """Steps until the learning rate has risen; it falls to zero, as a cosine, until the last step."""
    start: float = 200
    """The norm before the first layer's MLP."""
    mlp_gap: float = 20
    query_gap: float = 20
    value_gap: float = 30
    separator_gap: float = 20
    """From the last norm to the scale apart of separators."""
    first_gap: float = 100
    """And from there to that of the first position."""

    def __post_init__(self) -> None:
        wrong = [f.name for f in fields(self) if not getattr(self, f.name) >= 0]
        if wrong:
            raise ConfigError(f"a schedule's {wrong[0]} is a number of steps, got {getattr(self, wrong[0])}")

    @staticmethod
    def over(steps: int, layers: int) -> NormSchedule:
        """The published shares of a run of so many steps, in a model of so many layers."""
        like = NormSchedule()
        a_step, a_layer = steps / 2000, 12 / max(layers, 1)
        scaled = {f.name: getattr(like, f.name) * a_step for f in fields(like)}
        gaps = {name: scaled[name] * a_layer for name in ("mlp_gap", "query_gap", "value_gap")}
        return replace(like, **{**scaled, **gaps})

    def removals(self, layers: int) -> list[Removal]:
        """All of them, in their order, one a step at most."""
        places, at = list[tuple[float, Part, int | None]](), self.start
        parts: list[tuple[Part, float]] = [
            ("mlp", self.mlp_gap),
            ("queries and keys", self.query_gap),
            ("values", self.value_gap),
        ]
        for part, gap in parts:
            for layer in range(layers):
                places.append((at, part, layer))
                at += gap
        places.append((at, "final", None))
        places.append((at + self.separator_gap, "separators", None))
        places.append((at + self.separator_gap + self.first_gap, "first", None))
        found = list[Removal]()
        for at, part, layer in places:
            found.append(Removal(max(round(at), found[-1].step + 1 if found else 0), part, layer))
        return found

    def require_room(self, steps: int, layers: int, tokens_a_step: int) -> None:
        """See that all is removed before the last step.

        Raises:
            DataError: it is not.
        """
        last = self.removals(layers)[-1].step
        if last >= steps:
            raise DataError(
                f"the schedule's last removal is at step {last:,}, the tokens are enough for {steps:,} steps of "
                f"{tokens_a_step:,}: give more tokens, a smaller batch_tokens, or a shorter schedule"
            )
