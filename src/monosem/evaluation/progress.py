"""How far an evaluation is."""

from __future__ import annotations

from collections.abc import Iterator

from monosem.activations import Piece, Reading
from monosem.evaluation.downstream import EVALUATING
from monosem.work import doing


def measured(reading: Reading) -> Iterator[Piece]:
    """What is read, as a stage of the work."""
    with doing(EVALUATING, reading.wished, unit="tokens") as work:
        for piece in reading:
            yield piece
            work.advance(int(piece.found[0].kept.sum()))
