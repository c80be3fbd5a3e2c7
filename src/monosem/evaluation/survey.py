"""What is evaluated, on what; and what else than metrics of the pass may join its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from monosem.evaluation.going_on import Keeper, Keeping
from monosem.evaluation.losses import Losses
from monosem.evaluation.metric import Column, Metric
from monosem.evaluation.model_reading import ModelReading
from monosem.evaluation.tables import DataTable
from monosem.evaluation.truth import Planted
from monosem.evaluation.vectors import VectorReading
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.ranks import everyone
from monosem.sae import SAE

Suite = Literal["core", "full"]


@dataclass
class Survey:
    """What is evaluated, on what."""

    saes: Mapping[str, SAE]
    columns: Mapping[str, Column]
    """The SAEs and the controls, by name."""
    reading: ModelReading | VectorReading
    inputs: Float[Tensor, "rows ..."]
    """A sample of what is read."""
    sample: Float[Tensor, "rows d"]
    """What is to be predicted of it."""
    losses: Losses | None
    """None where no losses are wanted."""
    last_words: str | Path | None = None
    """A file of passages whose last word is to be guessed."""
    tokens: int = 500_000
    loss_tokens: int = 65_536
    untrained_tokens: int | None = None
    """For how many the SAE of the untrained model is trained; as many as can be borne if not given."""
    planted: Planted | None = None
    """The generator of the rows, if it is one."""
    keeping: Keeping | None = None
    """Where states are kept, if they are."""

    def keeper(self, part: str, metrics: Sequence[Metric]) -> Keeper | None:
        """What keeps the state of a part of this evaluation."""
        return None if self.keeping is None else self.keeping.keeper(part, metrics)

    def one_place(self) -> OnePlace | None:
        """Where losses are measured of one model, with one source replaced; else None."""
        losses, reading = self.losses, self.reading
        if not losses or not losses.single or not isinstance(reading, ModelReading):
            return None
        return OnePlace(losses, reading, reading.model) if isinstance(reading.model, SubjectModel) else None


class OnePlace(NamedTuple):
    """The losses at one source of one model."""

    losses: Losses
    reading: ModelReading
    model: SubjectModel


@dataclass
class Extra:
    """What goes through data of its own and joins a report."""

    columns: dict[str, dict[str, Interval]] = field(default_factory=dict[str, dict[str, Interval]])
    """By name of the dictionary or control; a new name is a new column."""
    tables: dict[str, dict[str, DataTable]] = field(default_factory=dict[str, dict[str, DataTable]])
    notes: dict[str, str] = field(default_factory=dict[str, str])
    facts: dict[str, str | int | float] = field(default_factory=dict[str, str | int | float])


def pass_over(
    reading: ModelReading, columns: Mapping[str, Column], metrics: Sequence[Metric], keeper: Keeper | None = None
) -> None:
    """One more pass, from where it was kept: all processes take part, and all know the sums.

    Raises:
        Interrupted: the user asked to stop; all is kept.
    """
    with keeper.request if keeper else nullcontext():
        for seen in reading.seen(columns, keeper):
            for metric in metrics:
                metric.add(seen)
    if keeper:
        keeper.save()
    for metric in metrics:
        metric.add_up(everyone())
