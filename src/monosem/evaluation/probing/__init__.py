"""What a dictionary is good for: probes of a few latents, and the features in which two sets of texts differ."""

from monosem.evaluation.probing.absorption import Absorption, absorption
from monosem.evaluation.probing.compare import RateDifference, TextComparison, compare_texts
from monosem.evaluation.probing.labelled import Labelled, read_labelled
from monosem.evaluation.probing.probe import probe
from monosem.evaluation.probing.report import ProbeReport, ProbeRow

__all__ = [
    "Absorption",
    "Labelled",
    "ProbeReport",
    "ProbeRow",
    "RateDifference",
    "TextComparison",
    "absorption",
    "compare_texts",
    "probe",
    "read_labelled",
]
