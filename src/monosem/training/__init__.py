"""Training: one trainer for every architecture."""

from monosem.errors import TrainingInterrupted
from monosem.training.config import TrainingConfig
from monosem.training.cost import Cost
from monosem.training.end_to_end import EndToEnd
from monosem.training.estimator import SklearnSAE
from monosem.training.layer_norm import LayerNormRemoval, NormGap, remove_layer_norm
from monosem.training.loggers import LOGGERS, Logger
from monosem.training.member import TrainingResult
from monosem.training.norm_schedule import NormSchedule
from monosem.training.run import fit, train, train_together
from monosem.training.trainer import Step, Trainer

__all__ = [
    "LOGGERS",
    "Cost",
    "EndToEnd",
    "LayerNormRemoval",
    "Logger",
    "NormGap",
    "NormSchedule",
    "SklearnSAE",
    "Step",
    "Trainer",
    "TrainingConfig",
    "TrainingInterrupted",
    "TrainingResult",
    "fit",
    "remove_layer_norm",
    "train",
    "train_together",
]
