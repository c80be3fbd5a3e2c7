"""How much of what is explained passes each node: one solve of a triangular system, each edge touched once.

Rows are normalised by their absolute sum over what can vary: features, errors, tokens, positions. Influence of a node
is the sum over all paths from it to the targets of the products of these shares, weighted by the targets. Features
stand in the order in which they are read, so that edges lead from earlier to later ones alone: a triangular matrix.

Source: Ameisen et al., Circuit Tracing, 2025 (there a power series of the square matrix of all nodes).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_matrix, diags, eye
from scipy.sparse.linalg import spsolve_triangular

VARIES = ("feature", "error", "token", "position")
"""Kinds of nodes whose values another prompt would change; the rest are constants."""
SAFE = 1e-30
BLOCK = 2**22
"""Edges that are worked on at a time."""


def blocks(matrix: csr_matrix) -> Iterator[tuple[slice, csr_matrix]]:
    """Some rows at a time, in float64: the whole may be large."""
    n, first = len(matrix.indptr) - 1, 0
    while first < n:
        enough = int(np.searchsorted(matrix.indptr, matrix.indptr[first] + BLOCK, side="right")) - 1
        rows = slice(first, min(n, max(first + 1, enough)))
        yield rows, csr_matrix(matrix[rows], dtype=np.float64)
        first = rows.stop


def sums(matrix: csr_matrix, *columns: np.ndarray, absolute: bool = True) -> np.ndarray:
    """Of every row its sum over each choice of columns, (choices, rows); of absolute values, or of values."""
    chosen = np.stack(columns, 1).astype(np.float64)
    parts = [(abs(part) if absolute else part) @ chosen for _, part in blocks(matrix)]
    return np.concatenate([np.zeros((0, len(columns))), *parts]).T


def shares(matrix: csr_matrix, kinds: np.ndarray) -> csr_matrix:
    """Absolute values of rows, divided by their sums over what can vary."""
    sizes = abs(matrix).astype(np.float64)
    return csr_matrix(diags(1 / _safe(matrix, kinds)) @ sizes)


def _safe(matrix: csr_matrix, kinds: np.ndarray) -> np.ndarray:
    return np.maximum(sums(matrix, np.isin(kinds, VARIES))[0], SAFE)


def influence_of(matrix: csr_matrix, kinds: np.ndarray, n_features: int, weights: np.ndarray) -> np.ndarray:
    """Of every node, (N,).

    Args:
        matrix: (F + K) rows of F features and K targets, N columns of nodes of which the first F are the features.
        kinds: (N,) of nodes.
        n_features: F.
        weights: (K,) of targets.
    """
    by = 1 / _safe(matrix, kinds)
    passing = np.asarray(abs(matrix[n_features:]).T @ (weights * by[n_features:])).ravel()
    if n_features:
        among = csr_matrix(diags(by[:n_features]) @ abs(matrix[:n_features, :n_features]).astype(np.float64))
        if _is_lower(among):
            system = csr_matrix(eye(n_features) - among.T)
            through = spsolve_triangular(system, passing[:n_features], lower=False, unit_diagonal=True)
        else:  # nodes of a graph from elsewhere may stand in any order
            through = _series(among, passing[:n_features])
        through = np.concatenate([through * by[:n_features], np.zeros(len(by) - n_features)])
        for rows, part in blocks(matrix):
            passing = passing + np.asarray(abs(part).T @ through[rows]).ravel()
    return passing


def _is_lower(square: csr_matrix) -> bool:
    coordinates = square.tocoo()
    return bool((coordinates.col < coordinates.row).all())


def _series(among: csr_matrix, first: np.ndarray) -> np.ndarray:
    """The sum of all powers; ends by itself where no edge leads back."""
    total, term = first.copy(), first
    for _ in range(1000):
        term = np.asarray(among.T @ term).ravel()
        if not term.any() or term.max() < 1e-15 * total.max():
            break
        total = total + term
    return total


def scores_of(
    matrix: csr_matrix, kinds: np.ndarray, n_features: int, weights: np.ndarray, influence: np.ndarray
) -> tuple[float, float]:
    """Replacement and completeness.

    Replacement: of the influence that ends at tokens (with positions) or at errors the part that ends at tokens.
    Completeness: of what comes to nodes, weighted by their influence, the part that does not come from errors.
    """
    errors = kinds == "error"
    tokens = np.isin(kinds, ("token", "position"))
    ends = influence[tokens].sum() + influence[errors].sum()
    by_errors, varying = sums(matrix, errors, np.isin(kinds, VARIES))
    from_errors = by_errors / np.maximum(varying, SAFE)
    weight = np.concatenate([influence[:n_features], weights])
    replacement = float(influence[tokens].sum() / ends) if ends > 0 else 1.0
    completeness = float((weight * (1 - from_errors)).sum() / weight.sum()) if weight.sum() > 0 else 1.0
    return replacement, completeness
