"""Explanations written by a judge, from passages of all strengths; others are left for the tests."""

from __future__ import annotations

import math
from collections.abc import Sequence

from monosem.errors import DataError
from monosem.explain.cases import random_of
from monosem.explain.questions import AnyJudge, Question, prompt
from monosem.explain.windows import ExampleRows, marked
from monosem.features import Example, Feature, FeatureStore
from monosem.features.explanations import Explanation, Explanations

STRONG, OTHERS = 6, 4
"""Passages that are shown: of the strongest, and of random weaker ones."""
FEATURES_AT_ONCE = 512


def shown_examples(feature: Feature) -> list[Example]:
    """The passages that an explainer is shown, strongest first: every other of the strongest, and some random ones."""
    strong = feature.top[::2][:STRONG]
    places = {(example.passage, example.start) for example in feature.top}
    others = [example for example in feature.samples if (example.passage, example.start) not in places]
    others.sort(key=lambda example: random_of(example, feature.latent))
    return strong + sorted(others[:OTHERS], key=lambda example: -example.activation)


def question(feature: Feature, examples: Sequence[Example]) -> Question:
    """What is asked of one feature."""
    most = feature.max or 1.0
    lines = [f"{marked(example)} ({max(1, math.ceil(10 * example.activation / most))})" for example in examples]
    text = "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))
    if feature.promoted:
        likelier = ", ".join(repr(weight.text) for weight in feature.promoted[:6])
        text += f"\n\nLikelier to come next: {likelier}"
    return Question(prompt("explain"), text)


def questions(store: FeatureStore, latents: Sequence[int]) -> dict[int, tuple[Question, list[Example]]]:
    """Of every latent that fires: what is asked, and the passages that are shown.

    Raises:
        DataError: the store has no passages of text.
    """
    if store.pictures is not None or store.rows is not None:
        raise DataError(f"{store.path} has no passages of text, and a judge explains what it reads")
    found: dict[int, tuple[Question, list[Example]]] = {}
    for at in range(0, len(latents), FEATURES_AT_ONCE):
        for feature in store.features(latents[at : at + FEATURES_AT_ONCE]):
            examples = shown_examples(feature)
            if examples:
                found[feature.latent] = (question(feature, examples), examples)
    return found


class Writes:
    """What makes a judge an explainer."""

    def explain(self: AnyJudge, store: FeatureStore, latents: Sequence[int]) -> list[Explanation]:
        """One explanation a latent that fires, as `written`."""
        return list(written(store, latents, self))


def written(store: FeatureStore, latents: Sequence[int], judge: AnyJudge, progress: bool = True) -> Explanations:
    """One explanation a latent that fires, in the judge's words.

    Latents of which it says nothing that can be used have an empty text, and the reason as their failure.

    Raises:
        DataError: the store has no passages of text.
        JudgeError: as `Judge.answer`.
    """
    asked, rows = questions(store, latents), ExampleRows(store)
    answers = judge.answer([question for question, _ in asked.values()], progress)
    items = [
        Explanation(
            latents=[latent],
            text=answer.line,
            explainer=judge.name,
            seen=rows.of(latent, examples),
            failure=None if answer.line else f"unreadable: {answer.trouble or 'no answer'}",
        )
        for (latent, (_, examples)), answer in zip(asked.items(), answers, strict=True)
    ]
    return Explanations(store.path, judge.name, items)
