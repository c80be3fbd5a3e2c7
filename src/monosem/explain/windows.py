"""Windows of text: which of them an explainer has seen, and how they are shown to a judge."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from monosem.errors import ConfigError
from monosem.features import Example, FeatureStore
from monosem.features.rows import columns_of, numbers
from monosem.sql import readable

AROUND = 4
"""Tokens on each side of a peak: if all of these stand in a window as well, it shows the same."""
MARKED = 0.3
"""Tokens from this share of the window's strongest on are marked, as published (Paulo et al., 2024)."""


class Seen:
    """Windows that are taken: no other that overlaps with one, or has the same words around its peak, may be used."""

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._spans: dict[int, list[tuple[int, int]]] = {}
        self._words: list[str] = []
        for example in examples:
            self.add(example)

    def add(self, example: Example) -> None:
        """Take a window."""
        self.add_span(example.passage, example.start, example.start + len(example.texts))
        self._words.append("\0".join(example.texts))

    def add_span(self, passage: int, start: int, stop: int) -> None:
        """Take a window of which no more is known than where it stands."""
        self._spans.setdefault(passage, []).append((start, stop))

    def __contains__(self, example: Example) -> bool:
        start, stop = example.start, example.start + len(example.texts)
        if any(start < end and begin < stop for begin, end in self._spans.get(example.passage, ())):
            return True
        core = "\0".join(example.texts[max(0, example.peak - AROUND) : example.peak + AROUND + 1])
        return any(core in words for words in self._words)


class ExampleRows:
    """Where the rows of a store's table of examples stand; by these numbers explanations say what they have seen."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store

    @functools.cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        parts = self._store.index["tables"]["examples"]["parts"]
        names = ["latent", "passage", "start", "length"]
        with readable(self._store.path):
            table = columns_of([self._store.path / part["file"] for part in parts], names)
        return {name: numbers(table.column(name)) for name in names}

    def of(self, latent: int, examples: Iterable[Example]) -> list[int]:
        """The rows of some examples of a latent."""
        first, stop = np.searchsorted(self._columns["latent"], [latent, latent + 1])
        wanted = {(example.passage, example.start) for example in examples}
        passages, starts = (self._columns[name][first:stop].tolist() for name in ("passage", "start"))
        return [int(first) + i for i, place in enumerate(zip(passages, starts, strict=True)) if place in wanted]

    def seen(self, rows: Sequence[int], examples: Sequence[Example]) -> Seen:
        """The windows of these rows; of those among `examples` also their words."""
        found, known = Seen(), {(example.passage, example.start): example for example in examples}
        for row in rows:
            if not 0 <= row < len(self._columns["latent"]):
                raise ConfigError(f"{self._store.path} has no example {row}: the explanation is of another harvest")
            passage, start, length = (int(self._columns[name][row]) for name in ("passage", "start", "length"))
            if (passage, start) in known:
                found.add(known[passage, start])
            else:
                found.add_span(passage, start, start + length)
        return found


def plain(example: Example) -> str:
    """Its text, on one line."""
    return _one_line("".join(example.texts))


def marked(example: Example, at: Callable[[int], bool] | None = None) -> str:
    """Its text, on one line, with << and >> around what fires; or around the tokens that `at` says."""
    least = MARKED * float(example.activations.max(initial=0.0))
    chosen = at or (lambda i: 0 < example.activations[i] >= least)
    pieces: list[str] = []
    inside = False
    for i, text in enumerate(example.texts):
        if chosen(i) != inside:
            pieces.append("<<" if not inside else ">>")
            inside = not inside
        pieces.append(text)
    return _one_line("".join(pieces) + (">>" if inside else ""))


def n_marked(example: Example) -> int:
    """How many of its tokens `marked` marks."""
    least = MARKED * float(example.activations.max(initial=0.0))
    return int(((example.activations > 0) & (example.activations >= least)).sum())


def _one_line(text: str) -> str:
    return text.replace("\n", "⏎").replace("\r", "").strip()
