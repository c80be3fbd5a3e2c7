"""Sparse autoencoders: one architecture a file."""

from monosem.sae.base import SAE, SAEOutput, TrainingContext, TrainingLoss
from monosem.sae.batchtopk import BatchTopKSAE
from monosem.sae.convert import convert, prune_activations
from monosem.sae.crosscoder import Crosscoder
from monosem.sae.crosslayer import CrossLayerTranscoder, read_decoder_rows
from monosem.sae.dense_formula import DenseSAE, dense
from monosem.sae.files import load_sae, save_sae
from monosem.sae.gated import GatedSAE
from monosem.sae.jumprelu import JumpReLUSAE
from monosem.sae.matryoshka import MatryoshkaSAE
from monosem.sae.metadata import InputFingerprint, SAEMetadata
from monosem.sae.prolu import ProLUSAE
from monosem.sae.pursuit import MatchingPursuitSAE, pursue
from monosem.sae.relu import ReLUSAE
from monosem.sae.sources import SourceTransform
from monosem.sae.suppression import fix_suppression
from monosem.sae.surgery import fold, prune, unfold
from monosem.sae.switch import SwitchSAE
from monosem.sae.threshold import ThresholdSAE
from monosem.sae.topk import TopKSAE
from monosem.sae.transcoder import JumpReLUSkipTranscoder, SkipTranscoder, Transcoder
from monosem.sae.transform import InputTransform

__all__ = [
    "SAE",
    "BatchTopKSAE",
    "CrossLayerTranscoder",
    "Crosscoder",
    "DenseSAE",
    "GatedSAE",
    "InputFingerprint",
    "InputTransform",
    "JumpReLUSAE",
    "JumpReLUSkipTranscoder",
    "MatchingPursuitSAE",
    "MatryoshkaSAE",
    "ProLUSAE",
    "ReLUSAE",
    "SAEMetadata",
    "SAEOutput",
    "SkipTranscoder",
    "SourceTransform",
    "SwitchSAE",
    "ThresholdSAE",
    "TopKSAE",
    "TrainingContext",
    "TrainingLoss",
    "Transcoder",
    "convert",
    "dense",
    "fix_suppression",
    "fold",
    "load_sae",
    "prune",
    "prune_activations",
    "pursue",
    "read_decoder_rows",
    "save_sae",
    "unfold",
]
