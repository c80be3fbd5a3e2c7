"""How far an evaluation is."""

from __future__ import annotations

from collections.abc import Iterator

from monosem.activations import Piece, Reading
from monosem.evaluation.downstream import EVALUATING
from monosem.work import doing


def tell_place(observer: object, context: int) -> None:
    """Tell an observer with a method `at` the number of the context that comes next: of several processes each sees
    some.
    """
    at = getattr(observer, "at", None)
    if at is not None:
        at(context)


def measured(reading: Reading) -> Iterator[Piece]:
    """What is read, or this process's part of it, as a stage of the work."""
    with doing(EVALUATING, reading.wished, unit="tokens") as work:
        before = reading.rows
        for piece in reading.rounds():
            if piece is not None:
                yield piece
            work.advance(reading.rows - before)
            before = reading.rows
