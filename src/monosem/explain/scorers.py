"""Scorers: kinds of test. Each says what to ask a judge about a case, and what the answers are worth.

One window a question, so that no window stands beside another and scores do not depend on their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from monosem.explain.cases import Case, random_of
from monosem.explain.measures import area, by_level, correlation, mean_of_rates, rate, scored
from monosem.explain.questions import Answer, Question, prompt
from monosem.explain.windows import marked, n_marked, plain
from monosem.features import Example
from monosem.features.explanations import Score

YES_NO = ("yes", "no")
IN_A_GROUP = 5
"""Texts from which the intruder is to be found."""


class Scorer(Protocol):
    """A kind of test."""

    @property
    def name(self) -> str: ...

    @property
    def chance(self) -> float:
        """What guessing scores."""
        ...

    def questions(self, case: Case) -> list[Question]:
        """For the judge; none where none is needed."""
        ...

    def score(self, case: Case, answers: Sequence[Answer], judge: str | None) -> Score | None:
        """From the answers to these questions; None if they say nothing."""
        ...


class Detection:
    """Does the explanation fit the text? (Paulo et al., 2024, one text at a time.)

    Value: the mean of sensitivity (of firings, each level by its share of all) and specificity (of silent windows), so
    that always "yes" and always "no" both give 0.5. Details: both; the same by level; specificity at near misses; the
    area under the ROC curve; which share of the windows that it is said to fit it would truly fire in, at the latent's
    own rate (precision).
    """

    name = "detection"
    chance = 0.5

    def questions(self, case: Case) -> list[Question]:
        return [self._question(case, plain(example)) for example in [*case.firings, *case.silent, *case.near]]

    def _question(self, case: Case, text: str) -> Question:
        return Question(prompt(self.name), f"Description: {case.explanation.text}\n\nText: {text}", YES_NO)

    def score(self, case: Case, answers: Sequence[Answer], judge: str | None) -> Score | None:
        return yes_or_no(case, answers, judge)


class Fuzzing(Detection):
    """Are these the tokens? As detection, but tokens are marked: those that fire, or in other windows as many others.

    Windows in which it is silent have random tokens marked, near misses the token on which it was nearly on. Of firings
    the tokens from 0.3 of the window's strongest are marked.
    """

    name = "fuzzing"

    def questions(self, case: Case) -> list[Question]:
        n = math.ceil(float(np.mean([n_marked(example) for example in case.firings] or [1])))
        shown = [marked(example) for example in case.firings]
        shown += [marked(example, any_of(example, case.feature.latent, n)) for example in case.silent]
        shown += [marked(example, lambda i, peak=example.peak: i == peak) for example in case.near]
        return [self._question(case, text) for text in shown]


def any_of(example: Example, latent: int, n: int) -> Callable[[int], bool]:
    """Marks `n` random tokens of a window, always the same ones of the same window."""
    random = np.random.default_rng(random_of(example, latent))
    chosen = frozenset(random.permutation(len(example.texts))[:n].tolist())
    return lambda i: i in chosen


def yes_or_no(case: Case, answers: Sequence[Answer], judge: str | None) -> Score | None:
    """From answers to windows that fire, that are silent, and near misses, in this order."""
    yes = np.array([answer.chances[0] if answer.chances else math.nan for answer in answers])
    known = ~np.isnan(yes)
    fires, silent, near = _split(yes, case)
    heard = ~np.isnan(fires)
    right = _right(fires[heard])
    sensitivity = rate(right, case.weights[heard])
    specificity = rate(1 - _right(silent[~np.isnan(silent)]))
    curve = area(fires[heard], silent[~np.isnan(silent)], case.weights[heard])
    details = {
        "sensitivity": sensitivity.value,
        "specificity": specificity.value,
        "specificity near": rate(1 - _right(near[~np.isnan(near)])).value,
        "auc": curve.value,
        "precision": _precision(sensitivity.value, specificity.value, case.base_rate),
        "unanswered": 1 - float(known.mean()) if len(known) else 0.0,
    }
    return scored(mean_of_rates(sensitivity, specificity), judge, details | by_level(right, case.levels[heard]))


def _split(values: np.ndarray, case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    a, b = len(case.firings), len(case.firings) + len(case.silent)
    return values[:a], values[a:b], values[b:]


def _right(chances: np.ndarray) -> np.ndarray:
    """1 where "yes" is likelier, 0 where "no" is; a half where they are equal."""
    return (chances > 0.5) + 0.5 * (chances == 0.5)


def _precision(sensitivity: float, specificity: float, base_rate: float) -> float:
    true, false = sensitivity * base_rate, (1 - specificity) * (1 - base_rate)
    return true / (true + false) if true + false > 0 else math.nan


class Intruder:
    """Which text does not belong? No explanation is shown: it says whether the firings have anything in common.

    Four windows of neighbouring activation and one silent window with random tokens marked, in random order. Value: the
    share of intruders found, of which guessing finds a fifth.
    """

    name = "intruder"
    chance = 1 / IN_A_GROUP

    def questions(self, case: Case) -> list[Question]:
        return [question for question, _, _ in self._groups(case)]

    def _groups(self, case: Case) -> Iterable[tuple[Question, int, int]]:
        """Each question, which text is the intruder, and the level of the others."""
        order = sorted(range(len(case.firings)), key=lambda i: (-case.firings[i].activation, case.firings[i].passage))
        together = IN_A_GROUP - 1
        for number, at in enumerate(range(0, len(order) - together + 1, together)):
            if not case.silent:
                return
            members, alien = order[at : at + together], case.silent[number % len(case.silent)]
            n = math.ceil(float(np.mean([n_marked(case.firings[i]) for i in members])))
            random = np.random.default_rng([random_of(alien, case.feature.latent), number])
            place = int(random.integers(IN_A_GROUP))
            texts = [marked(case.firings[i]) for i in random.permutation(members)]
            texts.insert(place, marked(alien, any_of(alien, case.feature.latent, n)))
            listed = "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))
            choices = tuple(str(i) for i in range(1, IN_A_GROUP + 1))
            yield Question(prompt(self.name), listed, choices), place, int(np.median(case.levels[members]))

    def score(self, case: Case, answers: Sequence[Answer], judge: str | None) -> Score | None:
        right: list[float] = []
        levels: list[int] = []
        for (_, place, level), answer in zip(self._groups(case), answers, strict=True):
            if answer.chances:
                best = max(answer.chances)
                right.append((answer.chances[place] == best) / answer.chances.count(best))
                levels.append(level)
        found = np.array(right)
        details = {"unanswered": 1 - len(right) / len(answers) if answers else 0.0}
        return scored(rate(found), judge, details | by_level(found, np.array(levels)))


class Simulation:
    """How strongly does it fire on every token? (Bills et al., 2023.)

    The judge gives each token a number from 0 to 10 (the expected one, where it tells chances). Value: Pearson's r with
    the true activations over all tokens of the firing and silent windows, of which guessing gives 0.
    """

    name = "simulation"
    chance = 0.0

    def questions(self, case: Case) -> list[Question]:
        return [self._question(case, example) for example in [*case.firings, *case.silent]]

    def _question(self, case: Case, example: Example) -> Question:
        listed = "\n".join(f"{i}: {text!r}" for i, text in enumerate(example.texts, 1))
        words = f"Description: {case.explanation.text}\n\nTokens:\n{listed}"
        return Question(prompt(self.name), words, tokens=tuple(example.texts))

    def score(self, case: Case, answers: Sequence[Answer], judge: str | None) -> Score | None:
        windows = [*case.firings, *case.silent]
        levels = [*case.levels.tolist(), *[0] * len(case.silent)]
        most = case.feature.max or 1.0
        pairs = [
            (np.array(answer.numbers), 10 * example.activations.astype(float) / most, level)
            for example, answer, level in zip(windows, answers, levels, strict=True)
            if answer.numbers
        ]
        details = {"unanswered": 1 - len(pairs) / len(answers) if answers else 0.0}
        for level in sorted(set(levels) - {0}):
            of_level = [(p, t) for p, t, at in pairs if at in (level, 0)]
            details[f"level {level}"] = correlation(*_columns(of_level)).value
        return scored(correlation(*_columns([(p, t) for p, t, _ in pairs])), judge, details)


def _columns(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return [p for p, _ in pairs], [t for _, t in pairs]


def separation(case: Case, value: Callable[[Example], float], judge: str | None) -> Score | None:
    """How well a number that each window has tells firings from silence: the area under the ROC curve."""
    fires, silent, near = (np.array([value(e) for e in part]) for part in (case.firings, case.silent, case.near))
    details = {"auc near": area(fires, near, case.weights if len(near) else None).value}
    for level in np.unique(case.levels).tolist():
        details[f"level {level}"] = area(fires[case.levels == level], silent).value
    return scored(area(fires, silent, case.weights), judge, details)
