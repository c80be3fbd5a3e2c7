"""How an explanation fails, if it does: in words that say what to mend."""

from __future__ import annotations

import re
from collections.abc import Iterable

from monosem.explain.cases import Case
from monosem.features.explanations import Score

LONGEST = 60
"""Words of a plain line."""
POOR = 0.5
"""Less than this share of firings, or of silent windows, told rightly."""
MISSES, ELSEWHERE, OUTPUT, UNREADABLE = (
    "misses firings",
    "fires elsewhere",
    "output feature read as input feature",
    "unreadable",
)
FAILURES = (UNREADABLE, OUTPUT, MISSES, ELSEWHERE)
_REFUSAL = re.compile(r"\b(i cannot|i can't|i'm sorry|i am sorry|as an ai|language model, i)\b", re.IGNORECASE)
_WORD = re.compile(r"\w+")


def failure(case: Case, score: Score | None) -> str | None:
    """The kind of failure, or None.

    Args:
        case: the explanation and its feature.
        score: one with sensitivity and specificity; without it only the words are looked at.
    """
    text = case.explanation.text
    if not readable(text):
        return UNREADABLE
    if score is None:
        return None
    right = "specificity" if score.judge else "precision"  # of tokens, nearly all are silent
    sensitivity, true = (score.details.get(name, 1.0) for name in ("sensitivity", right))
    if case.explanation.side == "input" and sensitivity < POOR and says_output(case):
        return OUTPUT
    if sensitivity < POOR:
        return MISSES
    return ELSEWHERE if true < POOR else None


def readable(text: str) -> bool:
    """Whether a text is one plain line: some words, not too many, hardly repeated, no refusal and no markup."""
    words = _WORD.findall(text.casefold())
    letters = sum(character.isalnum() or character.isspace() for character in text)
    if not words or len(words) > LONGEST or _REFUSAL.search(text) or "\n" in text.strip():
        return False
    repeated = len(words) >= 8 and len(set(words)) < len(words) / 3
    return not repeated and letters >= 0.5 * len(text)


def says_output(case: Case) -> bool:
    """Whether its words are those that the latent promotes, and not those that it fires on or beside."""
    said = set(_WORD.findall(case.explanation.text.casefold()))
    promoted = _words(weight.text for weight in case.feature.promoted)
    fires = _words(token.text for token in case.feature.firing_tokens)
    beside = _words(text for example in case.firings for text in example.texts)
    return len(said & (promoted - fires - beside)) > len(said & (fires - promoted))


def _words(texts: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for text in texts:
        found |= {word for word in _WORD.findall(text.casefold()) if len(word) > 1}
    return found
