"""Switch: experts of which each token uses one, so that a wide dictionary costs a narrow encoder."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from monosem import kernels
from monosem.arguments import checked
from monosem.errors import ConfigError
from monosem.kernels import Selection
from monosem.sae.base import TrainingContext, TrainingLoss
from monosem.sae.topk import TopKSAE
from monosem.sae.weights import row_norms


class SwitchSAE(TopKSAE):
    """TopK among the latents of one expert, chosen for each token by a router. With c = t(x) - b_dec:

        p     = softmax(W_router c + b_router),  e = argmax p
        codes = p_e ReLU(top_k(W_enc c + b_enc among the latents of e))
        loss  = ||target - reconstruction||^2 / d  +  balance_coefficient * (n_experts * sum_e f_e mean(p_e) - 1)

    f_e is the share of the batch that e gets; the balance is 0 where all get the same. Expert e owns the latents from
    e n_latents / n_experts on. Rows are sorted by expert and each group is multiplied with its expert's share of W_enc
    alone: the encoder costs 1 / n_experts of TopK's. The router learns through p_e and the balance, for which c counts
    as given: b_dec has no gradient through it. With one expert this is TopK.

    Source: Mudide et al., Efficient Dictionary Learning with Switch Sparse Autoencoders, 2024 (there with sums over d
    and a balance of at least 1).
    """

    architecture: ClassVar[str] = "switch"
    good_for: ClassVar[str] = "very wide dictionaries: the encoder costs 1 / n_experts; some features come up twice"

    @checked
    def __init__(
        self, d_in: int, n_latents: int, *, n_experts: int = 8, balance_coefficient: float = 0.01, **settings: Any
    ) -> None:
        """Make an untrained SAE.

        Args:
            d_in: width of the activations.
            n_latents: size of the dictionary, all experts together.
            n_experts: parts that it is divided into.
            balance_coefficient: weight of the loss that keeps all experts in use.
            **settings: those of `TopKSAE`.

        Raises:
            ConfigError: n_latents cannot be divided by n_experts, or an expert has fewer than k latents.
        """
        super().__init__(d_in, n_latents, **settings)
        if n_experts < 1 or n_latents % n_experts:
            raise ConfigError(f"n_experts must divide n_latents = {n_latents}, got {n_experts}")
        if self.k > n_latents // n_experts:
            raise ConfigError(f"k must be at most n_latents / n_experts = {n_latents // n_experts}, got {self.k}")
        if balance_coefficient < 0:
            raise ConfigError(f"balance_coefficient must not be negative, got {balance_coefficient}")
        self.n_experts, self.balance_coefficient = n_experts, balance_coefficient
        generator = torch.Generator().manual_seed(settings.get("seed", 0) + 1)
        directions = torch.randn(n_experts, d_in, generator=generator, dtype=torch.float64)
        self.W_router = nn.Parameter((directions / row_norms(directions)).to(self.W_enc))
        self.b_router = nn.Parameter(self.b_enc.new_zeros(n_experts))

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "n_experts": self.n_experts, "balance_coefficient": self.balance_coefficient}

    @property
    def latents_per_expert(self) -> int:
        return self.n_latents // self.n_experts

    def other_readers(self) -> list[tuple[int, Tensor, Tensor]]:
        return [(0, self.W_router, self.b_router)]

    def route(self, x: Float[Tensor, "rows d_in"]) -> Float[Tensor, "rows n_experts"]:
        """The probabilities of experts, for what `centred` returns."""
        return torch.softmax(x @ self.W_router.T + self.b_router, dim=-1)

    def select(
        self, x: Float[Tensor, "rows d_in"], k: int | None = None, *, screen: kernels.Precision | None = None
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        """The k largest pre-activations of each row's expert; without the router's factor."""
        k = min(self.k if k is None else k, self.latents_per_expert)
        with torch.no_grad():
            order, sizes = self._group(self.route(x).argmax(-1))
            top_k = partial(kernels.top_k, k=k, screen=screen)
            values, grouped = kernels.by_group(top_k, x[order], self.W_enc, self.b_enc, sizes)
            back = torch.argsort(order)
            values, indices = (t.reshape(-1, k)[back].reshape(-1) for t in (values, grouped.indices))
            return values, Selection(indices, grouped.offsets, self.n_latents)

    def _group(self, experts: Int[Tensor, " rows"]) -> tuple[Int[Tensor, " rows"], list[int]]:
        """An order in which the rows of an expert stand together, and how many each has: the one synchronisation."""
        sizes: list[int] = torch.bincount(experts, minlength=self.n_experts).tolist()  # pyright: ignore
        return torch.argsort(experts, stable=True), sizes

    def select_in_training(
        self, x: Float[Tensor, "rows d_in"], k: int, context: TrainingContext
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        return self.select(x, k, screen=context.screen)

    def activate(self, x: Float[Tensor, "rows d_in"]) -> tuple[Float[Tensor, " entries"], Selection]:
        activations, selection = super().activate(x)
        return self._gated(activations, selection, x), selection

    def activate_in_training(
        self, x: Float[Tensor, "rows d_in"], k: int, context: TrainingContext
    ) -> tuple[Float[Tensor, " entries"], Selection]:
        activations, selection = super().activate_in_training(x, k, context)
        return self._gated(activations, selection, x), selection

    def _gated(
        self, activations: Float[Tensor, " entries"], selection: Selection, x: Float[Tensor, "rows d_in"]
    ) -> Float[Tensor, " entries"]:
        """Activations times the probability of the expert that they are of."""
        k = activations.numel() // max(1, len(x))
        experts = selection.indices.reshape(len(x), k)[:, :1].long() // self.latents_per_expert
        return (activations.reshape(len(x), k) * self.route(x).gather(1, experts)).reshape(-1)

    def training_loss(
        self, x: Float[Tensor, "rows d_in"], target: Float[Tensor, "rows d_out"], context: TrainingContext
    ) -> TrainingLoss:
        out = super().training_loss(x, target, context)
        balance = self.balance(self.route(self.centred(x).detach()))
        loss = out.loss + self.balance_coefficient * balance
        return dataclasses.replace(out, loss=loss, terms={**out.terms, "balance": balance})

    def balance(self, probabilities: Float[Tensor, "rows n_experts"]) -> Float[Tensor, ""]:
        """n_experts * sum_e f_e mean(p_e) - 1, from -1 to n_experts - 1: 0 where either is even."""
        experts = probabilities.argmax(-1)
        used = torch.zeros_like(probabilities).scatter_(1, experts[:, None], 1.0)
        shares = kernels.mean_over_rows(used) * kernels.mean_over_rows(probabilities)
        return self.n_experts * shares.sum() - 1
