"""The text of tokens as they come: whole characters alone, and nothing of what may be a stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"
BEFORE = 8
"""Tokens before a token that may decide how it is spelled (a space at its beginning, half a character)."""


class Spelling:
    """The text of a continuation, piece by piece; together they are the text of all."""

    def __init__(self, tokenizer: Any, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        """A continuation of a prompt, that ends before any of the texts in `stop`."""
        self._tokenizer, self._stop = tokenizer, [each for each in stop if each]
        self._tokens = list(prompt)
        self._said = len(self._tokens)
        """Tokens whose text is known; the others are part of a character."""
        self._before = max(0, self._said - BEFORE)
        self._held = ""
        self.stopped = False
        self.prompt = self._decode(self._tokens)

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def add(self, token: int) -> str:
        """What another token makes sure; empty where nothing is yet."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._before : self._said])
        now = self._decode(self._tokens[self._before :])
        if now.endswith(BROKEN) and len(self._tokens) - self._said < BEFORE:
            return ""
        self._before, self._said = max(self._before, self._said - BEFORE), len(self._tokens)
        return self._release(now[len(before) :])

    def rest(self) -> str:
        """What was held back, once the text has ended."""
        before = self._decode(self._tokens[self._before : self._said])
        fresh = "" if self.stopped else self._release(self._decode(self._tokens[self._before :])[len(before) :])
        held, self._held = self._held, ""
        return fresh + held

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        kept = max((n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]
