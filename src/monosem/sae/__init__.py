"""Sparse autoencoders: one architecture a file."""

from monosem.sae.base import SAE, SAEOutput, TrainingContext, TrainingLoss
from monosem.sae.batchtopk import BatchTopKSAE
from monosem.sae.convert import convert, prune_activations
from monosem.sae.files import load_sae, save_sae
from monosem.sae.gated import GatedSAE
from monosem.sae.jumprelu import JumpReLUSAE
from monosem.sae.matryoshka import MatryoshkaSAE
from monosem.sae.metadata import InputFingerprint, SAEMetadata
from monosem.sae.prolu import ProLUSAE
from monosem.sae.relu import ReLUSAE
from monosem.sae.suppression import fix_suppression
from monosem.sae.surgery import fold, prune, unfold
from monosem.sae.threshold import ThresholdSAE
from monosem.sae.topk import TopKSAE
from monosem.sae.transform import InputTransform

__all__ = [
    "SAE",
    "BatchTopKSAE",
    "GatedSAE",
    "InputFingerprint",
    "InputTransform",
    "JumpReLUSAE",
    "MatryoshkaSAE",
    "ProLUSAE",
    "ReLUSAE",
    "SAEMetadata",
    "SAEOutput",
    "ThresholdSAE",
    "TopKSAE",
    "TrainingContext",
    "TrainingLoss",
    "convert",
    "fix_suppression",
    "fold",
    "load_sae",
    "prune",
    "prune_activations",
    "save_sae",
    "unfold",
]
