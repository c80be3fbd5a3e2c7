"""InputTransform: what happens to activations before the encoder and, reversed, after the decoder."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosem.arguments import Device, Floating, Positive, checked
from monosem.errors import ConfigError, DataError

TransformKind = Literal[
    "centre_scale",
    "centre",
    "scale",
    "layer_norm",
    "standardise",
    "row_norm",
    "row_centre",
    "whiten",
    "whiten_pca",
    "none",
]
PER_ROW = ("layer_norm", "standardise", "row_norm", "row_centre")

FLOOR = 1e-6  # of the largest variance: below it, a direction is not blown up further by whitening
TINY = 1e-12  # added to a row's variance: a constant row becomes zeros
EPSILON = 1e-5  # added to a row's deviation where it is standardised


class InputTransform(nn.Module):
    """What an SAE does to activations first, and undoes last.

    - "centre_scale": t(x) = (x - mean) * scale, with mean = E[x] and scale such that E||t(x)|| = sqrt(d); "centre" and
      "scale" are halves of it.
    - "whiten": t(x) = C^(-1/2) (x - mean), C the covariance (ZCA: of all whitenings the one that moves x least);
      "whiten_pca": the same, in the coordinates of C's eigenvectors.
    - "layer_norm": t(x) = (x - m) / s, m and s mean and standard deviation over the entries of that row;
      "standardise": the same with the deviation of a sample, which divides by d - 1, and 1e-5 added to what divides, as
      OpenAI's SAEs and SAELens's do it; "row_norm": t(x) = x sqrt(d) / ||x||;
      "row_centre": t(x) = x - m, m the mean of that row's entries: what TransformerLens makes of the residual stream
      where it centres the weights that write to it.
    - "none": x as it is.

    Centring keeps a large common component from killing latents; scaling makes learning rates and penalties mean the
    same on every model. Estimated on the first activations seen, stored in the SAE: a saved SAE takes raw activations
    and returns raw reconstructions.

    All but those of a row's own are one affine map (`affine`), which can be folded into weights. Those are another
    map for every row (`per_row`): what undoes it must know which rows they were, `inverse(y, x)`.
    """

    mean: Float[Tensor, " d"]
    scale: Float[Tensor, ""]
    matrix: Float[Tensor, "d d"]
    """Of whitening alone, as is its inverse."""
    inverse_matrix: Float[Tensor, "d d"]

    @checked
    def __init__(
        self,
        d: Positive,
        kind: TransformKind = "centre_scale",
        dtype: Floating = torch.float32,
        device: Device | None = None,
    ) -> None:
        super().__init__()
        self.kind: TransformKind = kind
        self.fitted = kind in ("none", *PER_ROW)
        self.register_buffer("mean", torch.zeros(d, dtype=dtype, device=device))
        self.register_buffer("scale", torch.ones((), dtype=dtype, device=device))
        if self.whitens:
            for name in ("matrix", "inverse_matrix"):
                self.register_buffer(name, torch.eye(d, dtype=dtype, device=device))

    @property
    def whitens(self) -> bool:
        return self.kind in ("whiten", "whiten_pca")

    @property
    def per_row(self) -> bool:
        """Whether it is another map for every row, so that `inverse` needs the rows."""
        return self.kind in PER_ROW

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "rows d"] | Iterable[Float[Tensor, "rows d"]]) -> None:
        """Estimate, from rows or, in one pass, from batches of rows. Does nothing for "none" and those of a row's own.

        Raises:
            DataError: the rows are all the same, or too few to whiten.
        """
        if self.kind in ("none", *PER_ROW):
            return
        moments = Moments(covariance=self.whitens)
        for batch in [x] if isinstance(x, Tensor) else x:
            moments.add(batch)
        if not moments.n:
            raise DataError("there are no rows to fit the transform on")
        if self.whitens:
            self._fit_whitening(moments)
        elif "scale" in self.kind:
            norm = moments.centred_norm if "centre" in self.kind else moments.norm
            if math.isfinite(norm) and not norm > 1e-12 * moments.norm:  # less than that is rounding
                raise DataError(
                    f"cannot scale activations of mean norm {norm:g}: all {moments.n} rows are the same. "
                    "Check the hook point, or use transform='none'."
                )
            self.scale.copy_(len(moments.mean) ** 0.5 / torch.tensor(norm, dtype=torch.float64))
        if self.kind != "scale":
            self.mean.copy_(moments.mean)
        if not all(buffer.isfinite().all() for buffer in self.buffers()) or self.scale == 0:
            raise DataError(
                f"activations of mean norm {moments.norm:g} are beyond what {self.scale.dtype} can scale: multiply "
                "them by a number that brings them near 1"
            )
        self.fitted = True

    def _fit_whitening(self, moments: Moments) -> None:
        covariance = moments.covariance
        if moments.n <= len(covariance):
            raise DataError(
                f"cannot whiten {len(covariance)} dimensions from {moments.n} rows: give more rows than dimensions "
                "(fit the transform first, or a larger batch), or use transform='centre_scale'"
            )
        variances, directions = _eigh(covariance)
        if not variances[-1] > 0:
            raise DataError(f"cannot whiten: all {moments.n} rows are the same. Check the hook point.")
        deviations = variances.clamp_min(FLOOR * variances[-1].item()).sqrt()
        back = directions if self.kind == "whiten" else torch.eye(len(variances)).to(directions)
        self.matrix.copy_((back / deviations) @ directions.T)
        self.inverse_matrix.copy_((directions * deviations) @ back.T)

    def forward(
        self, x: Float[Tensor, "*batch d"], like: Float[Tensor, "*batch d"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        """Raw to transformed; with `like`, as those raw rows are transformed (the same, unless `per_row`)."""
        x = x.to(self.mean.device)
        if self.kind == "none":
            return x
        if self.per_row:
            mean, deviation = self._row_moments(x if like is None else like.to(x.device))
            return (x - mean) / (deviation + EPSILON if self.kind == "standardise" else deviation)
        if self.whitens:
            return (x - self.mean) @ self.matrix.T
        return (x - self.mean) * self.scale

    def inverse(
        self, y: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch d"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        """Transformed to raw.

        Args:
            y: transformed rows, such as reconstructions.
            x: the raw rows that they stand for; needed where the transform is `per_row`, else ignored.

        Raises:
            ConfigError: they are needed and were not given.
        """
        y = y.to(self.mean.device)
        if self.kind == "none":
            return y
        if self.per_row:
            if x is None:
                raise ConfigError(
                    f"transform {self.kind!r} scales every row by its own mean and deviation: to undo it, give the raw "
                    "activations too, as in sae.decode(codes, x)"
                )
            mean, deviation = self._row_moments(x.to(y.device))
            return y * deviation + mean
        if self.whitens:
            return y @ self.inverse_matrix.T + self.mean
        return y / self.scale + self.mean

    # As linear algebra: what becomes of rows of weights ---------------------------------------------------------------

    @property
    def linear(self) -> Tensor:
        """What multiplies x in t(x), in float64: (d, d), or one number where all directions are scaled alike.

        Raises:
            ConfigError: there is no such thing, as for those of a row's own.
        """
        self.require_affine()
        return self.matrix.double() if self.whitens else self.scale.double()

    @property
    def inverse_linear(self) -> Tensor:
        """What multiplies y in the inverse, as `linear`."""
        self.require_affine()
        return self.inverse_matrix.double() if self.whitens else 1 / self.scale.double()

    def require_affine(self) -> None:
        """Raise ConfigError where it is another map for every row."""
        if self.per_row:
            raise ConfigError(
                f"transform {self.kind!r} is another map for every row, which no weights can hold: keep the SAE as it "
                "is and give decode the raw rows too, or train one with transform='centre_scale'"
            )

    def affine(self) -> tuple[Float[Tensor, "*source d d"], Float[Tensor, "*source d"]] | None:
        """A and b, in float64, of t(x) = A x + b; None where it is no such map."""
        if self.per_row:
            return None
        A = self._square(self.linear)
        return A, -(A @ self.mean.double()[..., None])[..., 0]

    def inverse_affine(self) -> tuple[Float[Tensor, "*source d d"], Float[Tensor, "*source d"]] | None:
        """A and b, in float64, of the inverse, x = A t(x) + b; None as there."""
        if self.per_row:
            return None
        return self._square(self.inverse_linear), self.mean.double()

    def _square(self, linear: Tensor) -> Float[Tensor, "*source d d"]:
        """Numbers as multiples of the identity."""
        if self.whitens:
            return linear
        return linear[..., None] * torch.eye(self.mean.shape[-1], dtype=linear.dtype, device=linear.device)

    def raw_directions(self, rows: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """What adding a row to t(x) adds to x: rows that are written, as decoder rows.

        Where it is `per_row` up to the row's own deviation, which scales them all alike.
        """
        if self.per_row or self.kind == "none":
            return rows
        return rows @ self.inverse_matrix.T if self.whitens else rows / self.scale

    def raw_changes(self, rows: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """What adding rows to the transformed raw rows `x` adds to these, each to its own."""
        changes = self.raw_directions(rows)
        return changes * self._row_moments(x)[1] if self.per_row else changes

    def raw_readers(self, rows: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Rows whose products with x change as those of the given rows with t(x): rows that are read with, as encoder
        rows. Where it is `per_row` as `raw_directions`, for a deviation that stays.
        """
        if self.kind == "none":
            return rows
        if self.per_row:
            return rows if self.kind == "row_norm" else rows - rows.mean(-1, keepdim=True)
        return rows @ self.matrix if self.whitens else rows * self.scale

    def _row_moments(self, x: Float[Tensor, "*batch d"]) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 1"]]:
        """Of each row what is subtracted from it, and its deviation or length."""
        wide = x.double()  # whose squares do not overflow
        mean = wide.mean(-1, keepdim=True) if self.kind != "row_norm" else wide.new_zeros(*x.shape[:-1], 1)
        squares = (wide - mean).pow(2).sum(-1, keepdim=True)
        if self.kind == "row_centre":
            deviation = torch.ones_like(mean)
        elif self.kind == "standardise":
            deviation = (squares / (x.shape[-1] - 1)).sqrt()
        else:
            deviation = (squares / x.shape[-1] + TINY).sqrt()
        return mean.to(x.dtype), deviation.to(x.dtype)

    @property
    def sources(self) -> list[InputTransform]:
        """The transform of each of several activations side by side; here of the only one."""
        return [self]

    def extra_repr(self) -> str:
        if not self.fitted:
            return f"{self.kind}, not fitted"
        return f"{self.kind}, scale={self.scale.item():.4g}" if "scale" in self.kind else self.kind


