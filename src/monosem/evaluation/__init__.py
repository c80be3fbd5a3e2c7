"""Evaluation: numbers with their intervals, beside their controls."""

from monosem.evaluation.check import CheckResult, check
from monosem.evaluation.downstream import EVALUATING, LOSSES
from monosem.evaluation.evaluate import evaluate
from monosem.evaluation.ground_truth import Recovery, random_recovery, recovery
from monosem.evaluation.intervals import Interval
from monosem.evaluation.report import EvaluationReport

__all__ = [
    "EVALUATING",
    "LOSSES",
    "CheckResult",
    "EvaluationReport",
    "Interval",
    "Recovery",
    "check",
    "evaluate",
    "random_recovery",
    "recovery",
]
