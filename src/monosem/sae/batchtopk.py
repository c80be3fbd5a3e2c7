"""BatchTopK: k latents a token on average, where they are needed most."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from monosem import kernels
from monosem.arguments import checked
from monosem.kernels import Selection
from monosem.sae.base import TrainingContext
from monosem.sae.topk import TopKSAE


class BatchTopKSAE(TopKSAE):
    """In training, codes = ReLU of the k * rows largest pre-activations of the whole batch; k is a mean.

    In use, codes = pre-activations above `threshold`, so that a token's codes do not depend on its batch: JumpReLU with
    one threshold, the bias-corrected running mean of the smallest pre-activation kept in the last ten steps or so.

    Source: Bussmann et al., BatchTopK Sparse Autoencoders, 2024.
    """

    architecture: ClassVar[str] = "batchtopk"
    good_for: ClassVar[str] = "k latents per token on average, more for hard tokens: better reconstruction than topk"
    threshold_decay: ClassVar[float] = 0.9

    running_threshold: Float[Tensor, ""]
    threshold_weight: Float[Tensor, ""]

    @checked
    def __init__(self, d_in: int, n_latents: int, **settings: Any) -> None:
        super().__init__(d_in, n_latents, **settings)
        for name in ("running_threshold", "threshold_weight"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64, device=self.W_enc.device))

    @property
    def threshold(self) -> Float[Tensor, ""]:
        """Above it a latent is on, in transformed units; 0 before training."""
        return (self.running_threshold / self.threshold_weight.clamp_min(1e-30)).to(self.W_enc.dtype)

    def select(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        return kernels.above(x, self.W_enc, self.b_enc, self.threshold.clamp_min(0))

    def candidates(
        self, x: Float[Tensor, "rows d_in"], threshold: float, screen: kernels.Precision | None = None
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        """What competes for a place in the batch: pre-activations above a number."""
        return kernels.above(x, self.W_enc, self.b_enc, threshold, screen=screen)

    def select_in_training(
        self, x: Float[Tensor, "rows d_in"], k: int, context: TrainingContext
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        values, selection, smallest = self._largest(x, k, context.screen)
        if k == self.k:
            self._remember(smallest)
        return values, selection

    def _largest(
        self, x: Float[Tensor, "rows d_in"], k: int, screen: kernels.Precision | None = None
    ) -> tuple[Float[Tensor, " entries"], Selection, Float[Tensor, ""]]:
        return kernels.largest(lambda limit: self.candidates(x, limit, screen), k * len(x), self._guess(x, k))

    def _remember(self, smallest: Float[Tensor, ""]) -> None:
        decay = self.threshold_decay
        self.running_threshold.mul_(decay).add_((1 - decay) * smallest.clamp_min(0))
        self.threshold_weight.mul_(decay).add_(1 - decay)

    def _guess(self, x: Float[Tensor, "rows d_in"], k: int) -> float:
        """A little below where the cut will be: from a few rows of this batch."""
        with torch.no_grad():
            sample = x[:: max(1, len(x) // 64)]
            pre, _ = self.candidates(sample, float("-inf"))
            if not pre.numel():
                return float("-inf")
            rank = min(pre.numel(), int(1.3 * k * len(sample)) + 1)
            return pre.kthvalue(pre.numel() - rank + 1).values.item()

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"] | None = None) -> None:
        """As in `SAE`, at the threshold that gives k latents per token."""
        self.fit_transforms(x, target)
        centred = self.centred(self.transform(self.rows_of(x[:1024])[1]))
        self.running_threshold.copy_(self._largest(centred, self.k)[2])
        self.threshold_weight.fill_(1.0)
        scale = self.scale_encoder(x, target)
        self.running_threshold.mul_(scale)
