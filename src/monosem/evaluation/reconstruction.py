"""How well activations are rebuilt: FVU, explained variance, cosine, norm ratio, L0, firing rates."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.intervals import DocumentSums, Interval
from monosem.ranks import Group

ROUNDING = 1e-13
"""Of the energy about the reference: a variance below it is that of rounding."""


class Reconstruction:
    """Sums from which the reconstruction metrics follow, at any batch size alike.

    FVU = sum ||x - x_hat||^2 / sum ||x - mean(x)||^2        mean over the whole data set; explained variance 1 - FVU

    Cosine and norm ratio are means over the rows that are not zero, of which they are defined. What is not defined of
    any (FVU of rows that are all the same) is NaN.
    """

    def __init__(self, reference: Float[Tensor, " d"]) -> None:
        """Begin; `reference` is any point near the mean, subtracted for precision alone."""
        self.sums = DocumentSums()
        self.reference = reference.double()
        self.firing: Tensor | None = None
        self.l0_counts = np.zeros(0, dtype=np.int64)

    def add(
        self,
        x: Float[Tensor, "rows d"],
        reconstruction: Float[Tensor, "rows d"],
        documents: Int[Tensor, " rows"],
        codes: SparseCodes | None = None,
    ) -> None:
        """Take in one batch of raw activations and their reconstructions."""
        x, reconstruction = x.double(), reconstruction.double()
        shifted = x - self.reference.to(x.device)
        where = documents.cpu().numpy()

        def add(name: str, values: Tensor) -> None:
            self.sums.add(name, where, values.cpu().numpy())

        add("rows", torch.ones(len(x)))
        add("error", (x - reconstruction).pow(2).sum(-1))
        add("energy", shifted.pow(2).sum(-1))
        add("shifted", shifted)
        norms, rebuilt_norms = x.norm(dim=-1), reconstruction.norm(dim=-1)
        long = norms > 0
        dots = (x * reconstruction).sum(-1) / (norms * rebuilt_norms)
        add("long", long.double())
        add("cosine", torch.where(long & (rebuilt_norms > 0), dots, 0.0))
        add("norm_ratio", torch.where(long, rebuilt_norms / norms, 0.0))
        if codes is not None:
            l0 = codes.l0().reshape(-1)
            add("l0", l0.double())
            counts = np.bincount(l0.cpu().numpy(), minlength=len(self.l0_counts))
            counts[: len(self.l0_counts)] += self.l0_counts
            self.l0_counts = counts
            firing = codes.firing_counts().cpu()
            self.firing = firing if self.firing is None else self.firing + firing

    def add_up(self, every: Group) -> None:
        """Take in what other processes have, of which each takes in all."""
        self.sums.add_up(every)
        if every.size == 1:
            return
        sizes = every.words([0 if self.firing is None else len(self.firing), len(self.l0_counts)])
        n_latents, n_counts = (max(column) for column in zip(*sizes, strict=True))
        counts = np.zeros(n_counts, np.int64)
        counts[: len(self.l0_counts)] = self.l0_counts
        self.l0_counts = every.sum_(torch.from_numpy(counts)).numpy()
        if n_latents:
            own = torch.zeros(n_latents, dtype=torch.int64) if self.firing is None else self.firing.long()
            self.firing = every.sum_(own)

    @property
    def n_rows(self) -> int:
        return int(self.sums.total("rows")) if "rows" in self.sums else 0

    def metrics(self) -> dict[str, Interval]:
        d = len(self.reference)
        found = {
            "fvu": self.sums.interval(_fvu),
            "explained_variance": self.sums.interval(lambda s: 1 - _fvu(s)),
            "mse": self.sums.interval(lambda s: s["error"] / s["rows"] / d),
            "cosine": self.sums.interval(lambda s: s["cosine"] / s["long"]),
            "norm_ratio": self.sums.interval(lambda s: s["norm_ratio"] / s["long"]),
        }
        if self.firing is not None:
            found["l0"] = self.sums.interval(lambda s: s["l0"] / s["rows"])
            found["dead_share"] = Interval((self.firing == 0).double().mean().item())
        return found


def _fvu(sums: dict[str, np.ndarray]) -> np.ndarray:
    shift = (sums["shifted"] ** 2).sum(-1) / sums["rows"]
    variance = sums["energy"] - shift
    return sums["error"] / np.where(variance > ROUNDING * sums["energy"], variance, 0.0)
