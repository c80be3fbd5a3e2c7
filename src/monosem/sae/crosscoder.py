"""Crosscoder: one set of latents for several layers, or several models, side by side."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from monosem import kernels
from monosem.arguments import Positive, checked
from monosem.errors import ConfigError
from monosem.kernels import Selection
from monosem.sae.base import SAE, TrainingContext, TrainingLoss
from monosem.sae.batchtopk import BatchTopKSAE
from monosem.sae.sources import SourceTransform

Sparsity = Literal["batchtopk", "l1"]


class Crosscoder(BatchTopKSAE):
    """Reads the activations of all sources and predicts them all, (batch, source, d), from the same codes.

        pre             = sum_s W_enc^s (t_s(x^s) - b_dec^s) + b_enc,    size_i = sum_s ||W_dec_i^s||
        reconstruct^s   = t_s^-1(codes W_dec^s + b_dec^s)

    "batchtopk": codes are the k * rows largest pre_i size_i of the batch; in use, those above `threshold`.
    "l1": codes = ReLU(pre), and l1_coefficient * sum_i codes_i size_i is added to the loss. L1 shrinks the smaller of a
    latent's decoder rows to nothing, so that features which one source has but weakly look as if it had them not.

    Sources are models, or layers of one: how much of a latent belongs to which is what `relative_norms` tells. Decoder
    norms are free; sources are centred and scaled each by itself and start from the same directions, so that they stay
    alike where their activations are. `n_sources` last dimensions but one are the sources; d_in is the width of one.

    Parameters are stored latent-major, W_enc and W_dec as (n_latents, source * d), because a latent's rows of all
    sources are then one row, which is what the sparse engine gathers: a crosscoder costs as much as an SAE of that
    width. `encoder_of` and `decoder_of` give one source's part.

    Source: Lindsey et al., Sparse Crosscoders for Cross-Layer Features and Model Diffing, 2024; BatchTopK: Minder et
    al., Robustly Identifying Concepts Introduced During Chat Fine-Tuning Using Crosscoders, 2025.
    """

    architecture: ClassVar[str] = "crosscoder"
    good_for: ClassVar[str] = "what two models, or the layers of one, have in common and what only one of them has"
    unit_norm_decoder = False
    latents_compete: ClassVar[bool] = False  # each counts times its size, whatever its unit
    in_units_of_codes: ClassVar[tuple[str, ...]] = ("b_enc",)

    @checked
    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        n_sources: Positive = 2,
        sparsity: Sparsity = "batchtopk",
        l1_coefficient: float | None = None,
        **settings: Any,
    ) -> None:
        """Make an untrained crosscoder.

        Args:
            d_in: width of one source's activations.
            n_latents: size of the dictionary.
            n_sources: how many activations stand side by side.
            sparsity: "batchtopk", or "l1" as first published.
            l1_coefficient: weight of the L1 penalty; 0.2 / sqrt(n_sources d_in) if not given.
            **settings: those of `BatchTopKSAE`; `k` has no meaning for "l1".

        Raises:
            ConfigError: a value out of range, or d_out, which is d_in here.
        """
        if settings.get("d_out") is not None:
            raise ConfigError("a crosscoder predicts what it reads: leave d_out out, or use a transcoder")
        if l1_coefficient is not None and l1_coefficient < 0:
            raise ConfigError(f"l1_coefficient must not be negative, got {l1_coefficient}")
        super().__init__(n_sources * d_in, n_latents, **settings)
        self.d_in = self.d_out = d_in
        self.n_sources, self.sparsity, self.given_l1_coefficient = n_sources, sparsity, l1_coefficient
        self.l1_coefficient = 0.2 / (n_sources * d_in) ** 0.5 if l1_coefficient is None else l1_coefficient
        kind = settings.get("transform", "centre_scale")
        self.transform = SourceTransform(n_sources, d_in, kind, self.W_enc.dtype, self.W_enc.device)
        with torch.no_grad():
            alike = torch.nn.functional.normalize(self.decoder_of(0), dim=-1) / n_sources**0.5
            self.W_dec.copy_(alike.repeat(1, n_sources))
            self.W_enc.copy_(self.W_dec)

    @property
    def settings(self) -> dict[str, Any]:
        own = {"n_sources": self.n_sources, "sparsity": self.sparsity, "l1_coefficient": self.given_l1_coefficient}
        return {**super().settings, **own}

    @property
    def in_shape(self) -> tuple[int, ...]:
        return (self.n_sources, self.d_in)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.in_shape

    def _by_source(self, weight: Float[Tensor, "n_latents source_d"]) -> Float[Tensor, "n_latents source d"]:
        return weight.view(-1, self.n_sources, self.d_in)

    def encoder_of(self, source: int) -> Float[Tensor, "n_latents d_in"]:
        """A view of one source's encoder rows."""
        return self._by_source(self.W_enc)[:, source]

    def decoder_of(self, source: int) -> Float[Tensor, "n_latents d_in"]:
        """A view of one source's decoder rows."""
        return self._by_source(self.W_dec)[:, source]

    def decoder_norms(self) -> Float[Tensor, "n_latents source"]:
        """The norms of every latent's decoder rows."""
        return self._by_source(self.W_dec).norm(dim=-1)  # pyright: ignore

    def relative_norms(self) -> Float[Tensor, "n_latents source"]:
        """Each source's share of a latent's decoder norms; rows sum to 1.

        Of two sources: near 1/2 in both where they share a latent, near 1 in the one that has it alone.
        """
        norms = self.decoder_norms()
        return norms / norms.sum(-1, keepdim=True)

    def sizes(self) -> Float[Tensor, " n_latents"]:
        """The sum of every latent's decoder norms: by it a value counts."""
        return self.decoder_norms().sum(-1).clamp_min(torch.finfo(self.W_dec.dtype).tiny)

    def encoders(self) -> list[tuple[int, slice, Tensor]]:
        return [(source, slice(None), self.encoder_of(source)) for source in range(self.n_sources)]

    def decoders(self) -> list[tuple[int, slice, Tensor]]:
        return [(source, slice(None), self.decoder_of(source)) for source in range(self.n_sources)]

    def has_moved(self, before: SAE) -> None:
        if self.sparsity == "l1" or not isinstance(before, Crosscoder):
            return
        sizes, known = before.sizes().double(), before.W_dec.any(1)
        ratios = (self.sizes().double() / sizes)[known]
        if len(ratios) and ratios.max() > 1.00001 * ratios.min():
            raise ConfigError(
                "the latents of this crosscoder compete by the sum of their decoder norms, and its sources are scaled "
                "unlike: behind another transform others would be on. Keep it as it is (decoder_directions() gives its "
                "rows in raw units), or train it with transform='centre' or sparsity='l1'"
            )
        self.running_threshold.mul_(ratios.mean() if len(ratios) else 1.0)

    def select(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        limit = x.new_zeros(()) if self.sparsity == "l1" else self.threshold.clamp_min(0) / self.sizes().detach()
        return kernels.above(x, self.W_enc, self.b_enc, limit)

    def candidates(
        self, x: Float[Tensor, "rows d_in"], threshold: float, screen: kernels.Precision | None = None
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        """Pre-activations times their latents' sizes."""
        sizes = self.sizes().detach()
        return kernels.above(x, self.W_enc.detach() * sizes[:, None], self.b_enc * sizes, threshold, screen=screen)

    def select_in_training(
        self, x: Float[Tensor, "rows d_in"], k: int, context: TrainingContext
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        values, selection = super().select_in_training(x, k, context)
        return values / self.sizes().detach()[selection.indices], selection

    def training_loss(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> TrainingLoss:
        if self.sparsity == "batchtopk":
            return super().training_loss(x, target, context)
        centred = self.centred(x).detach()
        values, selection = self.select(centred)
        activations = self.pre_activations(centred, values, selection).relu()
        mse, residual = self.reconstruction_loss(activations, selection, target, context)
        penalty = kernels.a_row((activations * self.decoder_norms().sum(-1)[selection.indices]).sum(), len(x))
        fired = self.count_fired(activations, selection)
        terms = {"mse": kernels.mean_square(residual), "l1": penalty}
        return TrainingLoss(mse + self.l1_coefficient * penalty, residual, fired, terms)
