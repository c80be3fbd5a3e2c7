"""score: how well explanations do in tests, beside two floors: shuffled, and of a model of random weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from monosem.arguments import NotNegative, checked
from monosem.errors import ConfigError, DataError
from monosem.explain.cases import LEVELS, Case, case, testable
from monosem.explain.failures import FAILURES, failure
from monosem.explain.held_out import held_out
from monosem.explain.measures import Rate
from monosem.explain.questions import Answer, AnyJudge, Question
from monosem.explain.ruled import Foretelling
from monosem.explain.scorers import Detection, Fuzzing, Intruder, Scorer, Simulation
from monosem.explain.unjudged import Surprisal
from monosem.explain.windows import ExampleRows
from monosem.features import FeatureStore
from monosem.features.explanations import Explanation, Explanations, Score
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.spelling import listed
from monosem.work import as_job, doing

JUDGED: dict[str, Callable[[], Scorer]] = {
    "detection": Detection,
    "fuzzing": Fuzzing,
    "intruder": Intruder,
    "simulation": Simulation,
}
"""Those that need a judge, by name."""
SCORERS = (*JUDGED, "surprisal", "rule")
CLASSIFIES = ("detection", "rule", "fuzzing")
"""Scores that tell how an explanation fails, the best of them first."""
SHUFFLED, RANDOM = "shuffled among features", "a model of random weights"
DRAWS = 2000
SHOWN = ("sensitivity", "specificity", *(f"level {level}" for level in range(1, LEVELS + 1)))
"""Details that the table has columns for."""


@dataclasses.dataclass(frozen=True)
class Row:
    """What one kind of test says of all explanations together, or of a floor."""

    of: str
    """"explanations", or which floor."""
    scorer: str
    judge: str | None
    value: Rate
    """Mean over features with its 95 % interval: a bootstrap over features. `n` is how many."""
    chance: float
    details: dict[str, float]
    """Means over the features that have them."""


class Scores:
    """A table of scores; `explanations` are the same ones with their scores, to be saved."""

    def __init__(self, explanations: Explanations, rows: Sequence[Row], failures: dict[str, int]) -> None:
        self.explanations, self.rows, self.failures = explanations, list(rows), failures

    def row(self, scorer: str, of: str = "explanations") -> Row:
        """One of them.

        Raises:
            KeyError: there is none.
        """
        for row in self.rows:
            if row.scorer == scorer and row.of == of:
                return row
        raise KeyError(f"{scorer} of {of}")

    def to_dict(self) -> dict[str, Any]:
        """All as plain JSON values."""
        rows = [dataclasses.asdict(row) | {"value": row.value._asdict()} for row in self.rows]
        return {"explainer": self.explanations.explainer, "rows": rows, "failures": self.failures}

    def __str__(self) -> str:
        head = f"{'scorer':<11} {'of':<25} {'score':>6}  {'95 %':<12}{'n':>6}{'sens.':>6}{'spec.':>6}"
        lines = [head + "".join(f"{f'L{level}':>6}" for level in range(1, LEVELS + 1))]
        for row in self.rows:
            value, low, high, n = row.value
            shown = "".join(_number(row.details.get(name)) for name in SHOWN)
            lines.append(
                f"{row.scorer:<11} {row.of:<25} {value:>6.3f}  {f'{low:.2f}-{high:.2f}':<12}{n:>6}{shown}".rstrip()
            )
        judges = sorted({f"{row.scorer} by {row.judge}" for row in self.rows if row.judge})
        lines += [f"Judged: {', '.join(judges)}."] if judges else []
        lines.append(f"Chance: {', '.join(f'{name} {chance:g}' for name, chance in self._chances.items())}.")
        failed = ", ".join(f"{count} x {what}" for what, count in self.failures.items()) or "none"
        return "\n".join([*lines, f"Failures: {failed}."])

    @property
    def _chances(self) -> dict[str, float]:
        return {row.scorer: row.chance for row in self.rows}

    __repr__ = __str__


def _number(value: float | None) -> str:
    return f"{'' if value is None else f'{value:.2f}':>6}"


@checked
@as_job
def score(
    store: FeatureStore,
    explanations: Explanations,
    scorers: Sequence[str | Scorer] = ("detection", "fuzzing"),
    judge: AnyJudge | None = None,
    *,
    model: SubjectModel | None = None,
    sae: SAE | None = None,
    random: Explanations | None = None,
    limit: int | None = 200,
    seed: NotNegative = 0,
    progress: bool = True,
) -> Scores:
    """Test explanations on passages that their explainer has not seen, and two floors in the same way.

    Of each latent up to four firings of every level of activation, random windows in which it is silent, and near
    misses.
    One window is one question, so that scores do not depend on any order.

    Args:
        store: with the passages.
        explanations: of its latents; those of several latents, or of latents that never fire, are left as they are.
        scorers: "detection", "fuzzing", "intruder", "simulation" (by a judge); "surprisal" (by `model`); "rule" (of
            explanations that have one, on text that `model` and `sae` read); `ms.Similarity(encoder)`; others of one's
            own.
        judge: `ms.Judge(...)` or `ms.LocalJudge(...)`.
        model: a language model, for surprisal; for "rule" the one that the store is of.
        sae: the store's dictionary.
        random: explanations by the same explainer of a dictionary of a model with random weights: a floor that only
            the text itself can lift.
        limit: so many explanations at most, drawn by the seed; None for all.
        seed: of that, and of the shuffling.
        progress: show a live line.

    Raises:
        ConfigError: a scorer is unknown, or lacks the judge, model or dictionary that it needs.
        DataError: no explanation can be tested, or the store has no passages of text.
        JudgeError: as `Judge.answer`; what was answered is kept.
    """
    tests = [_scorer(asked, store, judge, model, sae) for asked in scorers]
    parts = _parts(store, explanations, random, limit, seed)
    found = _scores(tests, parts, judge, progress)
    rows = [
        _row(of, test, [scores[test.name] for scores in found[of]])
        for test in tests
        for of in parts
        if not _blind(test, of)
    ]
    kept, failures = _with_scores(explanations, parts["explanations"], found["explanations"])
    return Scores(kept, rows, failures)


def plan(
    store: FeatureStore,
    explanations: Explanations,
    scorers: Sequence[str | Scorer],
    *,
    random: Explanations | None = None,
    limit: int | None = 200,
    seed: NotNegative = 0,
) -> list[Question]:
    """All that `score` with the same arguments would ask, for `Judge.estimate`."""
    tests = [JUDGED[asked]() for asked in scorers if isinstance(asked, str) and asked in JUDGED]
    tests += [asked for asked in scorers if not isinstance(asked, str)]
    parts = _parts(store, explanations, random, limit, seed)
    return [question for *_, asked in _work(tests, parts) for question in asked]


def _parts(
    store: FeatureStore, explanations: Explanations, random: Explanations | None, limit: int | None, seed: int
) -> dict[str, list[Case]]:
    """What is tested: the explanations and the floors."""
    items = _drawn(_tested(store, explanations), limit, seed)
    parts = {"explanations": _cases(store, items), SHUFFLED: _shuffled(store, items, seed)}
    if random is not None:
        other = FeatureStore(random.store)
        parts[RANDOM] = _cases(other, _drawn(_tested(other, random), limit, seed))
    return parts


def _work(tests: Sequence[Scorer], parts: dict[str, list[Case]]) -> list[tuple[str, int, Scorer, list[Question]]]:
    """Every test of every case, and what it asks."""
    return [
        (of, i, test, test.questions(each))
        for of, cases in parts.items()
        for i, each in enumerate(cases)
        for test in tests
        if not _blind(test, of)
    ]


def _scorer(
    asked: str | Scorer, store: FeatureStore, judge: AnyJudge | None, model: SubjectModel | None, sae: SAE | None
) -> Scorer:
    if not isinstance(asked, str):
        return asked
    if asked in JUDGED:
        if judge is None:
            raise ConfigError(f"{asked} needs a judge: score(..., judge=ms.Judge(...)) or judge=ms.LocalJudge(...)")
        return JUDGED[asked]()
    if asked == Surprisal.name:
        if model is None:
            raise ConfigError("surprisal needs a language model: score(..., model=ms.load_model(...))")
        return Surprisal(model)
    if asked != Foretelling.name:
        raise ConfigError(f"there is no scorer {asked!r}; there are, by name, {listed(asked, SCORERS)}")
    if model is None or sae is None:
        raise ConfigError("rules are tested on text that model and dictionary read: score(..., model=..., sae=...)")
    text = held_out(store, sae, model)
    if text is None:
        raise DataError(f"{store.path} was harvested to the end of its text: nothing is left to test rules on")
    return Foretelling(text)


def _tested(store: FeatureStore, explanations: Explanations) -> list[Explanation]:
    if store.pictures is not None or store.rows is not None:
        raise DataError(f"{store.path} has no passages of text: explanations are tested on text only")
    found = [item for item in testable(store, list(explanations)) if item.side == "input"]
    if not found:
        raise DataError(f"no explanation of {store.path} can be tested: none is of one latent that fires")
    return sorted(found, key=lambda item: (item.latents, item.explainer, item.text))


def _drawn(items: list[Explanation], limit: int | None, seed: int) -> list[Explanation]:
    if limit is None or limit >= len(items):
        return items
    if limit < 1:
        raise ConfigError(f"limit={limit}: it must be 1 at least")
    chosen = np.random.default_rng(seed).choice(len(items), limit, replace=False)
    return [items[i] for i in sorted(chosen.tolist())]


def _cases(store: FeatureStore, items: Sequence[Explanation], of: Sequence[int] | None = None) -> list[Case]:
    """Each explanation on its own latent, or on others."""
    rows = ExampleRows(store)
    latents = [item.latents[0] for item in items] if of is None else list(of)
    features = {feature.latent: feature for feature in store.features(sorted(set(latents)))}
    return [case(item, features[latent], rows) for item, latent in zip(items, latents, strict=True)]


def _shuffled(store: FeatureStore, items: Sequence[Explanation], seed: int) -> list[Case]:
    """Every explanation on the latent of another one, and every latent as often as before."""
    latents = [item.latents[0] for item in items]
    if len(set(latents)) < 2:
        return []
    order = np.random.default_rng(seed).permutation(len(items)).tolist()
    following = {order[i]: order[(i + 1) % len(order)] for i in range(len(order))}
    pairs = [(i, following[i]) for i in range(len(items)) if latents[i] != latents[following[i]]]
    return _cases(store, [items[i] for i, _ in pairs], [latents[j] for _, j in pairs])


def _blind(test: Scorer, of: str) -> bool:
    """Whether a floor is none of a test: intruders need no explanation, rules are tested on the store's own text."""
    return (isinstance(test, Intruder) and of == SHUFFLED) or (isinstance(test, Foretelling) and of == RANDOM)


