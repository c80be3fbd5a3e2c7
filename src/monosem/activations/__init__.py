"""Activations to train on: live from a model, or ready in memory or a file."""

from monosem.activations.health import inspect_rows
from monosem.activations.inputs import positions_read, reopened, rows_read
from monosem.activations.live import FILLING, LiveActivations, models_of
from monosem.activations.mapping import Mapping, is_mapping
from monosem.activations.rows import VectorRows
from monosem.activations.source import ActivationSource, Place, batches
from monosem.activations.vectors import IterableActivations, VectorActivations, activations, read_vectors
from monosem.activations.views import HookView

__all__ = [
    "FILLING",
    "ActivationSource",
    "HookView",
    "IterableActivations",
    "LiveActivations",
    "Mapping",
    "Place",
    "VectorActivations",
    "VectorRows",
    "activations",
    "batches",
    "inspect_rows",
    "is_mapping",
    "models_of",
    "positions_read",
    "read_vectors",
    "reopened",
    "rows_read",
]
