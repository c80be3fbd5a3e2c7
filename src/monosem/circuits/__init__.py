"""Circuits: how features, heads and tokens make each other and what a model says."""

from monosem.circuits.changes import Change, change_features
from monosem.circuits.connections import Connections, connections
from monosem.circuits.direct import DirectAttribution, direct_attribution, head_shares
from monosem.circuits.estimate import Estimate, plan_trace
from monosem.circuits.exchange_read import read_graph
from monosem.circuits.feature_circuit import FeatureCircuit, feature_circuit
from monosem.circuits.graph import Graph
from monosem.circuits.head_features import HeadFeatures, head_features, written_features
from monosem.circuits.head_scores import MEANING
from monosem.circuits.head_weights import Composition, composition
from monosem.circuits.heads import Heads, heads
from monosem.circuits.looks import Look, look
from monosem.circuits.paths import Path, paths
from monosem.circuits.several import Together, aggregate, difference, path_depth
from monosem.circuits.supernodes import find_supernodes
from monosem.circuits.trace import trace

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
