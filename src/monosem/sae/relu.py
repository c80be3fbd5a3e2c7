"""ReLU with a penalty on the size of codes: the classic."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.sae.base import TrainingContext
from monosem.sae.sparsity import annealed, powers
from monosem.sae.threshold import Entries, ThresholdSAE


class ReLUSAE(ThresholdSAE):
    """codes = ReLU(W_enc (t(x) - b_dec) + b_enc).

        loss = ||target - reconstruction||^2 / d  +  coefficient * sum_i (codes_i ||W_dec_i||)^p

    p = 1 is the L1 penalty: a coefficient c shrinks an isolated feature by c d / 2. A smaller p (1/2: the square root)
    shrinks strong features less. With `p_end`, p falls in ten steps, and at each the coefficient is rescaled by the
    quotient of the penalties before and after, so that nothing jumps.

    Source: Bricken et al., Towards Monosemanticity, 2023; weighted by decoder norm: Conerly et al., 2024; p-annealing:
    Karvonen et al., Measuring Progress in Dictionary Learning, 2024; tied: Cunningham et al., 2023.
    """

    architecture: ClassVar[str] = "relu"
    good_for: ClassVar[str] = "the classic baseline; the number of active latents follows from coefficient or target_l0"

    p_now: Float[Tensor, ""]
    p_scale: Float[Tensor, ""]

    @checked
    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        p: float = 1.0,
        p_end: float | None = None,
        tied: bool = False,
        unit_norm_decoder: bool = False,
        **settings: Any,
    ) -> None:
        """Make an untrained SAE.

        Args:
            d_in: width of the activations.
            n_latents: size of the dictionary.
            p: power of the penalty, above 0 and at most 1.
            p_end: power at the end of the run, to which p falls between 20 % and 80 % of it; p if not given.
            tied: one matrix is encoder and decoder.
            unit_norm_decoder: keep decoder rows at norm 1, instead of weighting the penalty by their norm.
            **settings: `coefficient, target_l0, coefficient_warmup` as in `ThresholdSAE`; the default coefficient is
                0.2 / sqrt(d_in), with which L1 shrinks a feature by the same share of an activation's norm at every
                width. `d_out, transform, dtype, device, seed` as in `SAE`.

        Raises:
            ConfigError: a value out of its range, or a tied encoder of another width than the decoder.
        """
        super().__init__(d_in, n_latents, **settings)
        for name, power in (("p", p), ("p_end", p_end)):
            if power is not None and not 0 < power <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, got {power}")
        self.p, self.p_end, self.tied, self.unit_norm_decoder = p, p_end, tied, unit_norm_decoder
        self.register_buffer("p_now", torch.tensor(p, dtype=torch.float64, device=self.W_enc.device))
        self.register_buffer("p_scale", torch.ones((), dtype=torch.float64, device=self.W_enc.device))
        if tied:
            if not self.autoencodes:
                raise ConfigError("tied needs an autoencoder: leave d_out out, or set tied=False")
            del self.W_enc  # named anew after W_dec, whose name the optimiser then knows it by
            self.W_enc = self.W_dec

    @property
    def settings(self) -> dict[str, Any]:
        own = {"p": self.p, "p_end": self.p_end, "tied": self.tied, "unit_norm_decoder": self.unit_norm_decoder}
        return {**own, **super().settings}

    @property
    def coefficient(self) -> float:
        return 0.2 / self.d_in**0.5 if self.given_coefficient is None else self.given_coefficient

    def activation(self, entries: Entries) -> Tensor:
        return entries.pre.relu()

    def penalty(self, entries: Entries, activations: Tensor, context: TrainingContext) -> Float[Tensor, ""]:
        """The penalty at the present p, rescaled so that a change of p has left it where it was."""
        if self.p_end is None and self.p == 1:
            return entries.a_row(entries.sums(activations) * self.decoder_norms)
        lengths = activations * entries.spread(self.decoder_norms)
        if self.p_end is None:
            return entries.a_row(powers(lengths, self.p))
        before, now = self.p_now.item(), annealed(self.p, self.p_end, context.progress)
        penalty = entries.a_row(powers(lengths, now))
        if now != before:
            with torch.no_grad():
                penalty_before = entries.a_row(powers(lengths, before))
                self.p_scale.mul_(torch.where(penalty > 0, penalty_before / penalty, 1.0))
                self.p_now.fill_(now)
        return penalty * self.p_scale.to(penalty.dtype)

    @torch.no_grad()
    def scale_encoder(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"] | None = None
    ) -> Float[Tensor, ""]:
        return x.new_ones(()) if self.tied else super().scale_encoder(x, target)
