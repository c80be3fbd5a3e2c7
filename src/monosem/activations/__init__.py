"""Activations to train on: live from a model, or ready in memory or a file."""

from monosem.activations.by_context import ContextActivations, Standing
from monosem.activations.check import CheckResult, check, join
from monosem.activations.health import inspect_rows
from monosem.activations.inputs import reopened
from monosem.activations.live import FILLING, LiveActivations, models_of
from monosem.activations.mapping import Mapping, is_mapping
from monosem.activations.planted import PlantedActivations
from monosem.activations.reading import Found, Piece, Reading, Wanted, positions_read, read_rows, rows_a_context
from monosem.activations.rows import VectorRows
from monosem.activations.shards import StoreFolder
from monosem.activations.source import ActivationSource, Place, Rows, batches, first_rows
from monosem.activations.stored import StoredActivations
from monosem.activations.storing import store_activations
from monosem.activations.vectors import IterableActivations, VectorActivations, activations, read_vectors
from monosem.activations.views import HookSource, HookView

__all__ = [
    "FILLING",
    "ActivationSource",
    "CheckResult",
    "ContextActivations",
    "Found",
    "HookSource",
    "HookView",
    "IterableActivations",
    "LiveActivations",
    "Mapping",
    "Piece",
    "Place",
    "PlantedActivations",
    "Reading",
    "Rows",
    "Standing",
    "StoreFolder",
    "StoredActivations",
    "VectorActivations",
    "VectorRows",
    "Wanted",
    "activations",
    "batches",
    "check",
    "first_rows",
    "inspect_rows",
    "is_mapping",
    "join",
    "models_of",
    "positions_read",
    "read_rows",
    "read_vectors",
    "reopened",
    "rows_a_context",
    "store_activations",
]
