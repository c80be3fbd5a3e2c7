"""End-to-end training: what the model makes of a reconstruction, in place of how near it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from monosem import kernels
from monosem.activations import ActivationSource, ContextActivations, HookView, LiveActivations, Standing, models_of
from monosem.arguments import checked
from monosem.errors import ConfigError, MismatchError
from monosem.models import ModelSet, SubjectModel
from monosem.training.cost import Cost, CostFunction
from monosem.training.spliced import Spliced

PUBLISHED = (0.5, 2.5)
"""Weights of KL and of later activations where both count."""


class EndToEnd:
    """KL(model || model with the reconstruction in its place), in nats a row, in place of the squared error.

        loss = kl_weight * KL  +  downstream_weight * mean over later hook points of ||a - a'||^2 / ||a - mean||^2

    a is what the model has at a later hook point, a' what it has there with the reconstruction put in at all rows of
    the batch; both terms are means over these rows. The variance ||a - mean||^2 is that of the first contexts, so that
    the second term reads as FVU (published: the plain squared error). The model stays as it is: the gradient reaches
    the dictionary alone. Of several sources (crosscoders, cross-layer transcoders) each is put in by itself, as in
    `ms.evaluate`; the loss is the mean.

    ms.train(sae, ms.activations(model, "resid_post.2"), tokens=1_000_000, loss=ms.EndToEnd(model))

    Source: Braun et al., Identifying Functionally Important Features with End-to-End Sparse Dictionary Learning, 2024.
    """

    @checked
    def __init__(
        self,
        model: SubjectModel | ModelSet,
        *,
        downstream: bool | Sequence[str] = False,
        kl_weight: float | None = None,
        downstream_weight: float | None = None,
    ) -> None:
        """Make the loss; one serves any number of dictionaries, at any hook points.

        Args:
            model: the model that the dictionary is of.
            downstream: later hook points whose activations are to be kept, too; True: the residual stream after every
                block behind the dictionary.
            kl_weight: 1 if not given; with `downstream` 0.5, as published.
            downstream_weight: 2.5 if not given, as published.

        Raises:
            ConfigError: a weight is negative or has no meaning, or both are 0.
            HookError: the model has no such hook point.
        """
        if not isinstance(model, SubjectModel | ModelSet):
            raise ConfigError(f"EndToEnd needs the model that reads on, as from ms.load_model: got {model!r:.80}")
        self.model = model
        names = [downstream] if isinstance(downstream, str) else downstream
        self.downstream = names if isinstance(names, bool) else [model.hook_point(name).name for name in names]
        if not self.downstream and downstream_weight is not None:
            raise ConfigError(
                "downstream_weight has no meaning without downstream: give downstream=True, or hook points"
            )
        usual = PUBLISHED if self.downstream else (1.0, 0.0)
        given = (kl_weight, downstream_weight)
        self.kl_weight, self.downstream_weight = (
            u if g is None else float(g) for g, u in zip(given, usual, strict=True)
        )
        for name in ("kl_weight", "downstream_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.kl_weight + self.downstream_weight:
            raise ConfigError("the weights of an end-to-end loss are all 0: there is nothing to learn")

    @property
    def words(self) -> str:
        parts = [f"{self.kl_weight:g} KL of the model's output"] if self.kl_weight else []
        if self.downstream and self.downstream_weight:
            where = "later streams" if self.downstream is True else ", ".join(cast("list[str]", self.downstream))
            parts.append(f"{self.downstream_weight:g} error at {where}")
        return "end to end: " + " + ".join(parts)

    def opened(self, source: ActivationSource) -> OpenedEndToEnd:
        """The loss of a dictionary of a source.

        Raises:
            ConfigError: the source is not of one place, or of rows alone; the model gives no logits, or has no later
                hook points.
            MismatchError: it is of another model.
        """
        whole = source.whole
        live = whole.live if isinstance(whole, ContextActivations) else whole
        if not isinstance(live, LiveActivations):
            source.by_context()  # says why not
            raise ConfigError(f"end-to-end training reads from a model, not from {source.words}")
        own, other = models_of(self.model), models_of(live.model)
        if own != other and [model.fingerprint() for model in own] != [model.fingerprint() for model in other]:
            raise MismatchError(
                f"the loss is of {self.model.name}, the activations are of {live.model.name}: give both the same model"
            )
        hooks = (source.targets or source.hooks) if isinstance(source, HookView) else list(live.hooks)
        if len(hooks) > 1 and not (isinstance(source, HookView) and source.stacked):
            raise ConfigError(
                f"{', '.join(hooks)}: one dictionary cannot stand in for all: choose, as in acts.select(...)"
            )
        return OpenedEndToEnd(self, [Spliced(model, hook, self.downstream, live) for hook in hooks for model in own])


class OpenedEndToEnd:
    """An end-to-end loss of what one dictionary predicts."""

    def __init__(self, loss: EndToEnd, places: list[Spliced]) -> None:
        self.loss, self.places = loss, places

    def on(self, standing: list[Standing]) -> CostFunction:
        def cost(raw: Float[Tensor, "rows *source d"]) -> Cost:
            return self._cost(raw, standing)

        return cost

    def _cost(self, raw: Float[Tensor, "rows *source d"], standing: list[Standing]) -> Cost:
        weights = (self.loss.kl_weight, self.loss.downstream_weight)
        sources, wanted = (
            raw.detach().reshape(len(raw), len(self.places), -1),
            raw.requires_grad and torch.is_grad_enabled(),
        )
        gradient, sums = torch.zeros_like(sources) if wanted else None, raw.new_zeros(2, dtype=torch.float64)
        for number, place in enumerate(self.places):
            own = None if gradient is None else gradient[:, number]
            sums += place.costs(sources[:, number], standing, weights, own)
        rows = kernels.rows_in_all(len(raw)) * len(self.places)
        kl, downstream = (kernels.over_rows(sums.to(raw)) / rows).unbind()
        terms = {"kl": kl, "downstream": downstream} if self.loss.downstream else {"kl": kl}
        value = weights[0] * kl + weights[1] * downstream
        if gradient is None:
            return Cost(value, terms)
        return Cost(_Known.apply(raw, value, gradient.reshape(raw.shape) / rows), terms)  # pyright: ignore


class _Known(torch.autograd.Function):
    """A value whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:  # pyright: ignore
        (gradient,) = ctx.saved_tensors
        return gradient * grads[0], None, None
