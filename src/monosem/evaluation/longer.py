"""What an SAE costs in contexts longer than those it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monosem.evaluation.curves import ByPosition
from monosem.evaluation.losses import Losses
from monosem.evaluation.metric import Metric, Seen
from monosem.evaluation.model_reading import ModelReading
from monosem.evaluation.survey import Extra, Survey, pass_over
from monosem.intervals import Interval

TIMES = 4
"""Of the length in training, where the model reads so far."""


class Beyond(Metric):
    """KL at positions beyond the contexts of the training, and beside those within."""

    def __init__(self, columns: Sequence[str], trained: int) -> None:
        super().__init__()
        self.columns, self.trained = columns, trained

    def add(self, seen: Seen) -> None:
        for found in seen.predictions().values():
            documents, beyond = found.documents.numpy(), found.places.numpy() >= self.trained
            self.sums.add("predictions", documents, np.ones(len(found)))
            self.sums.add("beyond", documents, beyond)
            for name in self.columns:
                self.sums.add(f"kl {name}", documents, found.kl[name])
                self.sums.add(f"beyond {name}", documents, np.where(beyond, found.kl[name], 0))

    def result(self, name: str) -> dict[str, Interval]:
        def beyond(s: dict[str, np.ndarray]) -> np.ndarray:
            return s[f"beyond {name}"] / s["beyond"]

        def within(s: dict[str, np.ndarray]) -> np.ndarray:
            return (s[f"kl {name}"] - s[f"beyond {name}"]) / (s["predictions"] - s["beyond"])

        ratio = self.sums.interval(lambda s: beyond(s) / within(s))
        return {"kl_beyond": self.sums.interval(beyond), "kl_beyond_over_within": ratio}


def beyond_training(survey: Survey) -> Extra | None:
    """Loss by position in contexts up to four times as long as in training, as far as the model reads."""
    place = survey.one_place()
    trained = None if place is None else place.reading.known.context_length
    if place is None or trained is None or place.reading.things != "tokens":
        return None
    length = min(TIMES * trained, place.model.context_length or 0)
    if length < trained + 2:
        return Extra(notes={"kl_beyond": f"not measured: {place.model.name} reads no more than {trained} tokens"})
    columns = [*survey.saes, "mean"]
    rules, hooks = {"context_length": length}, place.reading.first.hooks
    reading = ModelReading(survey.saes, place.model, hooks, survey.loss_tokens, rules, **place.reading.asked)
    reading.losses = Losses(reading.first.predicted, columns, reading.contexts, reading.known, survey.loss_tokens)
    reading.work = "evaluating longer contexts"
    curve, beyond = ByPosition(columns, length), Beyond(columns, trained)
    pass_over(reading, survey.columns, [curve, beyond], survey.keeper("longer", [curve, beyond]))
    return Extra(
        {name: beyond.result(name) for name in survey.saes},
        {name: {f"{key}_long": table for key, table in curve.tables(name).items()} for name in survey.saes},
        facts={"trained_context": trained, "longer_context": length},
    )
