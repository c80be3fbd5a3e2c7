"""What a dictionary must beat: predicting the mean, PCA with as many components, as many raw neurons, a random SAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.codes import SparseCodes
from monosem.evaluation.metric import Column, Dictionary
from monosem.sae import SAE
from monosem.sae.control import random_sae

L0_ROWS = 4096
"""Rows of the sample on which the number of components and neurons is measured."""


class Control:
    """A column that looks at what is to be predicted, and has no latents."""

    def __call__(self, target: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        raise NotImplementedError

    def codes(self, x: Float[Tensor, "rows ..."], target: Float[Tensor, "rows d"]) -> SparseCodes | None:
        return None

    def rebuild(
        self, x: Float[Tensor, "rows ..."], target: Float[Tensor, "rows d"], codes: SparseCodes | None
    ) -> Float[Tensor, "rows d"]:
        return self(target)


class Mean(Control):
    """The mean of a sample, whatever is given."""

    def __init__(self, x: Float[Tensor, "rows d"]) -> None:
        self.value = x.mean(0)

    def __call__(self, target: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        return self.value.to(target).expand_as(target)


class PCA(Control):
    """The best reconstruction from k fixed directions."""

    def __init__(self, x: Float[Tensor, "rows d"], k: int) -> None:
        """Fit on raw activations. k is cut to the width."""
        x = x.double()
        self.mean = x.mean(0)
        centred = x - self.mean
        _, vectors = torch.linalg.eigh(centred.T @ centred)
        self.k = min(k, x.shape[1])
        self.components = vectors[:, -self.k :]

    def __call__(self, target: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        mean, components = self.mean.to(target), self.components.to(target)
        return mean + ((target - mean) @ components) @ components.T


class Neurons(Control):
    """The k coordinates that are farthest from their means, as they are; all others at their means."""

    def __init__(self, x: Float[Tensor, "rows d"], k: int) -> None:
        """Take the means of a sample. k is cut to the width."""
        self.mean, self.k = x.mean(0), min(k, x.shape[1])

    def codes(self, x: Float[Tensor, "rows ..."], target: Float[Tensor, "rows d"]) -> SparseCodes:
        centred = target - self.mean.to(target)
        indices = centred.abs().topk(self.k, dim=-1).indices
        return SparseCodes.from_top_k(centred.gather(-1, indices), indices.to(torch.int32), target.shape[-1])

    def rebuild(
        self, x: Float[Tensor, "rows ..."], target: Float[Tensor, "rows d"], codes: SparseCodes | None
    ) -> Float[Tensor, "rows d"]:
        assert codes is not None
        return self.mean.to(target) + codes.to_dense()


def mean_l0(sae: SAE, x: Float[Tensor, "rows ..."]) -> int:
    """Latents that an SAE has on, on average: what its controls may use too; at least 1."""
    return max(1, round(sae.encode(x[:L0_ROWS]).l0().double().mean().item()))


def fit_controls(
    saes: Mapping[str, SAE], x: Float[Tensor, "rows ..."], target: Float[Tensor, "rows d"], every: bool
) -> dict[str, Column]:
    """The controls of some dictionaries, fitted to a sample: the mean alone, or every one.

    Of several dictionaries PCA and neurons have the median of their mean L0; the random SAE is of the first one's kind.
    """
    found: dict[str, Column] = {"mean": Mean(target)}
    if not every:
        return found
    k = _median([mean_l0(sae, x) for sae in saes.values()])
    first = next(iter(saes.values()))
    frozen = random_sae(first, x, None if first.autoencodes else target.unflatten(1, first.out_shape))
    return found | {"PCA": PCA(target, k), "neurons": Neurons(target, k), "random": Dictionary(frozen)}


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2]
