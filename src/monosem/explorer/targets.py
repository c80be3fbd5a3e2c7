"""A next token as a user types it: the token of just this text, or why there is none; and those that may be meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from monosem.explorer.shapes import Target
from monosem.models.vocabulary import Vocabulary

MOST_CHOICES = 8
CLOSE = 0.7
"""How alike (0 to 1, of difflib) a text is to a token that may be meant."""
LETTERS_APART = 3
BROKEN = "\ufffd"


class Asked(NamedTuple):
    """What was found for a text."""

    target: Target | None
    refused: str | None
    """Why there is no target, in words for the user."""
    choices: list[Target]
    """Other tokens that may be meant, the likeliest first."""


def find_target(vocabulary: Vocabulary, text: str, pieces: Sequence[int]) -> Asked:
    """The token that is this text, spaces and capitals included.

    Args:
        vocabulary: to find it in.
        text: what was typed.
        pieces: the tokens that the model's tokenizer makes of it.
    """
    spelled = vocabulary.find(text)
    exact = [token for token in spelled if vocabulary.text(token) == text]
    if exact:
        found = exact[0]
        return Asked(_target(vocabulary, found), None, _choices(vocabulary, spelled, but=found))
    made = f": it is made of {len(pieces)}" if len(pieces) > 1 else ""
    of_words = [token for word in text.split() for token in vocabulary.find(word)]
    choices = _choices(vocabulary, [*spelled, *_closest(vocabulary, text), *of_words, *pieces])
    return Asked(None, f"“{text}” is not a token of the model{made}", choices)


def _choices(vocabulary: Vocabulary, tokens: Iterable[int], but: int | None = None) -> list[Target]:
    among = [token for token in dict.fromkeys(tokens) if token != but]
    whole = [token for token in among if vocabulary.text(token) and BROKEN not in vocabulary.text(token)]
    return [_target(vocabulary, token) for token in whole[:MOST_CHOICES]]


def _target(vocabulary: Vocabulary, token: int) -> Target:
    return Target(token=token, text=vocabulary.text(token))


def _closest(vocabulary: Vocabulary, text: str) -> list[int]:
    """Tokens spelled nearly so, among those that begin alike."""
    wanted = text.strip().lower()
    if not wanted:
        return []
    texts = [(token, vocabulary.text(token).strip().lower()) for token in vocabulary.known.tolist()]
    alike = [
        (token, other)
        for token, other in texts
        if other[:1] == wanted[0] and abs(len(other) - len(wanted)) <= LETTERS_APART
    ]
    close = difflib.get_close_matches(wanted, {other for _, other in alike}, MOST_CHOICES, CLOSE)
    return [token for match in close for token, other in alike if other == match]
