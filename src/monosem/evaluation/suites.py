"""Which metrics there are: the one list that every evaluation goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from monosem.evaluation.board import plays_othello
from monosem.evaluation.curves import ByFrequency, ByPosition
from monosem.evaluation.dark_matter import WIDEST, DarkMatter
from monosem.evaluation.epsilon import EDITS, ONE_IN, OtherErrors
from monosem.evaluation.known import board, ceiling, planted_truth
from monosem.evaluation.l0 import L0
from monosem.evaluation.language import LanguageLoss
from monosem.evaluation.last_word import last_words
from monosem.evaluation.latents import Latents
from monosem.evaluation.longer import beyond_training
from monosem.evaluation.losses import Losses
from monosem.evaluation.metric import Metric
from monosem.evaluation.model_reading import ModelReading
from monosem.evaluation.reconstruction import Reconstruction
from monosem.evaluation.survey import Extra, Suite, Survey
from monosem.evaluation.untrained import untrained
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.sae import SAE


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


def _other_errors(survey: Survey) -> Metric | None:
    place = survey.one_place()
    if place is None:
        return None
    tokenizer = place.model.tokenizer if place.reading.things == "tokens" else None
    word = None if tokenizer is None else lambda token: str(tokenizer.decode([token]))
    reading, saes = place.reading, list(survey.saes)
    tokens = min(survey.loss_tokens, survey.tokens)
    others = Losses(reading.first.predicted, saes, reading.contexts, reading.known, tokens, EDITS, ONE_IN)
    return OtherErrors(others, saes, reading.contexts.context_length, word)


def _by_position(survey: Survey) -> Metric | None:
    place = survey.one_place()
    return None if place is None else ByPosition(list(survey.columns), place.reading.contexts.context_length)


def _by_frequency(survey: Survey) -> Metric | None:
    place = survey.one_place()
    if place is None or not isinstance(next(iter(place.losses.losses.values())), LanguageLoss):
        return None
    return ByFrequency(list(survey.columns), place.reading.token_counts())


PASS: dict[Suite, list[Callable[[Survey], Metric | None]]] = {
    "core": [_reconstruction, _l0, _dark_matter, _losses, _other_errors, _by_position, _by_frequency, _latents],
    "full": [],
}

"""Metrics of a pass, in the order of the report; None where one has no meaning. The full suite has those of both."""

OF_DICTIONARY: dict[Suite, list[Callable[[SAE], dict[str, Interval]]]] = {"core": [], "full": []}
"""Metrics that need no data: `f(sae)`."""


def _usefulness(survey: Survey) -> Extra | None:
    """Of dictionaries of one hook point of one language model."""
    reading = survey.reading
    if not isinstance(reading, ModelReading) or not isinstance(reading.model, SubjectModel):
        return None
    if len(reading.first.hooks) > 1 or reading.things != "tokens" or reading.model.tokenizer is None:
        return None
    if plays_othello(reading.model):  # which reads no English
        return None
    from monosem.evaluation.probing.usefulness import usefulness  # scipy's statistics take their time

    found = usefulness(survey.saes, reading.model, reading.first.hooks[0], survey.keeping)
    return Extra({name: metrics for name, metrics in found.items() if name in survey.columns})


CALLS: dict[Suite, list[Callable[[Survey], Extra | None]]] = {
    "core": [last_words, planted_truth],
    "full": [beyond_training, untrained, _usefulness, ceiling, board],
}
"""What goes through data of its own (other contexts, other models, probing, ground truth) and joins the report."""


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


def extras_of(survey: Survey, suite: Suite) -> Iterator[Extra]:
    """What the calls say, one after the other."""
    for call in CALLS["core"] + (CALLS["full"] if suite == "full" else []):
        extra = call(survey)
        if extra is not None:
            yield extra
