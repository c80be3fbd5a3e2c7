"""Explanations: made, tested and put into words."""

from monosem.explain.evidence import require_words
from monosem.explain.held_out import HeldOut, held_out
from monosem.explain.judge import Judge
from monosem.explain.local import LocalJudge
from monosem.explain.make import Explainer, explain, known_latents
from monosem.explain.measure import estimated, measure, measured
from monosem.explain.names import rule_of_name
from monosem.explain.ruled import Foretelling
from monosem.explain.rules import Rules
from monosem.explain.score import Scores, plan, score
from monosem.explain.text import Text
from monosem.explain.together import explain_difference, explain_direction, explain_group
from monosem.explain.unjudged import Similarity, Surprisal
from monosem.explain.written import written

__all__ = [
    "Explainer",
    "Foretelling",
    "HeldOut",
    "Judge",
    "LocalJudge",
    "Rules",
    "Scores",
    "Similarity",
    "Surprisal",
    "Text",
    "estimated",
    "explain",
    "explain_difference",
    "explain_direction",
    "explain_group",
    "held_out",
    "known_latents",
    "measure",
    "measured",
    "plan",
    "require_words",
    "rule_of_name",
    "score",
    "written",
]
