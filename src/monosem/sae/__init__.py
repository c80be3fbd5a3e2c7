"""Sparse autoencoders: one architecture a file."""

from monosem.sae.base import SAE, SAEOutput, TrainingContext, TrainingLoss
from monosem.sae.batchtopk import BatchTopKSAE
from monosem.sae.crosscoder import Crosscoder
from monosem.sae.crosslayer import CrossLayerTranscoder, read_decoder_rows
from monosem.sae.files import load_sae, save_sae
from monosem.sae.matryoshka import MatryoshkaSAE
from monosem.sae.metadata import InputFingerprint, SAEMetadata
from monosem.sae.pursuit import MatchingPursuitSAE, pursue
from monosem.sae.relu import ReLUSAE
from monosem.sae.sources import SourceTransform
from monosem.sae.switch import SwitchSAE
from monosem.sae.topk import TopKSAE
from monosem.sae.transcoder import SkipTranscoder, Transcoder
from monosem.sae.transform import InputTransform

__all__ = [
    "SAE",
    "BatchTopKSAE",
    "CrossLayerTranscoder",
    "Crosscoder",
    "InputFingerprint",
    "InputTransform",
    "MatchingPursuitSAE",
    "MatryoshkaSAE",
    "ReLUSAE",
    "SAEMetadata",
    "SAEOutput",
    "SkipTranscoder",
    "SourceTransform",
    "SwitchSAE",
    "TopKSAE",
    "TrainingContext",
    "TrainingLoss",
    "Transcoder",
    "load_sae",
    "pursue",
    "read_decoder_rows",
    "save_sae",
]
