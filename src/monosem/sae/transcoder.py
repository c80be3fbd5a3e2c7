"""Transcoders: what a layer makes of its input, in sparse steps that can be read."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from monosem.arguments import checked
from monosem.kernels import Selection
from monosem.sae.base import SAE, TrainingContext, TrainingLoss
from monosem.sae.jumprelu import JumpReLUSAE
from monosem.sae.topk import TopKSAE


class Transcoder(TopKSAE):
    """Reads one site, predicts another: an MLP's input and its output.

        codes          = ReLU(top_k(W_enc t(x) + b_enc))
        reconstruction = u^-1(codes W_dec + b_dec)

    with t and u the transforms of inputs and of targets. b_dec is not subtracted from the input, whatever the widths.

    Source: Dunefsky et al., Transcoders Find Interpretable LLM Feature Circuits, 2024; with TopK: Paulo et al., 2025.
    """

    architecture: ClassVar[str] = "transcoder"
    good_for: ClassVar[str] = "an MLP as a sparse, readable map from its input to its output; circuits through MLPs"

    @checked
    def __init__(self, d_in: int, n_latents: int, **settings: Any) -> None:
        """Make an untrained transcoder.

        Args:
            d_in: width of what it reads.
            n_latents: size of the dictionary.
            **settings: `d_out`, the width of what it predicts (d_in if not given), and those of `TopKSAE`.
        """
        d_out = settings.pop("d_out", None)
        super().__init__(d_in, n_latents, d_out=d_in if d_out is None else d_out, **settings)


class SkipPath(SAE):
    """What transcoders share that have a linear path, W_skip (d_out, d_in) from zero, beside their latents."""

    @checked
    def __init__(self, d_in: int, n_latents: int, **settings: Any) -> None:
        d_out = settings.pop("d_out", None)
        super().__init__(d_in, n_latents, d_out=d_in if d_out is None else d_out, **settings)
        self.W_skip = nn.Parameter(torch.zeros(self.d_out, d_in, dtype=self.W_enc.dtype, device=self.W_enc.device))

    def other_readers(self) -> list[tuple[int, Tensor, Tensor]]:
        return [(0, self.W_skip, self.b_dec)]

    def other_writers(self) -> list[tuple[int, Tensor]]:
        return [(0, self.W_skip.T)]

    def reconstruct(
        self, activations: Float[Tensor, " entries"], selection: Selection, x: Float[Tensor, "rows d_in"] | None = None
    ) -> Float[Tensor, "rows d_out"]:
        out = super().reconstruct(activations, selection, x)
        return out if x is None else out + x @ self.W_skip.T

    def training_loss(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> TrainingLoss:
        return super().training_loss(x, target - x @ self.W_skip.T, context)


class SkipTranscoder(SkipPath, Transcoder):
    """A transcoder with a linear path beside its latents, which are then free for what is not linear.

        reconstruction = u^-1(codes W_dec + W_skip t(x) + b_dec)

    W_skip (d_out, d_in) starts at zero. `decode(codes)` is the part without the skip, `decode(codes, x)` and calling
    the transcoder are the whole.

    Source: Paulo et al., Transcoders Beat Sparse Autoencoders for Interpretability, 2025.
    """

    architecture: ClassVar[str] = "skip_transcoder"
    good_for: ClassVar[str] = "as transcoder, with lower loss: what is linear in a layer takes no latents"


class JumpReLUSkipTranscoder(SkipPath, JumpReLUSAE):
    """A skip transcoder whose latents have thresholds of their own.

        codes          = z where z > threshold, else 0, with z = W_enc t(x) + b_enc
        reconstruction = u^-1(codes W_dec + W_skip t(x) + b_dec)

    Loss and parameters are those of `JumpReLUSAE`, the skip is that of `SkipTranscoder`.

    Source: Gemma Scope 2 technical report, 2025 ("affine").
    """

    architecture: ClassVar[str] = "jumprelu_skip_transcoder"
    good_for: ClassVar[str] = "as skip_transcoder, with a threshold per latent: no choice within a token"
