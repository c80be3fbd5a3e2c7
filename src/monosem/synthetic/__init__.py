"""Synthetic data with known truth."""

from monosem.synthetic.bench import Laws, SynthSAEBench
from monosem.synthetic.planted import PlantedBatch, PlantedDictionary

__all__ = ["Laws", "PlantedBatch", "PlantedDictionary", "SynthSAEBench"]
