"""Evaluation: numbers with their intervals, beside their controls."""

from monosem.evaluation.downstream import EVALUATING, LOSSES
from monosem.evaluation.evaluate import evaluate
from monosem.evaluation.ground_truth import Recovery, random_recovery, recovery
from monosem.evaluation.report import EvaluationReport
from monosem.intervals import Interval

__all__ = [
    "EVALUATING",
    "LOSSES",
    "EvaluationReport",
    "Interval",
    "Recovery",
    "evaluate",
    "random_recovery",
    "recovery",
]
