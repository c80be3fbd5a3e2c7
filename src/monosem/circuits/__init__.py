"""Circuits: how features, heads and tokens make each other and what a model says."""

from monosem.circuits.connections.connections import Connections, connections
from monosem.circuits.connections.direct import DirectAttribution, direct_attribution, head_shares
from monosem.circuits.connections.paths import Path, paths
from monosem.circuits.feature_circuit.feature_circuit import FeatureCircuit, feature_circuit
from monosem.circuits.graph.changes import Change, change_features
from monosem.circuits.graph.estimate import Estimate, plan_trace
from monosem.circuits.graph.exchange_read import read_graph
from monosem.circuits.graph.graph import Graph
from monosem.circuits.graph.several import Together, aggregate, difference, path_depth
from monosem.circuits.graph.supernodes import find_supernodes
from monosem.circuits.graph.trace import trace
from monosem.circuits.heads.features import HeadFeatures, head_features, written_features
from monosem.circuits.heads.heads import Heads, heads
from monosem.circuits.heads.looks import Look, look
from monosem.circuits.heads.scores import MEANING
from monosem.circuits.heads.weights import Composition, composition

__all__ = [
    "MEANING",
    "Change",
    "Composition",
    "Connections",
    "DirectAttribution",
    "Estimate",
    "FeatureCircuit",
    "Graph",
    "HeadFeatures",
    "Heads",
    "Look",
    "Path",
    "Together",
    "aggregate",
    "change_features",
    "composition",
    "connections",
    "difference",
    "direct_attribution",
    "feature_circuit",
    "find_supernodes",
    "head_features",
    "head_shares",
    "heads",
    "look",
    "path_depth",
    "paths",
    "plan_trace",
    "read_graph",
    "trace",
    "written_features",
]
