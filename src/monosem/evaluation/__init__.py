"""Evaluation: numbers with their intervals, beside their controls."""

from monosem.evaluation.board import BoardReport, board_scores
from monosem.evaluation.downstream import EVALUATING, LOSSES
from monosem.evaluation.evaluate import evaluate
from monosem.evaluation.fine_tuning import FineTuningCurve, fine_tuning_curve
from monosem.evaluation.ground_truth import Recovery, random_recovery, recovery
from monosem.evaluation.paired import Difference, paired_difference
from monosem.evaluation.probe_ceiling import ProbeCeiling, probe_ceiling
from monosem.evaluation.regions import claimed_regions
from monosem.evaluation.report import EvaluationReport
from monosem.evaluation.stability import Stability, seed_stability
from monosem.evaluation.states import StateScores, floor_scores, probe_states, state_scores, told_scores
from monosem.evaluation.together import Together, splice_together
from monosem.evaluation.transfer import TransferMatrix, transfer_matrix
from monosem.evaluation.truth import TruthScore, random_truth, score_codes, score_truth
from monosem.intervals import Interval

__all__ = [
    "EVALUATING",
    "LOSSES",
    "BoardReport",
    "Difference",
    "EvaluationReport",
    "FineTuningCurve",
    "Interval",
    "ProbeCeiling",
    "Recovery",
    "Stability",
    "StateScores",
    "Together",
    "TransferMatrix",
    "TruthScore",
    "board_scores",
    "claimed_regions",
    "evaluate",
    "fine_tuning_curve",
    "floor_scores",
    "paired_difference",
    "probe_ceiling",
    "probe_states",
    "random_recovery",
    "random_truth",
    "recovery",
    "score_codes",
    "score_truth",
    "seed_stability",
    "splice_together",
    "state_scores",
    "told_scores",
    "transfer_matrix",
]
