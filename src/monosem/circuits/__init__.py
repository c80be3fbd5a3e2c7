"""Circuits: how features, heads and tokens make each other and what a model says."""

from monosem.circuits.connections import Connections, connections
from monosem.circuits.feature_circuit import FeatureCircuit, feature_circuit
from monosem.circuits.graph import Graph
from monosem.circuits.paths import Path, paths
from monosem.circuits.trace import trace

__all__ = [
    "Connections",
    "FeatureCircuit",
    "Graph",
    "Path",
    "connections",
    "feature_circuit",
    "paths",
    "trace",
]
