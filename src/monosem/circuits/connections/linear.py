"""Which features are linear sums of earlier ones, on tokens that were not fitted?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.circuits.connections.lasso import lasso
from monosem.circuits.connections.pairs import Pairs, sparse
from monosem.errors import DataError
from monosem.work import doing


@dataclass(frozen=True)
class LinearFit:
    """Target features as sparse linear sums of source features."""

    latents: Int[Tensor, " targets"]
    """Target features that are on often enough."""
    penalties: list[float]
    """As shares of the largest at which anything is used."""
    weights: list[Float[Tensor, "sources targets"]]
    """Of each penalty, in units of codes."""
    explained: Float[Tensor, "penalties targets"]
    """The share of each target's variance explained on documents held out."""
    rectified: Float[Tensor, "penalties targets"]
    """The same with what is below 0 set to 0."""
    used: Int[Tensor, "penalties targets"]
    """Source features with a weight."""
    violations: list[float]
    """By how much the conditions of the minimum fail at most, as a share of the penalty."""
    by_weights: Float[Tensor, " targets"]
    """Explained by the virtual weights, with one fitted factor for each target."""
    by_chance: Float[Tensor, " targets"]
    """Explained by a fit, at the smallest penalty, on source features of other tokens."""

    @property
    def best(self) -> Float[Tensor, " targets"]:
        """Explained at the penalty that is best for each."""
        return self.explained.amax(0)

    def share(self, at_least: float = 0.5) -> tuple[float, float, float]:
        """The share of target features of which so much is explained; its 95 % interval, Wilson's, over features."""
        hits, n, z = int((self.best >= at_least).sum()), len(self.latents), 1.959964
        p, spread = hits / n, z * z / n
        middle, half = (p + spread / 2) / (1 + spread), z * (p * (1 - p) / n + spread / (4 * n)) ** 0.5 / (1 + spread)
        return p, max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        lines = [f"{len(self.latents):,} features; explained on held-out documents, the median over features"]
        for i, penalty in enumerate(self.penalties):
            median, rectified = float(self.explained[i].median()), float(self.rectified[i].median())
            used = float(self.used[i].double().mean())
            lines.append(
                f"  penalty {penalty:g}: {median:.3f} ({rectified:.3f} rectified) by {used:.1f} features, conditions "
                f"hold to {self.violations[i]:.1e}"
            )
        lines.append(f"  virtual weights: {float(self.by_weights.median()):.3f}")
        lines.append(f"  other tokens: {float(self.by_chance.median()):.3f}")
        lines += [f"  at least {s:.0%} explained: {self.share(s)[0]:.0%}" for s in (0.9, 0.5)]
        return "\n".join(lines)


@torch.no_grad()
def fit_linear(
    pairs: Pairs,
    latents: Int[Tensor, " targets"],
    weights: Float[Tensor, "sources targets"],
    penalties: Sequence[float],
    held_out: float,
    fewest: int,
) -> LinearFit:
    """As `Connections.linear`.

    Raises:
        DataError: no feature is on often enough, or there is one document.
    """
    documents = pairs.documents.unique()
    out = documents[torch.randperm(len(documents), generator=torch.Generator().manual_seed(0))]
    out = out[: max(1, round(held_out * len(documents)))]
    hidden = torch.isin(pairs.documents, out)
    fitted, tested = pairs.rows(~hidden), pairs.rows(hidden)
    if not len(fitted) or not len(tested):
        raise DataError("a fit and its test need several documents")
    f, y, f_out, y_out = (sparse(codes) for codes in (fitted.source, fitted.target, tested.source, tested.target))
    counts = np.minimum((y > 0).sum(0), (y_out > 0).sum(0))
    often = counts[latents.cpu().numpy()] >= fewest
    if not often.any():
        raise DataError(f"no target feature is on {fewest} times in each part: read more tokens")
    kept = latents[torch.from_numpy(often)]
    y, y_out = (side[:, kept.cpu().numpy()] for side in (y, y_out))
    n = len(fitted)
    sizes = [np.sqrt((x**2).sum(0) / n) for x in (f, y)]
    sizes = [np.where(size > 0, size, 1) for size in sizes]
    gram = _tensor((f.T @ f).toarray() / n / np.outer(sizes[0], sizes[0]))
    products = _tensor((f.T @ y).toarray() / n / np.outer(sizes[0], sizes[1]))
    largest = float(products.abs().max())
    units = _tensor(sizes[1][None] / sizes[0][:, None])
    found: list[Tensor] = []
    violations: list[float] = []
    explained: list[Tensor] = []
    rectified: list[Tensor] = []
    with doing("fitting", len(penalties), unit="penalties") as work:
        for share in penalties:
            solved = lasso(gram, products, share * largest)
            found.append(solved.weights * units)
            violations.append(solved.violation)
            made = f_out @ found[-1].double().numpy()
            explained.append(_explained(made, y_out))
            rectified.append(_explained(np.maximum(made, 0), y_out))
            work.advance(1)
    virtual = weights[:, torch.isin(latents, kept)].double().cpu().numpy()
    inside, outside = f @ virtual, f_out @ virtual
    square = (inside**2).sum(0)
    factor = np.asarray(y.multiply(inside).sum(0)).reshape(-1) / np.where(square > 0, square, 1)
    moved = np.random.default_rng(0).permutation(n)
    other = _tensor((f[moved].T @ y).toarray() / n / np.outer(sizes[0], sizes[1]))
    chance = lasso(gram, other, penalties[-1] * largest).weights * units
    return LinearFit(
        kept,
        list(penalties),
        found,
        torch.stack(explained),
        torch.stack(rectified),
        torch.stack([(w != 0).sum(0) for w in found]),
        violations,
        _explained(outside * factor, y_out),
        _explained(f_out @ chance.double().numpy(), y_out),
    )


def _explained(made: np.ndarray, y: Any) -> Float[Tensor, " targets"]:
    """1 - squared error / variance, target by target."""
    dense = y.toarray()
    variance = ((dense - dense.mean(0)) ** 2).sum(0)
    return torch.from_numpy(1 - ((dense - made) ** 2).sum(0) / np.where(variance > 0, variance, 1))


def _tensor(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x)).float()
