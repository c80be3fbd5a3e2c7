"""Supernodes: features of a graph that are made alike and make alike, found, named, and made by hand.

A feature's profile is signed: what share of its value each node gives it, and what share of each target's value it gives,
weighted by how much of the influence passes that target. Two features are as alike as the mean of the cosines of these
two profiles; clusters are those of complete linkage, in which every two members are at least so alike. The same graph
always gives the same groups, in whatever order its nodes stand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import csr_matrix
from scipy.spatial.distance import squareform

from monosem.errors import ConfigError

if TYPE_CHECKING:
    from monosem.circuits.graph import Graph

MOST = 500
ALIKE = 0.5
SAFE = 1e-12
LONGEST_NAME = 60


def similarity(edges: csr_matrix, features: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """How alike features are, -1 to 1.

    Args:
        edges: (rows, nodes), what each node gives to each row's value; row i is that of feature node i.
        features: numbers of the feature nodes to compare: of their rows and of their columns.
        weights: (rows,) how much passes each row.
    """
    rows = edges.multiply(1 / (abs(edges).sum(1) + SAFE)).tocsr()
    came = rows[list(features)]
    went = rows.multiply(weights[:, None]).tocsc()[:, list(features)].T
    return (_cosines(came) + _cosines(went)) / 2


def clusters(alike: np.ndarray, least: float) -> list[list[int]]:
    """Groups of at least two, in which every two are at least so alike."""
    if len(alike) < 2:
        return []
    far = np.clip(1 - (alike + alike.T) / 2, 0, 2)
    np.fill_diagonal(far, 0)
    numbers = fcluster(linkage(squareform(far, checks=False), "complete"), 1 - least, "distance")
    found: dict[int, list[int]] = {}
    for i, number in enumerate(numbers.tolist()):
        found.setdefault(number, []).append(i)
    return [members for members in found.values() if len(members) > 1]


def _cosines(rows: Any) -> np.ndarray:
    norms = np.sqrt(np.asarray(rows.multiply(rows).sum(1))).ravel()
    return (rows @ rows.T).toarray() / (np.outer(norms, norms) + SAFE)
