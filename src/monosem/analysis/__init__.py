"""What a dictionary's directions mean to the model, and what dictionaries are made of."""

from monosem.analysis.logit_lens import TokenEffects, direction_logits, logit_lens, logit_weights
from monosem.analysis.meta.made import MetaSAE, Part, meta_sae
from monosem.analysis.meta.overlap import Overlap
from monosem.analysis.positions import ErrorByPosition, Positional, positional
from monosem.analysis.stitch.stitching import Stitching, stitch

__all__ = [
    "ErrorByPosition",
    "MetaSAE",
    "Overlap",
    "Part",
    "Positional",
    "Stitching",
    "TokenEffects",
    "direction_logits",
    "logit_lens",
    "logit_weights",
    "meta_sae",
    "positional",
    "stitch",
]
