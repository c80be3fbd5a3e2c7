"""Circuits: how features, heads and tokens make each other and what a model says."""

from monosem.circuits.connections import Connections, connections
from monosem.circuits.feature_circuit import FeatureCircuit, feature_circuit
from monosem.circuits.graph import Graph
from monosem.circuits.head_scores import MEANING
from monosem.circuits.head_weights import Composition, composition
from monosem.circuits.heads import Heads, heads
from monosem.circuits.paths import Path, paths
from monosem.circuits.trace import trace

__all__ = [
    "MEANING",
    "Composition",
    "Connections",
    "FeatureCircuit",
    "Graph",
    "Heads",
    "Path",
    "composition",
    "connections",
    "feature_circuit",
    "heads",
    "paths",
    "trace",
]
