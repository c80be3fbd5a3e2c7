"""Circuits: how features, heads and tokens make each other and what a model says."""

from monosem.circuits.feature_circuit import FeatureCircuit, feature_circuit

__all__ = ["FeatureCircuit", "feature_circuit"]
