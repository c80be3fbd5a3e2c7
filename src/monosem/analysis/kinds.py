"""Kinds of English words, by which features are explained: countries, months, negation, past tense ..."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from monosem.files import read_yaml

FILE = Path(__file__).with_name("words.yaml")

FORMS: dict[str, Callable[[str], bool]] = {
    "past tense": lambda word: len(word) > 4 and word.isalpha() and word.endswith("ed"),
    "words in …ing": lambda word: len(word) > 5 and word.isalpha() and word.endswith("ing"),
    "adverbs in …ly": lambda word: len(word) > 4 and word.isalpha() and word.endswith("ly"),
    "years": lambda word: len(word) == 4 and word.isdigit() and "1000" <= word <= "2099",
    "numbers in digits": str.isdigit,
    "two-digit numbers": lambda word: len(word) == 2 and word.isdigit(),
    "three-digit numbers": lambda word: len(word) == 3 and word.isdigit(),
    "single digits": lambda word: len(word) == 1 and word.isdigit(),
    "decades": lambda word: len(word) == 5 and word.endswith("0s") and word[:4].isdigit(),
    "Roman numerals": lambda word: bool(word) and set(word) <= set("ivx") and word not in ("i", "x", "v"),
    "single letters": lambda word: len(word) == 1 and word.isalpha(),
    "words in other scripts": lambda word: any(ord(c) > 591 for c in word) and any(c.isalpha() for c in word),
    "words with accents": lambda word: word.isalpha() and any(191 < ord(c) <= 591 for c in word),
    "punctuation": lambda word: bool(word.strip()) and not any(c.isalnum() for c in word),
    "ends of sentences": lambda word: word.rstrip("\"')]”’") in (".", "!", "?", "...", "…", "?!"),
    "quotation marks": lambda word: bool(word) and all(c in "\"“”„«»‘’'" for c in word),
    "opening brackets": lambda word: any(c in "([{" for c in word) and not any(c.isalnum() for c in word),
    "closing brackets": lambda word: any(c in ")]}" for c in word) and not any(c.isalnum() for c in word),
    "dashes": lambda word: bool(word) and set(word) <= set("-–—"),
    "line ends": lambda word: bool(word) and not word.strip(" \n\r") and "\n" in word,
    "spaces": lambda word: bool(word) and not word.strip(),
}
"""Kinds that are known by how a word is written, in small letters."""
EXTENDED = {"past tense": "irregular past tense"}
"""A kind by form together with a list."""


@functools.cache
def lists() -> dict[str, frozenset[str]]:
    """The lists of words, by name."""
    return {name: frozenset(words.split()) for name, words in read_yaml(FILE, dict[str, str]).items()}


@functools.cache
def names() -> tuple[str, ...]:
    """Of all kinds."""
    return (*lists(), *FORMS)


def is_of(word: str, kind: str) -> bool:
    """Whether a word in small letters is of a kind."""
    if kind in FORMS:
        return FORMS[kind](word) or word in lists().get(EXTENDED.get(kind, ""), ())
    return word in lists().get(kind, ())


def table(words: Sequence[str]) -> np.ndarray:
    """(words, kinds) which are of which kind, in the order of `names`."""
    found = np.zeros((len(words), len(names())), bool)
    numbers = {word: i for i, word in enumerate(words)}
    for column, kind in enumerate(names()):
        members = lists().get(kind) or lists().get(EXTENDED.get(kind, ""), frozenset())
        found[[numbers[word] for word in members if word in numbers], column] = True
        if kind in FORMS:
            form = FORMS[kind]
            found[:, column] |= np.fromiter(map(form, words), bool, len(words))
    return found
