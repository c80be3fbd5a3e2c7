"""SourceTransform: the input transform of several activations side by side."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.errors import ConfigError
from monosem.sae.transform import InputTransform, TransformKind


class SourceTransform(InputTransform):
    """An `InputTransform` for each source: each is centred and scaled by itself, so that none outweighs another.

    Takes and returns rows of all sources, as (..., source, d) or one after another, (..., source * d).
    """

    mean: Float[Tensor, "source d"]
    scale: Float[Tensor, "source 1"]

    def __init__(
        self,
        n_sources: int,
        d: int,
        kind: TransformKind = "centre_scale",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if kind not in ("centre_scale", "centre", "scale", "none"):
            raise ConfigError(
                f"transform {kind!r} is not for several sources: choose centre_scale, centre, scale or none"
            )
        super().__init__(n_sources * d, kind, dtype, device)
        self.mean = self.mean.reshape(n_sources, d)
        self.scale = self.scale.repeat(n_sources, 1)

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "*rows_and_sources d"] | Iterable[Tensor]) -> None:
        """Estimate every source's mean and scale."""
        x = x if isinstance(x, Tensor) else torch.cat(list(x))
        for source, rows in enumerate(self._split(x).unbind(-2)):
            own = InputTransform(rows.shape[-1], self.kind, self.mean.dtype, self.mean.device)
            own.fit(rows)
            self.mean[source], self.scale[source] = own.mean, own.scale
        self.fitted = True

    def _split(self, x: Tensor) -> Float[Tensor, "*batch source d"]:
        n_sources, d = self.mean.shape
        return x if x.shape[-2:] == (n_sources, d) else x.reshape(*x.shape[:-1], n_sources, d)

    def forward(
        self, x: Float[Tensor, "*batch d"], like: Float[Tensor, "*batch d"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        return super().forward(self._split(x)).reshape(x.shape)

    def inverse(
        self, y: Float[Tensor, "*batch d"], x: Float[Tensor, "*batch d"] | None = None
    ) -> Float[Tensor, "*batch d"]:
        return super().inverse(self._split(y)).reshape(y.shape)

    def raw_directions(self, rows: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        return super().raw_directions(self._split(rows)).reshape(rows.shape)

    def raw_readers(self, rows: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        return super().raw_readers(self._split(rows)).reshape(rows.shape)

    @property
    def sources(self) -> list[InputTransform]:
        found: list[InputTransform] = []
        for mean, scale in zip(self.mean, self.scale, strict=True):
            own = InputTransform(len(mean), self.kind, mean.dtype, mean.device)
            own.mean.copy_(mean)
            own.scale.copy_(scale[0])
            own.fitted = self.fitted
            found.append(own)
        return found

    def extra_repr(self) -> str:
        return f"{self.kind}, {len(self.mean)} sources" + ("" if self.fitted else ", not fitted")