def _scores(
    tests: Sequence[Scorer], parts: dict[str, list[Case]], judge: AnyJudge | None, progress: bool
) -> dict[str, list[dict[str, Score | None]]]:
    """Of every case, by scorer. All questions are put at once: a limit on the price is on all of them."""
    work = _work(tests, parts)
    questions = [question for *_, asked in work for question in asked]
    if questions and judge is None:
        raise ConfigError("these scorers ask questions: give a judge")
    answers = iter(judge.answer(questions, progress) if judge is not None and questions else [])
    found: dict[str, list[dict[str, Score | None]]] = {of: [{} for _ in cases] for of, cases in parts.items()}
    with doing("scoring", len(work), unit="tests") as stage:
        for of, i, test, asked in work:
            told: list[Answer] = [next(answers) for _ in asked]
            found[of][i][test.name] = test.score(parts[of][i], told, judge.name if judge and asked else None)
            stage.advance(1)
    return found


def _row(of: str, test: Scorer, scores: Sequence[Score | None]) -> Row:
    known = [score for score in scores if score is not None]
    values = np.array([score.value for score in known])
    names = sorted({name for score in known for name in score.details})
    details = {name: float(np.mean([s.details[name] for s in known if name in s.details])) for name in names}
    judge = next((score.judge for score in known if score.judge), None)
    return Row(of, test.name, judge, _mean(values), test.chance, details)


def _mean(values: np.ndarray) -> Rate:
    n = len(values)
    if not n:
        return Rate(math.nan, math.nan, math.nan, 0)
    if n == 1:
        return Rate(float(values[0]), math.nan, math.nan, 1)
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), DRAWS) @ values / n
    low, high = np.quantile(draws, [0.025, 0.975])
    return Rate(float(values.mean()), float(low), float(high), n)


def _with_scores(
    explanations: Explanations, cases: Sequence[Case], found: Sequence[dict[str, Score | None]]
) -> tuple[Explanations, dict[str, int]]:
    """The explanations with their scores, and how many fail in each way."""
    new: dict[int, Explanation] = {}
    for each, scores in zip(cases, found, strict=True):
        known = {name: score for name, score in scores.items() if score is not None}
        tells = next((known[name] for name in CLASSIFIES if name in known), None)
        update = {"scores": each.explanation.scores | known, "failure": failure(each, tells)}
        new[id(each.explanation)] = each.explanation.model_copy(update=update)
    items = [new.get(id(item), item) for item in explanations]
    counts = {what: sum((item.failure or "").startswith(what) for item in items) for what in FAILURES}
    made = Explanations(explanations.store, explanations.explainer, items)
    return made, {what: count for what, count in counts.items() if count}
