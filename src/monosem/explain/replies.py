"""From what a model has replied to an answer: words around it, half lists and nonsense are nothing unusual."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from monosem.explain.questions import Answer, Question

NOT_SEEN = 0.01
"""If all choices together are less likely than this, the first token is not the answer."""
_THOUGHT = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_OPEN_THOUGHT = re.compile(r"<think(?:ing)?>")
_FENCE = re.compile(r"^```\w*\n?|\n?```$")
_HEADING = re.compile(r"^\W*(?:explanation|description|answer)\W*:\W*", re.IGNORECASE)


def understood(
    question: Question, reply: str | None, first: Mapping[str, float] | None = None, cut: bool = False
) -> Answer:
    """What a reply says.

    Args:
        question: what was asked.
        reply: the words; None if there were none.
        first: chances of what its first token might have been, if they are known.
        cut: whether it ended because it had grown too long.
    """
    if question.choices and first:
        chances = _chances(question.choices, first)
        if chances is not None:
            return Answer(chances=chances)
    words = _THOUGHT.sub("", reply or "")
    if _OPEN_THOUGHT.search(words):
        return Answer(trouble="half an answer")
    words = _FENCE.sub("", words.strip()).strip()
    if not words:
        return Answer(trouble="half an answer" if cut else "no answer")
    if question.choices:
        return _choice(question.choices, words)
    if question.tokens:
        return _numbers(len(question.tokens), words)
    return _line(words, cut)


def _chances(choices: Sequence[str], first: Mapping[str, float]) -> tuple[float, ...] | None:
    """Of the choices, from those of first tokens; None if the reply begins with something else."""
    found = [0.0] * len(choices)
    for token, chance in first.items():
        if token.strip().casefold() in choices:
            found[choices.index(token.strip().casefold())] += chance
    total = sum(found)
    return None if total < NOT_SEEN else tuple(chance / total for chance in found)


def _choice(choices: Sequence[str], words: str) -> Answer:
    said = [word for word in re.findall(r"\w+", words.casefold()) if word in choices]
    begins = re.match(r"\W*(\w+)", words.casefold())
    if begins and begins[1] in choices:
        said = [begins[1]]
    if len(set(said)) != 1:
        return Answer(trouble="not among the choices" if not said else "several of the choices")
    return Answer(chances=tuple(float(choice == said[0]) for choice in choices))


def _numbers(wanted: int, words: str) -> Answer:
    found = _listed(words)
    if found is None:
        return Answer(trouble="not a list of numbers")
    if len(found) != wanted:
        return Answer(trouble="half an answer" if len(found) < wanted else "too many numbers")
    return Answer(numbers=tuple(min(10.0, max(0.0, number)) for number in found))


def _listed(words: str) -> list[float] | None:
    """The numbers of a JSON list, which may lack its end, or hold pairs whose last part is the number."""
    begin = words.find("[")
    if begin < 0:
        return None
    text = words[begin:]
    try:
        value = json.JSONDecoder().raw_decode(text)[0]
    except (ValueError, RecursionError):
        pieces = re.findall(r"-?\d+(?:\.\d+)?", text)
        broken = re.sub(r"-?\d+(?:\.\d+)?|[\s,\[\]]", "", text)
        return None if broken or not pieces else [float(piece) for piece in pieces]
    numbers = [_number(item) for item in value]
    return None if any(number is None for number in numbers) else [number for number in numbers if number is not None]


def _number(item: Any) -> float | None:
    if isinstance(item, list) and item:
        item = item[-1]
    if isinstance(item, dict) and item:
        item = list(item.values())[-1]
    if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
        return None
    return float(item)


def _line(words: str, cut: bool) -> Answer:
    if words.startswith("{"):
        try:
            value = json.loads(words)
        except (ValueError, RecursionError):
            return Answer(trouble="half an answer" if cut else "not JSON")
        texts = [text for text in value.values() if isinstance(text, str)] if isinstance(value, dict) else []
        words = texts[0] if texts else ""
    lines = [line for line in words.splitlines() if re.search(r"\w", line)]
    if not lines:
        return Answer(trouble="no answer")
    if cut and len(lines) == 1:
        return Answer(trouble="half an answer")
    line = _HEADING.sub("", lines[0])
    if not re.search(r"\w", line) and len(lines) > 1:
        line = lines[1]
    return Answer(line=" ".join(line.split()).strip("*\"' "))
