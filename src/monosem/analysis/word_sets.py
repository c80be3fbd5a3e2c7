"""Named sets of tokens: kinds of words, regular expressions, and files of one's own."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from monosem.analysis import kinds
from monosem.errors import ConfigError, FileError
from monosem.files import read_text, read_yaml
from monosem.spelling import path_meant

FILE = Path(__file__).with_name("token_sets.yaml")
PROPER = (
    "months",
    "weekdays",
    "continents",
    "countries",
    "nationalities",
    "languages",
    "cities",
    "us states",
    "names of women",
    "names of men",
    "famous surnames",
)
"""Kinds of words that are written with a capital."""
ANY_CASE = "\0"
"""Before a word: tokens that are it but for their capitals."""
Set = str | Sequence[str] | Callable[[str], bool]
"""An expression between slashes, words with spaces between them, a list of words, or a test of a token's text."""


def shipped() -> dict[str, Set]:
    """The sets that come with monosem: token_sets.yaml, and all kinds of words."""
    sets: dict[str, Set] = dict(read_yaml(FILE, dict[str, str]))
    for name, words in kinds.lists().items():
        sets[name] = [word.capitalize() if name in PROPER else word for word in sorted(words)]
    for name, form in kinds.FORMS.items():
        sets[name] = functools.partial(_has_form, form)
    return sets


def _has_form(form: Callable[[str], bool], text: str) -> bool:
    return form(text.strip().lower() or text)


def read_sets(path: str | Path) -> dict[str, Set]:
    """Sets from a file: YAML, `name: words` or `name: /expression/` or `name: [word, ...]`; or a text, a word a line.

    Raises:
        FileError: there is no such file, or it cannot be read as one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path} does not exist: give a file of token sets (YAML, or a word a line){path_meant(path)}")
    if path.suffix in (".yaml", ".yml"):
        return dict(read_yaml(path, dict[str, str | list[str]], "it must be `name: words` or `name: /expression/`"))
    words = [line.strip() for line in read_text(path).splitlines()]
    return {path.stem: [word for word in words if word]}


def tokens_of(sets: Mapping[str, Set], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """The places in `texts`, the texts of some tokens, of those that are in each set.

    A word is a token's whole text but for spaces around it: in small letters in any case, with a capital only as it is.

    Raises:
        ConfigError: an expression cannot be read.
    """
    places: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        word = text.strip()
        places.setdefault(word, []).append(place)
        if word.lower() != word:
            places.setdefault(ANY_CASE + word.lower(), []).append(place)
    return {name: _members(name, given, texts, places) for name, given in sets.items()}


def _members(name: str, given: Set, texts: Sequence[str], places: dict[str, list[int]]) -> np.ndarray:
    if callable(given):
        return np.array([place for place, text in enumerate(texts) if given(text)], np.int64)
    if isinstance(given, str) and len(given) > 1 and given[0] == given[-1] == "/":
        found = _compiled(name, given[1:-1]).search
        return np.array([place for place, text in enumerate(texts) if found(text)], np.int64)
    of: list[int] = []
    for word in given.split() if isinstance(given, str) else given:
        of += places.get(word.strip(), [])
        if word == word.lower():
            of += places.get(ANY_CASE + word.strip(), [])
    return np.unique(np.array(of, np.int64))


def _compiled(name: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ConfigError(f"token set {name!r}: /{expression}/ is no regular expression: {error}") from error
