"""Activations to train on: live from a model, or ready in memory or a file."""

from monosem.activations.health import inspect_rows
from monosem.activations.inputs import positions_read, reopened, rows_read
from monosem.activations.live import FILLING, LiveActivations
from monosem.activations.source import ActivationSource, Place, batches
from monosem.activations.vectors import IterableActivations, VectorActivations, activations, read_vectors
from monosem.activations.views import HookView

__all__ = [
    "FILLING",
    "ActivationSource",
    "HookView",
    "IterableActivations",
    "LiveActivations",
    "Place",
    "VectorActivations",
    "activations",
    "batches",
    "inspect_rows",
    "positions_read",
    "read_vectors",
    "reopened",
    "rows_read",
]
