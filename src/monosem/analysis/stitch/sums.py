"""One pass over activations: all that the squared error of any mixture of two dictionaries depends on.

A mixture takes some latents of each, with the codes that they have in their own dictionary. With m_k = 1 for those that
take part, f_k their codes and D_k their directions, x less an offset is made up to

    E||x - o - sum_k m_k f_k D_k||^2 = c - 2 h.m + m.Q m,   Q_kl = E[f_k f_l] <D_k, D_l>,   h_k = E[f_k <x - o, D_k>]

so that every mixture's error is known once Q and h are. The difference of the two dictionaries' offsets is the
direction of one more latent, the last, whose code is always 1: so that no bias counts twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy import sparse
from torch import Tensor

from monosem import kernels
from monosem.activations import Rows
from monosem.codes import SparseCodes
from monosem.kernels import Selection
from monosem.sae import SAE
from monosem.work import Stage

AT_ONCE, ADDED_UP = 4096, 131_072
"""Rows that are encoded at a time, and whose codes are multiplied with each other at a time."""


class Quadratic(NamedTuple):
    """The squared error of every mixture."""

    Q: sparse.csr_matrix
    """(n + 1, n + 1), the small dictionary's latents, the large one's, the offset."""
    h: np.ndarray
    constant: float
    """The error of nothing but the small dictionary's offset."""
    variance: float
    rates: np.ndarray
    """How often each is on."""
    rows: int

    def error(self, m: np.ndarray) -> float:
        """Of a mixture (n + 1,)."""
        return float(self.constant - 2 * self.h @ m + m @ (self.Q @ m))


class Insertions(NamedTuple):
    """What the squared error changes by when a latent of the large dictionary is put into the small one, alone."""

    change: np.ndarray
    """(n_large,) of the mean squared error of a row; NaN for latents that were never on."""
    half: np.ndarray
    """Half the width of its 95 % interval, over documents where they are known, else over rows."""

    def signs(self) -> np.ndarray:
        """-1 where it helps, 1 where it hurts, 0 where the interval has both, NaN where it was never on."""
        sure = np.abs(self.change) > self.half
        return np.where(np.isnan(self.change), np.nan, np.where(sure, np.sign(self.change), 0))


def offset(sae: SAE) -> Float[Tensor, " d"]:
    """What a dictionary reconstructs of no latents, in raw units."""
    nothing = SparseCodes.from_dense(torch.zeros(1, sae.n_latents, dtype=sae.W_dec.dtype, device=sae.W_dec.device))
    return sae.decode(nothing).detach().reshape(-1)


