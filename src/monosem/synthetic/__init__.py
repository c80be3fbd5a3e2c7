"""Synthetic data with known truth."""

from monosem.synthetic.planted import PlantedBatch, PlantedDictionary

__all__ = ["PlantedBatch", "PlantedDictionary"]
