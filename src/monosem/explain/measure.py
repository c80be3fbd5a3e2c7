# pyright: basic
"""The score "rule": how well a rule foretells firings on text that it was not made from. No judge is needed.

F1 is the share of firings foretold (recall) and of foretold firings that are there (precision), as one number:
2 hits / (firings + foretold). A rule that has nothing to do with a latent scores about its firing rate, near 0.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from monosem.explain.evidence import Evidence
from monosem.explain.held_out import HeldOut
from monosem.features import Explanation, Rule, Score
from monosem.features.word_table import wilson

NAME = "rule"
LEVELS = 5
FEWEST = 5
"""Firings from which on a score is given."""


def measured(rule: Rule, latent: int, maximum: float, text: HeldOut) -> Score | None:
    """F1 of a rule on held-out text, with precision, recall, and the recall of every fifth of activation.

    The interval takes tokens for independent (Wilson, of hits among all tokens that fire or are foretold).

    Returns:
        None if the latent fires too rarely there.
    """
    at, values = text.of(latent)
    if len(at) < FEWEST:
        return None
    foretold = text.text.where(rule)
    hit = np.isin(at, foretold, assume_unique=True)
    hits, n = int(hit.sum()), len(at) + len(foretold)
    either = n - hits
    low, high = (_f1(share) for share in wilson(hits, either))
    value = 2 * hits / n
    details = {
        "precision": hits / max(1, len(foretold)),
        "recall": hits / len(at),
        "sensitivity": hits / len(at),
        "specificity": 1 - (len(foretold) - hits) / max(1, text.n_read - len(at)),
    }
    level = np.clip(np.ceil(values / max(maximum, 1e-30) * LEVELS), 1, LEVELS)
    for i in range(1, LEVELS + 1):
        if (level == i).any():
            details[f"level {i}"] = float(hit[level == i].mean())
    return Score(value=value, low=min(low, value), high=max(high, value), n=len(at), details=details)


def estimated(rule: Rule, latent: int, evidence: Evidence) -> Score | None:
    """F1 of a rule from the store alone: recall among those of its random samples that were left to tests.

    Its precision is that recall times the firings, over the tokens for which the rule holds in the counted text.
    `details` say "own text": 1: it is the harvest's own text, although other tokens of it.
    """
    samples = evidence.samples.of(latent)
    test = samples.test & (samples.kind == 1)
    if test.sum() < FEWEST:
        return None
    at, weight, activation = samples.token[test], samples.weight[test], samples.activation[test]
    hit = np.zeros(len(at), bool)
    for clause in rule.clauses:
        hit |= evidence.text.holds(clause, at)
    foretold = int((evidence.text.where(rule) < evidence.counted).sum())
    firings = float(evidence.logged[latent - evidence.first])
    recall = float((weight * hit).sum() / weight.sum())
    effective = float(weight.sum() ** 2 / (weight**2).sum())
    spread = wilson(round(recall * effective), max(1, round(effective)))

    def f1(share: float) -> float:
        hits = min(share * firings, foretold)
        return 2 * hits / max(1e-9, firings + foretold)

    low, high = min(f1(spread[0]), f1(recall)), max(f1(spread[1]), f1(recall))
    precision = min(1.0, recall * firings / max(1, foretold))
    details = {"precision": precision, "recall": recall, "sensitivity": recall, "own text": 1.0}
    level = np.clip(np.ceil(activation * LEVELS), 1, LEVELS)
    for i in range(1, LEVELS + 1):
        if (level == i).any():
            details[f"level {i}"] = float((weight * hit)[level == i].sum() / weight[level == i].sum())
    return Score(value=f1(recall), low=low, high=high, n=int(test.sum()), details=details)


def with_score(explanation: Explanation, score: Score | None) -> Explanation:
    """An explanation with this score beside the others."""
    if score is None:
        return explanation
    return explanation.model_copy(update={"scores": explanation.scores | {NAME: score}})


def measure(items: Iterable[Explanation], maxima: np.ndarray, text: HeldOut) -> list[Explanation]:
    """Explanations with the scores of their rules on held-out text; those without a rule, or of groups, as they are."""
    found: list[Explanation] = []
    for item in items:
        score = None
        if item.rule is not None and len(item.latents) == 1:
            score = measured(item.rule, item.latents[0], float(maxima[item.latents[0]]), text)
        found.append(with_score(item, score))
    return found


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)
