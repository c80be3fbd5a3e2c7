"""The score "rule" in the table of scores: how well a rule foretells firings on text it was not made from; no judge."""

from __future__ import annotations

from collections.abc import Sequence

from monosem.explain.cases import Case
from monosem.explain.held_out import HeldOut
from monosem.explain.measure import NAME, measured
from monosem.explain.questions import Answer, Question
from monosem.features import Score


class Foretelling:
    """Where the rule holds, does the latent fire? And where it fires, does the rule hold?

    Value: F1 over tokens of held-out text; guessing scores about the firing rate. Details: precision, recall, and
    recall by level. Explanations without a rule, and latents that fire too rarely there, have no such score.
    """

    name = NAME
    chance = 0.0

    def __init__(self, text: HeldOut) -> None:
        self.text = text

    def questions(self, case: Case) -> list[Question]:
        return []

    def score(self, case: Case, answers: Sequence[Answer], judge: str | None) -> Score | None:
        if case.explanation.rule is None:
            return None
        return measured(case.explanation.rule, case.feature.latent, case.feature.max or 0.0, self.text)
