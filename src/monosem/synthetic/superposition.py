"""Toy models of superposition, trained for real: what a network does with more features than dimensions."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import NotNegative, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.synthetic.known import PLANTED, KnownFeatures, PlantedBatch
from monosem.work import each

STEPS, ROWS, RATE = 5000, 1024, 0.01


class ToyModel(KnownFeatures):
    """f' = ReLU(W W^T f + b), with W (n_features, d) trained to give back sparse features that do not fit into d.

    Elhage et al., "Toy Models of Superposition" (2022): every feature is on with one probability, uniform from 0 to 1
    when it is; the loss is the squared error, weighted by importance. `hidden`, f W, is what an SAE is then trained on;
    its true features are the rows of W, in the lengths that the model gave them.

    toy = ms.ToyModel(5, 2, density=0.05)
    ms.fit(sae, (batch.x for batch in toy.batches(2048)))
    ms.score_truth(sae, toy)
    """

    features: Float[Tensor, "n_features d"]
    """W, not of norm 1: a feature that the model left out has a norm of about 0."""

    @checked
    def __init__(
        self,
        n_features: int,
        d: int,
        *,
        density: float,
        decay: float = 1.0,
        steps: int = STEPS,
        seed: NotNegative = 0,
    ) -> None:
        """Train a toy model; some seconds.

        Args:
            n_features: how many features.
            d: dimensions that they are to fit into.
            density: how often each is on.
            decay: importance of feature i is decay^i.
            steps: of Adam, each on 1,024 fresh rows; the rate falls to 0 along a straight line.
            seed: of the beginning and of the rows.

        Raises:
            ConfigError: a value is out of its range.
        """
        if n_features < 1 or d < 1 or not 0 < density <= 1 or not 0 < decay <= 1 or steps < 1:
            raise ConfigError(
                f"no toy model of {n_features} features in {d} dimensions with density {density}, decay {decay} and "
                f"{steps} steps: density and decay must be above 0 and at most 1, the others at least 1"
            )
        self.density, self.steps = density, steps
        self.importance = decay ** torch.arange(n_features, dtype=torch.float32)
        self._train(n_features, d, torch.Generator().manual_seed(seed + PLANTED))

    def _train(self, n_features: int, d: int, generator: torch.Generator) -> None:
        weight = (torch.randn(n_features, d, generator=generator) * d**-0.5).requires_grad_()
        bias = torch.zeros(n_features, requires_grad=True)
        parameters = (weight, bias)
        moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        for step in each("training a toy model", range(1, self.steps + 1), unit="steps"):
            f = self._features(ROWS, generator)
            loss = (self.importance * (torch.relu(f @ weight @ weight.T + bias) - f).square()).sum(1).mean()
            gradients = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for parameter, gradient, (first, second) in zip(parameters, gradients, moments, strict=True):
                    first.lerp_(gradient, 0.1)
                    second.lerp_(gradient.square(), 0.001)
                    rate = RATE * (1 - (step - 1) / self.steps)
                    parameter -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        self.features, self.bias = weight.detach(), bias.detach()
        self.loss = loss.item()  # pyright: ignore[reportPossiblyUnboundVariable]
        """Of the last step."""

    @property
    def probabilities(self) -> Float[Tensor, " n_features"]:
        """How often each feature is on."""
        return torch.full((self.n_features,), self.density)

    def dimensionality(self) -> Float[Tensor, " n_features"]:
        """The share of a dimension that each feature has: |W_i|^2 / sum_j (W_i/|W_i| . W_j)^2; 0 of one left out.

        1 for a feature that has a dimension to itself, 1/2 for two that share one as opposites, 2/5 in a pentagon.
        """
        w = self.features
        squares = w.square().sum(1)
        shared = (w @ w.T).square().sum(1) / squares.clamp_min(1e-12)
        return torch.where(squares > 1e-4, squares / shared.clamp_min(1e-12), 0)

    def _features(self, rows: int, generator: torch.Generator) -> Float[Tensor, "rows n_features"]:
        on = torch.rand(rows, self.importance.shape[0], generator=generator) < self.density
        return torch.where(on, torch.rand(on.shape, generator=generator), 0)

    def _draw(self, rows: int, generator: torch.Generator) -> PlantedBatch:
        f = self._features(rows, generator)
        return PlantedBatch(f @ self.features, SparseCodes.from_dense(f))
