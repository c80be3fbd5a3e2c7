# pyright: basic
"""A flat layout that keeps neighbours together: as UMAP (McInnes et al. 2018), on cosines of unit rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from scipy import sparse
from scipy.spatial import KDTree
from torch import Tensor

NEIGHBOURS = 5
EPOCHS, PUSHES = 200, 8
"""Passes over the graph, and random others that a point is pushed from at every pull."""
A, B = 1.577, 0.895
"""Of the curve 1 / (1 + A d^2B) by which pull and push fall off: UMAP's for a smallest distance of 0.1."""
SEEN, CHECKED = 50, 1_000
TILE_ENTRIES = 2**24


class Layout(NamedTuple):
    """Points on a plane."""

    places: np.ndarray
    """(n, 2), within -1 to 1. Distances between groups mean nothing."""
    kept: float
    """Share of the points' 5 nearest that are among their 50 nearest on the plane."""


@torch.no_grad()
def neighbourhoods(rows: Tensor) -> Layout:
    """Places of points such that those with similar rows lie together.

    From the two principal components on, every row pulls at its 5 nearest by cosine, the nearest most, and pushes
    random others away. The same rows give the same places.

    Args:
        rows: (n, d), of unit length.
    """
    places = _principal(rows)
    if len(rows) <= SEEN + 1:
        return Layout(places, 1.0)
    nearest, distances = _nearest(rows, NEIGHBOURS)
    graph = _graph(nearest, distances)
    places = np.ascontiguousarray(10 * places, np.float32)
    _settle(places, graph.row, graph.col, (graph.data / graph.data.max()).astype(np.float32))
    places -= (places.max(0) + places.min(0)) / 2
    places /= max(float(np.abs(places).max()), 1e-12)
    return Layout(places, share_kept(places, nearest))


def share_kept(places: np.ndarray, nearest: np.ndarray) -> float:
    """Share of (n, m) neighbours that are among the 50 nearest places; of many points, of a random 1,000."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(places))[:CHECKED])
    seen = np.asarray(KDTree(places).query(places[chosen], SEEN + 1)[1])
    return float((nearest[chosen][:, :, None] == seen[:, None, :]).any(2).mean())


def _principal(rows: Tensor) -> np.ndarray:
    """(n, 2) principal components, within -1 to 1."""
    if len(rows) < 2:
        return np.zeros((len(rows), 2))
    rows = (rows - rows.mean(0)).double()
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    axes = vectors[:, [-1, -2 if len(values) > 1 else -1]]
    axes = axes * torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))  # an axis has no sign of its own
    places = rows @ axes
    return (places / places.abs().max().clamp_min(1e-12)).numpy()


def _nearest(rows: Tensor, m: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, m) indices and distances, the closest first."""
    found: list[Tensor] = []
    cosines: list[Tensor] = []
    for tile in torch.arange(len(rows)).split(max(1, TILE_ENTRIES // len(rows))):
        products = rows[tile] @ rows.T
        products[torch.arange(len(tile)), tile] = -2
        best = products.topk(m, dim=1)
        found.append(best.indices)
        cosines.append(best.values)
    return torch.cat(found).numpy(), 1 - torch.cat(cosines).numpy()


def _graph(indices: np.ndarray, distances: np.ndarray) -> sparse.coo_matrix:
    """Symmetric weights: 1 for the nearest, less for the others on each point's own scale."""
    n, m = indices.shape
    beyond = distances - distances[:, :1]
    weights = np.exp(-beyond / np.maximum(beyond.mean(1, keepdims=True), 1e-6))
    one_way = sparse.csr_matrix((weights.ravel(), (np.repeat(np.arange(n), m), indices.ravel())), (n, n))
    back = one_way.T.tocsr()
    return (one_way + back - one_way.multiply(back)).tocoo()


@njit(cache=True, nogil=True)
def _settle(places, heads, tails, weights):
    """Edges pull as often as their weight says, step by step less."""
    state = np.uint64(0x9E3779B97F4A7C15)
    n = np.uint64(len(places))
    due = np.zeros(len(weights), np.float32)
    for epoch in range(EPOCHS):
        step = np.float32(1 - epoch / EPOCHS)
        for e in range(len(weights)):
            due[e] += weights[e]
            if due[e] < 1:
                continue
            due[e] -= 1
            i, j = heads[e], tails[e]
            dx, dy = places[i, 0] - places[j, 0], places[i, 1] - places[j, 1]
            square = dx * dx + dy * dy
            if square > 0:
                pull = -2 * A * B * square ** (B - 1) / (1 + A * square**B)
                x, y = _short(pull * dx) * step, _short(pull * dy) * step
                places[i, 0] += x
                places[i, 1] += y
                places[j, 0] -= x
                places[j, 1] -= y
            for _ in range(PUSHES):
                state ^= state << np.uint64(13)
                state ^= state >> np.uint64(7)
                state ^= state << np.uint64(17)
                j = np.int64(state % n)
                if i == j:
                    continue
                dx, dy = places[i, 0] - places[j, 0], places[i, 1] - places[j, 1]
                square = dx * dx + dy * dy
                push = 2 * B / ((0.001 + square) * (1 + A * square**B))
                places[i, 0] += _short(push * dx) * step
                places[i, 1] += _short(push * dy) * step


@njit(cache=True, inline="always")
def _short(x):
    return min(max(x, -4.0), 4.0)
