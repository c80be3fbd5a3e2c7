"""Evaluation: numbers with their intervals, beside their controls."""

from monosem.evaluation.board import BoardReport, board_scores
from monosem.evaluation.downstream import EVALUATING, LOSSES
from monosem.evaluation.evaluate import evaluate
from monosem.evaluation.ground_truth import Recovery, random_recovery, recovery
from monosem.evaluation.report import EvaluationReport
from monosem.evaluation.states import StateScores, floor_scores, probe_states, state_scores, told_scores
from monosem.intervals import Interval

__all__ = [
    "EVALUATING",
    "LOSSES",
    "BoardReport",
    "EvaluationReport",
    "Interval",
    "Recovery",
    "StateScores",
    "board_scores",
    "evaluate",
    "floor_scores",
    "probe_states",
    "random_recovery",
    "recovery",
    "state_scores",
    "told_scores",
]
