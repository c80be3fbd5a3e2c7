"""Explanations as the API gives them."""

from __future__ import annotations

from monosem.explorer.shapes import Explanation, Said, Score
from monosem.features import Explanation as Explained


def said(item: Explained) -> Said:
    """An explanation in a line: of one score its interval, of several their mean."""
    scores = list(item.scores.values())
    alone = scores[0] if len(scores) == 1 else None
    return Said(
        text=item.text,
        explainer=item.explainer,
        side=item.side,
        value=item.value,
        low=None if alone is None else alone.low,
        high=None if alone is None else alone.high,
    )


def explanation(item: Explained) -> Explanation:
    """All that is known of it."""
    scores = [
        Score(
            name=name,
            value=score.value,
            low=score.low,
            high=score.high,
            n=score.n,
            judge=score.judge,
            details=score.details,
        )
        for name, score in item.scores.items()
    ]
    return Explanation(**said(item), sure=item.sure, scores=scores, failure=item.failure)