def _eigh(symmetric: Float[Tensor, "d d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Eigenvalues, ascending, and eigenvectors (columns)."""
    return tuple(torch.linalg.eigh(symmetric))  # pyright: ignore


class Moments:
    """Mean, covariance and mean norms of rows that stream by, in float64.

    Merged by Chan's formulas, which lose no digits where the mean is large. Norms about the mean are about the mean so
    far: exact for one batch, and within a share of about 1/rows of a batch for many.

    Source: Chan, Golub & LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1979.
    """

    def __init__(self, covariance: bool = False) -> None:
        self.n = 0
        self.norm: float = 0.0
        """Mean of ||x||."""
        self.centred_norm: float = 0.0
        """Mean of ||x - mean||."""
        self._has_squares = covariance
        self._mean = self._squares = torch.zeros((), dtype=torch.float64)

    @property
    def mean(self) -> Float[Tensor, " d"]:
        return self._mean

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Divided by the number of rows."""
        return self._squares / self.n

    @staticmethod
    def of(x: Float[Tensor, "rows d"], covariance: bool = False) -> Moments:
        """Of these rows alone."""
        found, x = Moments(covariance), x.to(torch.float64)
        found.n, found._mean = len(x), x.mean(0)
        found.norm = _mean_norm(x)
        found.centred_norm = _mean_norm(x - found._mean)
        if covariance:
            found._squares = (x - found._mean).T @ (x - found._mean)
        return found

    def add(self, x: Float[Tensor, "rows d"]) -> None:
        """Take rows in."""
        if not len(x):
            return
        own = Moments.of(x, self._has_squares)
        if self.n:  # about the mean of all rows so far, this batch among them
            own.centred_norm = _mean_norm(x.to(torch.float64) - self._merged_mean(own))
        self.merge(own)

    def merge(self, other: Moments) -> None:
        """Take in what another has seen."""
        if not self.n:
            vars(self).update(vars(other))
            return
        share, delta = other.n / (self.n + other.n), other._mean - self._mean
        if self._has_squares:
            self._squares = self._squares + other._squares + torch.outer(delta, delta) * (self.n * share)
        self._mean = self._merged_mean(other)
        self.norm += (other.norm - self.norm) * share
        self.centred_norm += (other.centred_norm - self.centred_norm) * share
        self.n += other.n

    def _merged_mean(self, other: Moments) -> Float[Tensor, " d"]:
        return self._mean + (other._mean - self._mean) * (other.n / (self.n + other.n))


def _mean_norm(x: Float[Tensor, "rows d"]) -> float:
    return x.pow(2).sum(-1).sqrt().mean().item()
