"""Activations to train on: live from a model, or ready in memory or a file."""

from monosem.activations.live import LiveActivations
from monosem.activations.source import ActivationSource, Place, batches
from monosem.activations.vectors import IterableActivations, VectorActivations, activations

__all__ = [
    "ActivationSource",
    "IterableActivations",
    "LiveActivations",
    "Place",
    "VectorActivations",
    "activations",
    "batches",
]