@torch.no_grad()
def read(small: SAE, large: SAE, batches: Iterable[Rows], stage: Stage) -> tuple[Quadratic, Insertions]:
    """Read the rows once."""
    own, other = offset(small), offset(large)
    directions = [sae.decoder_directions().flatten(1) for sae in (small, large)]
    D = torch.cat([*directions, (other - own)[None]]).double().cpu().numpy()
    n, total, energy, n_rows = len(D), np.zeros(D.shape[1]), 0.0, 0
    together, products, on = _Products(n), np.zeros_like(D), np.zeros(n)
    effects = _Effects(directions[1])
    for batch in batches:
        wanted = batch.x if batch.target is None else batch.target
        for start in range(0, len(batch.x), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            x, y = batch.x[part].to(small.W_enc.device), wanted[part].to(small.W_enc.device)
            codes = [sae.encode(x) for sae in (small, large)]
            matrices = [_matrix(one) for one in codes]
            F = sparse.csr_matrix(sparse.hstack([*matrices, np.ones((len(x), 1))]))
            target = (y.flatten(1) - own).double().cpu().numpy()
            together.add(F)
            products += F.T @ target
            on += np.bincount(F.indices, minlength=n)
            energy, total, n_rows = energy + float((target**2).sum()), total + target.sum(0), n_rows + len(x)
            documents = batch.documents[part].cpu().numpy() if batch.documents is not None else None
            effects.add(codes[1], (y - small.decode(codes[0], x)).flatten(1), documents)
            stage.advance(len(x))
    mean = total / n_rows
    Q = _with_cosines(together.sum(), D) / n_rows
    h = (products * D).sum(1) / n_rows
    quadratic = Quadratic(Q, h, energy / n_rows, energy / n_rows - float(mean @ mean), on / n_rows, n_rows)
    return quadratic, effects.insertions(n_rows)


def _matrix(codes: SparseCodes) -> sparse.csr_matrix:
    """(rows, latents) without the entries that are 0."""
    values = codes.values.double().cpu().numpy()
    found = sparse.csr_matrix(
        (values, codes.indices.cpu().numpy(), codes.offsets.cpu().numpy()), shape=(codes.n_rows, codes.n_latents)
    )
    found.eliminate_zeros()
    return found


def _with_cosines(together: sparse.csr_matrix, D: np.ndarray) -> sparse.csr_matrix:
    """Each entry times the product of its two directions, some rows at a time."""
    together.sort_indices()
    data, step = together.data.copy(), max(1, 2**24 // len(D))
    for start in range(0, len(D), step):
        stop = min(len(D), start + step)
        products = D[start:stop] @ D.T
        entries = slice(together.indptr[start], together.indptr[stop])
        rows = np.repeat(np.arange(stop - start), np.diff(together.indptr[start : stop + 1]))
        data[entries] *= products[rows, together.indices[entries]]
    return sparse.csr_matrix((data, together.indices, together.indptr), shape=together.shape)


class _Products:
    """The sum of F.T @ F over blocks of rows."""

    def __init__(self, n: int) -> None:
        self.found, self.blocks, self.rows = sparse.csr_matrix((n, n)), list[sparse.csr_matrix](), 0

    def add(self, F: sparse.csr_matrix) -> None:
        self.blocks.append(F)
        self.rows += len(F.indptr) - 1
        if self.rows >= ADDED_UP:
            self.sum()

    def sum(self) -> sparse.csr_matrix:
        if self.blocks:
            F = sparse.csr_matrix(sparse.vstack(self.blocks))
            self.found = self.found + F.T @ F
            self.blocks, self.rows = [], 0
        return self.found


class _Effects:
    """Sums, by latent and document, of f^2 ||D||^2 - 2 f <r, D>: what putting a latent in does to a row's error."""

    def __init__(self, directions: Float[Tensor, "n d"]) -> None:
        self.n, self.directions = len(directions), directions
        self.squares = directions.double().pow(2).sum(1).cpu().numpy()
        self.found: list[tuple[np.ndarray, np.ndarray]] = []
        self.rows_before = 0

    def add(self, codes: SparseCodes, residual: Float[Tensor, "rows d"], documents: np.ndarray | None) -> None:
        selection = Selection(codes.indices, codes.offsets, codes.n_latents)
        products = kernels.encode(residual, self.directions, residual.new_zeros(self.n), None, selection)
        latents, values = codes.indices.cpu().numpy().astype(np.int64), codes.values.double().cpu().numpy()
        change = values**2 * self.squares[latents] - 2 * values * products.double().cpu().numpy()
        rows, on = codes.rows().cpu().numpy(), values != 0
        of = np.arange(self.rows_before, self.rows_before + len(residual)) if documents is None else documents
        self.rows_before += len(residual)
        keys, places = np.unique((of[rows] * self.n + latents)[on], return_inverse=True)
        self.found.append((keys, np.bincount(places, weights=change[on], minlength=len(keys))))

    def insertions(self, n_rows: int) -> Insertions:
        keys, places = np.unique(np.concatenate([one[0] for one in self.found]), return_inverse=True)
        sums = np.bincount(places, weights=np.concatenate([one[1] for one in self.found]), minlength=len(keys))
        latents = keys % self.n
        total = np.bincount(latents, weights=sums, minlength=self.n)
        squares = np.bincount(latents, weights=sums**2, minlength=self.n)
        seen = np.bincount(latents, minlength=self.n) > 0
        half = 1.959964 * np.sqrt(np.maximum(squares, 0)) / n_rows
        return Insertions(np.where(seen, total / n_rows, np.nan), np.where(seen, half, np.nan))
