"""Circuits: how features, heads and tokens make each other and what a model says."""

from monosem.circuits.connections import Connections, connections
from monosem.circuits.feature_circuit import FeatureCircuit, feature_circuit
from monosem.circuits.paths import Path, paths

__all__ = ["Connections", "FeatureCircuit", "Path", "connections", "feature_circuit", "paths"]
