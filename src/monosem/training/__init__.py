"""Training: one trainer for every architecture."""

from monosem.errors import TrainingInterrupted
from monosem.training.config import TrainingConfig
from monosem.training.estimator import SklearnSAE
from monosem.training.loggers import LOGGERS, Logger
from monosem.training.member import TrainingResult
from monosem.training.run import fit, train, train_together
from monosem.training.trainer import Step, Trainer

__all__ = [
    "LOGGERS",
    "Logger",
    "SklearnSAE",
    "Step",
    "Trainer",
    "TrainingConfig",
    "TrainingInterrupted",
    "TrainingResult",
    "fit",
    "train",
    "train_together",
]
