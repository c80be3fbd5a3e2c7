"""Explanations: made, tested and put into words."""

from monosem.explain.judge import Judge
from monosem.explain.local import LocalJudge
from monosem.explain.score import Scores, plan, score
from monosem.explain.unjudged import Similarity, Surprisal
from monosem.explain.written import written

__all__ = ["Judge", "LocalJudge", "Scores", "Similarity", "Surprisal", "plan", "score", "written"]
