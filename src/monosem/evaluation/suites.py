"""Which metrics there are: the one list that every evaluation goes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from monosem.evaluation.curves import ByFrequency, ByPosition
from monosem.evaluation.dark_matter import WIDEST, DarkMatter
from monosem.evaluation.epsilon import OtherErrors
from monosem.evaluation.l0 import L0
from monosem.evaluation.language import LanguageLoss
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
    inputs: Float[Tensor, "rows ..."]
    """A sample of what is read."""
    sample: Float[Tensor, "rows d"]
    """What is to be predicted of it."""
    losses: Losses | None
    """None where no losses are wanted."""


def _reconstruction(survey: Survey) -> Metric:
    return Reconstruction(survey.sample.mean(0), list(survey.columns))


def _latents(survey: Survey) -> Metric:
    reading = survey.reading
    if not isinstance(reading, ModelReading) or not isinstance(reading.model, SubjectModel) or not reading.first.alone:
        return Latents(survey.columns)
    return Latents(survey.columns, reading.model, reading.first.hooks[0], reading.first.targets[0])


def _l0(survey: Survey) -> Metric:
    return L0(list(survey.saes))


def _dark_matter(survey: Survey) -> Metric | None:
    mean = survey.inputs.flatten(1).mean(0)
    return DarkMatter(mean, list(survey.saes)) if len(mean) <= WIDEST else None


def _losses(survey: Survey) -> Metric | None:
    return survey.losses or None


def _one_place(survey: Survey) -> tuple[Losses, ModelReading] | None:
    """Where the model is one, with one prediction a position, and one source is replaced."""
    losses, reading = survey.losses, survey.reading
    fits = losses and losses.single and isinstance(reading, ModelReading) and isinstance(reading.model, SubjectModel)
    return (losses, reading) if losses and fits and isinstance(reading, ModelReading) else None


def _other_errors(survey: Survey) -> Metric | None:
    place = _one_place(survey)
    if place is None:
        return None
    losses, reading = place
    tokenizer = reading.model.tokenizer if reading.things == "tokens" else None
    word = None if tokenizer is None else lambda token: str(tokenizer.decode([token]))
    return OtherErrors(losses, list(survey.saes), word)


def _by_position(survey: Survey) -> Metric | None:
    place = _one_place(survey)
    return None if place is None else ByPosition(list(survey.columns), place[1].contexts.context_length)


def _by_frequency(survey: Survey) -> Metric | None:
    place = _one_place(survey)
    if place is None or not isinstance(next(iter(place[0].losses.values())), LanguageLoss):
        return None
    return ByFrequency(list(survey.columns), place[1].token_counts())


PASS: dict[Suite, list[Callable[[Survey], Metric | None]]] = {
    "core": [_reconstruction, _l0, _dark_matter, _losses, _other_errors, _by_position, _by_frequency, _latents],
    "full": [],
}

"""Metrics of a pass, in the order of the report; None where one has no meaning. The full suite has those of both."""

OF_DICTIONARY: dict[Suite, list[Callable[[SAE], dict[str, Interval]]]] = {"core": [], "full": []}
"""Metrics that need no data: `f(sae)`."""


def _usefulness(survey: Survey) -> dict[str, dict[str, Interval]]:
    """Of dictionaries of one hook point of one language model."""
    reading = survey.reading
    if not isinstance(reading, ModelReading) or not isinstance(reading.model, SubjectModel):
        return {}
    if len(reading.first.hooks) > 1 or reading.things != "tokens" or reading.model.tokenizer is None:
        return {}
    from monosem.evaluation.probing.usefulness import usefulness  # scipy's statistics take their time

    return usefulness(survey.saes, reading.model, reading.first.hooks[0])


OF_EVERYTHING: list[Callable[[Survey], dict[str, dict[str, Interval]]]] = [_usefulness]
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


def of_everything(survey: Survey, suite: Suite) -> dict[str, dict[str, Interval]]:
    """What has calls of its own says, by name of a column; nothing outside the full suite."""
    found: dict[str, dict[str, Interval]] = {}
    for measure in OF_EVERYTHING if suite == "full" else []:
        for name, metrics in measure(survey).items():
            found.setdefault(name, {}).update(metrics)
    return found
