"""Which metrics there are: the one list that every evaluation goes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from monosem.evaluation.latents import Latents
from monosem.evaluation.losses import Losses
from monosem.evaluation.metric import Column, Metric
from monosem.evaluation.model_reading import ModelReading
from monosem.evaluation.reconstruction import Reconstruction
from monosem.evaluation.vectors import VectorReading
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.sae import SAE

Suite = Literal["core", "full"]


@dataclass
class Survey:
    """What is evaluated, on what."""

    saes: Mapping[str, SAE]
    columns: Mapping[str, Column]
    """The SAEs and the controls, by name."""
    reading: ModelReading | VectorReading
    sample: Float[Tensor, "rows d"]
    """Some of what is to be predicted."""
    losses: Losses | None
    """None where no losses are wanted."""


def _reconstruction(survey: Survey) -> Metric:
    return Reconstruction(survey.sample.mean(0), list(survey.columns))


def _latents(survey: Survey) -> Metric:
    reading = survey.reading
    if not isinstance(reading, ModelReading) or not isinstance(reading.model, SubjectModel) or not reading.first.alone:
        return Latents(survey.columns)
    return Latents(survey.columns, reading.model, reading.first.hooks[0], reading.first.targets[0])


def _losses(survey: Survey) -> Metric | None:
    return survey.losses or None


PASS: dict[Suite, list[Callable[[Survey], Metric | None]]] = {"core": [_reconstruction, _losses, _latents], "full": []}
"""Metrics of a pass, in the order of the report; None where one has no meaning. The full suite has those of both."""

OF_DICTIONARY: dict[Suite, list[Callable[[SAE], dict[str, Interval]]]] = {"core": [], "full": []}
"""Metrics that need no data: `f(sae)`."""

OF_EVERYTHING: list[Callable[[Survey], dict[str, dict[str, Interval]]]] = []
"""What has calls of its own (probing, ground truth) and joins the full suite: by name of the SAE, then by metric."""


def metrics_of(survey: Survey, suite: Suite) -> list[Metric]:
    """The metrics of a pass."""
    makers = PASS["core"] + (PASS["full"] if suite == "full" else [])
    return [metric for make in makers if (metric := make(survey)) is not None]


def of_dictionary(sae: SAE, suite: Suite) -> dict[str, Interval]:
    """What the dictionary alone says."""
    found: dict[str, Interval] = {}
    for measure in OF_DICTIONARY["core"] + (OF_DICTIONARY["full"] if suite == "full" else []):
        found |= measure(sae)
    return found
