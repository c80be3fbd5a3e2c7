"""What the architectures share whose latents switch on one by one, each above a limit of its own."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from monosem import kernels
from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.kernels import Selection
from monosem.sae.base import SAE, TrainingContext, TrainingLoss
from monosem.sae.sparsity import L0Controller, warmup_factor
from monosem.sae.weights import row_norms


@dataclass(frozen=True)
class Entries:
    """Pre-activations, of all latents in every row or of those selected: one formula serves both."""

    pre: Tensor
    """(rows, n_latents), or (entries,) with a selection."""
    selection: Selection | None
    """None where all are there."""
    rows_here: int

    @property
    def rows(self) -> int:
        """Of the batch."""
        return kernels.rows_in_all(self.rows_here)

    def spread(self, per_latent: Float[Tensor, " n_latents"]) -> Tensor:
        """To every entry what belongs to its latent."""
        return per_latent.expand_as(self.pre) if self.selection is None else per_latent[self.selection.indices]

    def sums(self, values: Tensor) -> Float[Tensor, " n_latents"]:
        """Every latent's sum over the rows here."""
        if self.selection is None:
            return values.sum(0)
        return kernels.index_add_(values.new_zeros(self.selection.n_latents), self.selection.indices, values)

    def counts(self, on: Tensor) -> Int[Tensor, " n_latents"]:
        """On how many rows something is true of a latent."""
        return kernels.over_rows(on.sum(0) if self.selection is None else self.sums(on.long()))

    def shares(self, on: Tensor) -> Float[Tensor, " n_latents"]:
        """On which share of the rows something is true of a latent."""
        return kernels.over_rows(self.sums(on)) / self.rows

    def total(self, values: Tensor) -> Float[Tensor, ""]:
        """The sum over all latents and rows, of values of entries or of sums of latents over the rows here."""
        return kernels.over_latents(kernels.over_rows(values.sum()))

    def a_row(self, values: Tensor) -> Float[Tensor, ""]:
        """The same, as a mean over rows."""
        return kernels.a_row(values.sum(), self.rows_here)

    def squared_error(
        self,
        activations: Tensor,
        W_dec: Float[Tensor, "n_latents d_out"],
        b_dec: Float[Tensor, " d_out"],
        target: Float[Tensor, "rows d_out"],
        context: TrainingContext,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows d_out"]]:
        """What the error of the activations' reconstruction costs, and that error without gradient."""
        if self.selection is not None:
            return kernels.squared_error(activations, W_dec, b_dec, self.selection, target, context.cost)
        error = target - b_dec - kernels.over_latents(activations @ W_dec)
        return context.cost_of(error), error.detach()


class ThresholdSAE(SAE):
    """Latents that are on where their pre-activation exceeds a limit, and a penalty that keeps them few.

        loss = ||target - reconstruction||^2 / d  +  coefficient * penalty

    The coefficient rises from 0 over `coefficient_warmup` of a run, as latents pressed down before they have found a
    direction die (5 %: Conerly et al., Circuits Updates, April 2024). With `target_l0` it is then steered until so many
    latents are on per token; the run starts with four times as many, or all.

    While many latents are on the loss is evaluated densely, then on the selected entries alone; `density` decides.
    """

    unit_norm_decoder = False

    density: Float[Tensor, ""]

    @checked
    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        coefficient: float | None = None,
        target_l0: float | None = None,
        coefficient_warmup: float = 0.05,
        **common: Any,
    ) -> None:
        """Make an untrained SAE.

        Args:
            d_in: width of the activations.
            n_latents: size of the dictionary.
            coefficient: weight of the penalty, from which `target_l0` sets out; if not given, one that means the same
                at every width.
            target_l0: latents on per token; the coefficient is steered to it.
            coefficient_warmup: share of the run over which the coefficient rises from 0.
            **common: `d_out, transform, dtype, device, seed`, as in `SAE`.

        Raises:
            ConfigError: a value out of its range.
        """
        super().__init__(d_in, n_latents, **common)
        if coefficient is not None and coefficient < 0:
            raise ConfigError(f"coefficient must not be negative, got {coefficient}")
        if target_l0 is not None and not 0 < target_l0 < n_latents:
            raise ConfigError(f"target_l0 must be between 0 and n_latents = {n_latents}, got {target_l0}")
        if not 0 <= coefficient_warmup <= 1:
            raise ConfigError(f"coefficient_warmup must be between 0 and 1, got {coefficient_warmup}")
        self.given_coefficient, self.target_l0, self.coefficient_warmup = coefficient, target_l0, coefficient_warmup
        self.register_buffer("density", torch.ones((), dtype=torch.float32, device=self.W_enc.device))
        self.controller = None if target_l0 is None else L0Controller(target_l0, self.W_enc.device)

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "coefficient": self.given_coefficient,
            "target_l0": self.target_l0,
            "coefficient_warmup": self.coefficient_warmup,
        }

    # What an architecture must say -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def coefficient(self) -> float:
        """Weight of the penalty, before warm-up and steering."""

    @abstractmethod
    def activation(self, entries: Entries) -> Tensor:
        """Activations of pre-activations, with the gradients that training wants."""

    @abstractmethod
    def penalty(self, entries: Entries, activations: Tensor, context: TrainingContext) -> Float[Tensor, ""]:
        """What keeps latents few, a mean over rows."""

    def move_limits(self, by: Tensor | float) -> None:
        """Let latents be on only above pre-activations so much larger."""
        self.b_enc.sub_(by)

    @property
    def bias(self) -> Float[Tensor, " n_latents"]:
        """What is added to W_enc x before the comparison with the limits."""
        return self.b_enc

    @property
    def limits(self) -> Float[Tensor, "*n_latents"]:
        """Above it a latent is on; one number or one per latent."""
        return self.b_enc.new_zeros(())

    @property
    def training_limits(self) -> Float[Tensor, "*n_latents"]:
        """At or below it neither value nor gradient can be other than 0."""
        return self.limits

    def more_terms(
        self, entries: Entries, target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> dict[str, Tensor]:
        """Further parts of the loss, of weight 1."""
        return {}

    # What follows from it --------------------------------------------------------------------------------------

    @property
    def decoder_norms(self) -> Float[Tensor, " n_latents"]:
        """By which penalties weight latents: a latent cannot escape by a short activation and a long decoder row."""
        if self.unit_norm_decoder:
            return self.W_dec.new_ones(self.n_latents)
        return row_norms(self.W_dec)[:, 0]

    def select(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        return kernels.above(x, self.W_enc, self.bias, self.limits)

    def entries(self, x: Float[Tensor, "rows d_in"], dense: bool) -> Entries:
        """The pre-activations that a training step needs, with gradients."""
        if dense:
            return Entries(F.linear(self.centred(x), self.W_enc, self.bias), None, len(x))
        centred = self.centred(x).detach()
        values, selection = kernels.above(centred, self.W_enc, self.bias, self.training_limits)
        b_dec = self.b_dec if self.subtract_b_dec else None
        return Entries(kernels.encode(centred, self.W_enc, self.bias, b_dec, selection, values), selection, len(x))

    def training_loss(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> TrainingLoss:
        if self.controller is not None:
            with torch.no_grad():
                self.move_limits(self.controller.trim.to(x.dtype))
        entries = self.entries(x, dense=kernels.dense_is_faster(self.density.item()))
        activations = self.activation(entries)
        loss, residual = entries.squared_error(activations, self.W_dec, self.b_dec, target, context)
        penalty, more = self.penalty(entries, activations, context), self.more_terms(entries, target, context)
        fired = entries.counts(activations.detach() > 0)
        n_fired = kernels.over_latents(fired.sum())
        l0 = n_fired / entries.rows
        self.density.mul_(0.9).add_(l0 / kernels.latents_in_all(self.n_latents), alpha=0.1)
        coefficient = penalty.new_tensor(self.coefficient * warmup_factor(context.progress, self.coefficient_warmup))
        if self.controller is not None:
            coefficient = coefficient * self.controller.factor.to(coefficient.dtype)
            mean_activation = entries.total(activations.detach()) / n_fired.clamp_min(1)
            self.controller.observe(l0, mean_activation, context.progress)
        mse = loss if context.cost is None else kernels.mean_square(residual)
        terms = {"mse": mse, "penalty": penalty, **more, "coefficient": coefficient}
        return TrainingLoss(loss + coefficient * penalty + sum(more.values()), residual, fired, terms)

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"] | None = None) -> None:
        """As in `SAE`; with `target_l0`, at the limit above which START times as many latents are on."""
        self.fit_transforms(x, target)
        if self.target_l0 is None:
            self.scale_encoder(x, target)
            return
        pre = F.linear(self.centred(self.transform(self.rows_of(x[:1024])[1])), self.W_enc).flatten()
        self.density.fill_(min(1.0, L0Controller.START * self.target_l0 / self.n_latents))
        rank = round(self.density.item() * len(pre))
        limit = pre.kthvalue(len(pre) - max(1, rank) + 1).values.clamp_min(0)
        self.move_limits(limit - self.limits.mean())
        self.move_limits(limit * (self.scale_encoder(x, target) - 1))

    def remarks(self) -> list[str]:
        return [] if self.controller is None else self.controller.remarks()
