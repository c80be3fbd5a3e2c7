"""Dark matter: how much of a dictionary's error is a linear function of what it read.

Engels et al., Decomposing the dark matter of sparse autoencoders, 2024.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosem.evaluation.metric import Metric, Seen
from monosem.intervals import Interval

WIDEST = 2048
"""Wider inputs are left out: sums of all pairs of coordinates are kept."""
RIDGE = 1e-8
"""Of the mean variance: directions in which nothing varies predict nothing."""


class DarkMatter(Metric):
    """Least squares from inputs to errors, fitted on one half of the documents and measured on the other, both ways.

    R^2 = 1 - sum |e - A x - b|^2 / sum |e - mean(e)|^2, and the same of the norm |e|.
    """

    def __init__(self, reference: Float[Tensor, " d_in"], saes: Sequence[str]) -> None:
        """Begin; `reference` is any point near the mean of the inputs, subtracted for precision alone."""
        super().__init__()
        self.reference, self.saes = reference, saes

    def add(self, seen: Seen) -> None:
        x = seen.x.flatten(1) - self.reference.to(seen.x)
        inputs = torch.cat([torch.ones_like(x[:, :1]), x], 1)
        for half in (0, 1):
            own = (seen.documents % 2 == half).to(x.device)
            read = inputs[own]
            self._add(f"xx {half}", read.T @ read)
            for name in self.saes:
                error = (seen.target - seen.reconstruction(name))[own]
                errors = torch.cat([error, error.norm(dim=-1, keepdim=True)], 1)
                self._add(f"xe {half} {name}", read.T @ errors)
                self._add(f"ee {half} {name}", errors.pow(2).sum(0))

    def _add(self, key: str, values: Tensor) -> None:
        self.count(key, values.double().cpu().numpy())

    def result(self, name: str) -> dict[str, Interval]:
        if name not in self.saes or not all(np.isfinite(sums).all() for sums in self.counts.values()):
            return {}
        left, whole = np.zeros(2), np.zeros(2)
        for fitted, tested in ((0, 1), (1, 0)):
            n = self.counts[f"xx {tested}"][0, 0]
            if min(n, self.counts[f"xx {fitted}"][0, 0]) <= 2 * len(self.counts["xx 0"]):
                return {}
            gram = self.counts[f"xx {fitted}"]
            ridge = RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
            map_ = np.linalg.solve(gram + ridge, self.counts[f"xe {fitted} {name}"])
            cross, energy = self.counts[f"xe {tested} {name}"], self.counts[f"ee {tested} {name}"]
            rest = energy - 2 * (map_ * cross).sum(0) + (map_ * (self.counts[f"xx {tested}"] @ map_)).sum(0)
            spread = energy - cross[0] ** 2 / n
            for found, values in ((left, rest), (whole, spread)):
                found += [values[:-1].sum(), values[-1]]
        if not whole.all():  # there is no error, or always the same
            return {}
        shares = 1 - left / whole
        return {"error_linear": Interval(float(shares[0])), "error_norm_linear": Interval(float(shares[1]))}

    def notes(self) -> dict[str, str]:
        why = (
            "no interval: fitted on one half of the documents and measured on the other, both ways; left "
            "out where a half has fewer than two rows a coordinate, or squares are beyond float32"
        )
        return {"error_linear": why, "error_norm_linear": why}
