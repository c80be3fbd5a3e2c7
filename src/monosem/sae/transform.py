"""InputTransform: what happens to activations before the encoder and, reversed, after the decoder."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosem.errors import ConfigError, DataError

TransformKind = Literal["centre_scale", "centre", "scale", "none"]


class InputTransform(nn.Module):
    """t(x) = (x - mean) * scale, with mean = E[x] and scale such that E||t(x)|| = sqrt(d).

    Centring keeps a large common component from killing latents; scaling makes learning rates and penalties mean the
    same on every model. Estimated on the first activations seen, stored in the SAE: a saved SAE takes raw activations
    and returns raw reconstructions.
    """

    mean: Float[Tensor, " d"]
    scale: Float[Tensor, ""]

    def __init__(
        self,
        d: int,
        kind: TransformKind = "centre_scale",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if kind not in get_args(TransformKind):
            raise ConfigError(f"unknown transform {kind!r}: choose one of {', '.join(get_args(TransformKind))}")
        self.kind: TransformKind = kind
        self.fitted = kind == "none"
        self.register_buffer("mean", torch.zeros(d, dtype=dtype, device=device))
        self.register_buffer("scale", torch.ones((), dtype=dtype, device=device))

    @torch.no_grad()
    def fit(self, x: Float[Tensor, "rows d"]) -> None:
        """Estimate mean and scale. Does nothing for "none"."""
        if self.kind == "none":
            return
        x = x.to(torch.float64)
        mean = x.mean(0) if "centre" in self.kind else torch.zeros_like(x[0])
        if "scale" in self.kind:
            mean_norm = (x - mean).pow(2).sum(-1).sqrt().mean()
            if not mean_norm > 1e-12 * x.pow(2).sum(-1).sqrt().mean():  # less than that is rounding
                raise DataError(
                    f"cannot scale activations of mean norm {mean_norm.item():g}: all {len(x)} rows are the same. "
                    "Check the hook point, or use transform='none'."
                )
            self.scale.copy_(x.shape[-1] ** 0.5 / mean_norm)
        self.mean.copy_(mean)
        self.fitted = True

    def forward(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return x if self.kind == "none" else (x - self.mean) * self.scale

    def inverse(self, y: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        return y if self.kind == "none" else y / self.scale + self.mean

    def extra_repr(self) -> str:
        return f"{self.kind}, scale={self.scale.item():.4g}" if self.fitted else f"{self.kind}, not fitted"
