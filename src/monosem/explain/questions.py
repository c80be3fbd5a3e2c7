"""Questions to a judge, whoever it is, and what it answers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

PROMPTS = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Question:
    """What a judge is asked: to choose, to give numbers to tokens, or else to write a line."""

    instructions: str
    text: str
    choices: tuple[str, ...] = ()
    """One of these is the answer."""
    tokens: tuple[str, ...] = ()
    """A number from 0 to 10 is wanted for each."""
    length: int = 80
    """Tokens of a line that is written, at most."""

    @property
    def most_tokens(self) -> int:
        """How long an answer may be."""
        return 8 if self.choices else 16 + 4 * len(self.tokens) if self.tokens else self.length


@dataclass(frozen=True)
class Answer:
    """What was understood of a reply; what was not asked for stays empty."""

    chances: tuple[float, ...] = ()
    """Of the choices; they sum to 1."""
    numbers: tuple[float, ...] = ()
    """Of the tokens, from 0 to 10."""
    line: str = ""
    trouble: str | None = None
    """Why nothing was understood: "no answer", "half an answer", "not among the choices", ..."""


@runtime_checkable
class AnyJudge(Protocol):
    """Whoever answers questions: `Judge`, `LocalJudge`, or an object of one's own."""

    @property
    def name(self) -> str:
        """Of the model: scores are known by it."""
        ...

    def answer(self, questions: Sequence[Question], progress: bool = True) -> list[Answer]:
        """One answer a question, in their order."""
        ...


@functools.cache
def prompt(name: str) -> str:
    """The instructions of this name: a file in `prompts`."""
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").strip()
