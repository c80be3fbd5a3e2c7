"""Answers that are given again: a store does not change while it is served, but notes and explanations do."""

from __future__ import annotations

import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from monosem.explorer.dictionary import Dictionary

MOST_BYTES = 8 * 2**20


class Kept:
    """The answers given last, as JSON, each as long as notes and explanations are those it was made with."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most, self._size = most, 0
        self._answers: OrderedDict[Hashable, tuple[Any, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, dictionary: Dictionary, question: Hashable, make: Callable[[], bytes | None]) -> bytes | None:
        """The answer to a question on a dictionary; made if it is not known. None is not kept."""
        key, said = (dictionary.name, question), (dictionary.notes.all(), dictionary.explanations())
        with self._lock:
            made_with, answer = self._answers.get(key, ((), None))
            if answer is not None and all(map(operator.is_, made_with, said)):
                self._answers.move_to_end(key)
                return answer
        answer = make()
        if answer is not None:
            self._keep(key, said, answer)
        return answer

    def _keep(self, key: Hashable, said: Any, answer: bytes) -> None:
        with self._lock:
            _, before = self._answers.pop(key, (None, b""))
            self._answers[key] = (said, answer)
            self._size += len(answer) - len(before)
            while self._size > self._most and self._answers:
                _, (_, oldest) = self._answers.popitem(last=False)
                self._size -= len(oldest)
