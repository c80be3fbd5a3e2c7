"""How well activations are rebuilt: FVU, explained variance, cosine, norm ratio, L0, dead latents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosem.evaluation.metric import Metric, Seen
from monosem.intervals import Interval

ROUNDING = 1e-13
"""Of the energy about the reference: a variance below it is that of rounding."""


class Reconstruction(Metric):
    """Sums from which the reconstruction metrics follow, at any batch size alike.

    FVU = sum ||x - x_hat||^2 / sum ||x - mean(x)||^2        mean over the whole data set; explained variance 1 - FVU

    Cosine and norm ratio are means over the rows that are not zero, of which they are defined. What is not defined of
    any (FVU of rows that are all the same) is NaN.
    """

    def __init__(self, reference: Float[Tensor, " d"], columns: Sequence[str]) -> None:
        """Begin; `reference` is any point near the mean, subtracted for precision alone."""
        super().__init__()
        self.reference, self.columns = reference.double(), columns

    def add(self, seen: Seen) -> None:
        x, where = seen.target.double(), seen.documents.cpu().numpy()

        def add(name: str, values: Tensor) -> None:
            self.sums.add(name, where, values.cpu().numpy())

        shifted, norms = x - self.reference.to(x.device), x.norm(dim=-1)
        long = norms > 0
        add("rows", torch.ones(len(x)))
        add("energy", shifted.pow(2).sum(-1))
        add("shifted", shifted)
        add("long", long.double())
        for name in self.columns:
            rebuilt = seen.reconstruction(name).double()
            rebuilt_norms = rebuilt.norm(dim=-1)
            add(f"error {name}", (x - rebuilt).pow(2).sum(-1))
            cosines = (x * rebuilt).sum(-1) / (norms * rebuilt_norms)
            add(f"cosine {name}", torch.where(long & (rebuilt_norms > 0), cosines, 0.0))
            add(f"norm_ratio {name}", torch.where(long, rebuilt_norms / norms, 0.0))
            add(f"dot {name}", (x * rebuilt).sum(-1))
            add(f"rebuilt {name}", rebuilt.pow(2).sum(-1))
            codes = seen.codes(name)
            if codes is not None:
                l0 = codes.l0().reshape(-1).cpu().numpy()
                self.sums.add(f"l0 {name}", where, l0)
                self.count(f"l0 {name}", np.bincount(l0))
                self.count(f"firing {name}", codes.firing_counts().cpu().numpy())

    @property
    def n_rows(self) -> int:
        return int(self.sums.total("rows")) if "rows" in self.sums else 0

    def firing_rates(self, name: str) -> np.ndarray:
        """(n_latents,) share of rows on which each latent was on; nothing of a column without latents."""
        return self.counts.get(f"firing {name}", np.zeros(0)) / max(self.n_rows, 1)

    def l0_counts(self, name: str) -> np.ndarray:
        """Number of rows with 0, 1, 2, ... latents on."""
        return self.counts.get(f"l0 {name}", np.zeros(0, np.int64))

    def result(self, name: str) -> dict[str, Interval]:
        d = len(self.reference)
        found = {
            "fvu": self.sums.interval(lambda s: _fvu(s, name)),
            "explained_variance": self.sums.interval(lambda s: 1 - _fvu(s, name)),
            "mse": self.sums.interval(lambda s: s[f"error {name}"] / s["rows"] / d),
            "cosine": self.sums.interval(lambda s: s[f"cosine {name}"] / s["long"]),
            "norm_ratio": self.sums.interval(lambda s: s[f"norm_ratio {name}"] / s["long"]),
        }
        if name != "mean":  # which points one way, whatever is given
            found["relative_bias"] = self.sums.interval(lambda s: s[f"rebuilt {name}"] / s[f"dot {name}"])
        firing = self.counts.get(f"firing {name}")
        if firing is not None:
            found["l0"] = self.sums.interval(lambda s: s[f"l0 {name}"] / s["rows"])
            found["dead_share"] = Interval(float((firing == 0).mean()))
        return found

    def notes(self) -> dict[str, str]:
        return {"dead_share": "no interval: it depends on how many tokens were read, not on which"}


def _fvu(sums: dict[str, np.ndarray], name: str) -> np.ndarray:
    shift = (sums["shifted"] ** 2).sum(-1) / sums["rows"]
    variance = sums["energy"] - shift
    return sums[f"error {name}"] / np.where(variance > ROUNDING * sums["energy"], variance, 0.0)
