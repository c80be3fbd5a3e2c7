"""Shares of variance by position alone and by token alone, with a null in which contexts are turned about."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.codes import SparseCodes

MOST_NUMBERS = 2**25
"""Of sums by group, position and latent that are kept."""
MOST_GROUPS, FEWEST_GROUPS = 32, 4


class PositionSums:
    """Sums of activations, by group of contexts, position and latent, and by token and latent."""

    def __init__(self, positions: int, latents: int) -> None:
        self.positions, self.latents = positions, latents
        self.groups = max(FEWEST_GROUPS, min(MOST_GROUPS, MOST_NUMBERS // (positions * latents)))
        """Contexts are turned about in so many groups."""
        self.sums = torch.zeros(self.groups, positions, latents)
        self.weights = torch.zeros(self.groups, positions, dtype=torch.float64)
        self.squares = torch.zeros(latents, dtype=torch.float64)
        self.firings = torch.zeros(latents, dtype=torch.int64)
        self.by_token: list[tuple[np.ndarray, np.ndarray]] = []
        self.token_weights: dict[int, float] = {}
        self.rows = 0

    def add(
        self,
        codes: SparseCodes,
        contexts: Int[Tensor, " rows"],
        positions: Int[Tensor, " rows"],
        tokens: Int[Tensor, " rows"],
        weights: Float[Tensor, " rows"],
    ) -> None:
        """Take in the codes of some rows: the context, position and token of each, and how much it counts."""
        rows = torch.repeat_interleave(torch.arange(len(contexts)), codes.offsets.cpu().diff())
        latents, values = codes.indices.cpu().long(), codes.values.detach().cpu().double()
        weighted = values * weights.double()[rows]
        group = contexts % self.groups
        places = (group[rows] * self.positions + positions[rows]) * self.latents + latents
        self.sums.view(-1).index_add_(0, places, weighted.float())
        cells = group * self.positions + positions
        self.weights.view(-1).index_add_(0, cells, weights.double())
        self.squares.index_add_(0, latents, weighted * values)
        self.firings.index_add_(0, latents, (values != 0).long())
        keys = tokens[rows] * self.latents + latents
        found, at = np.unique(keys.numpy(), return_inverse=True)
        self.by_token.append((found, np.bincount(at, weights=weighted.numpy(), minlength=len(found))))
        for token, weight in zip(*_summed(tokens.numpy(), weights.double().numpy()), strict=True):
            self.token_weights[int(token)] = self.token_weights.get(int(token), 0.0) + float(weight)
        self.rows += len(contexts)

    @property
    def whole(self) -> float:
        return float(self.weights.sum())

    def mean(self) -> Float[Tensor, " latents"]:
        return self.sums.sum((0, 1)).double() / self.whole

    def variance(self) -> Float[Tensor, " latents"]:
        return (self.squares / self.whole - self.mean() ** 2).clamp_min(0)

    def profiles(self) -> Float[Tensor, "positions latents"]:
        """Mean activation at each position; NaN where nothing was read."""
        return self.sums.sum(0) / self.weights.sum(0)[:, None].float()

    def position_share(self, shifts: Int[Tensor, " groups"] | None = None) -> Float[Tensor, " latents"]:
        """Variance of means by position over all variance, with groups turned about by so many positions."""
        sums, weights = self.sums, self.weights
        if shifts is None:
            by_position, at = sums.sum(0).double(), weights.sum(0)
        else:
            turned = zip(sums, weights, shifts.tolist(), strict=True)
            by_position, at = torch.zeros(self.positions, self.latents), torch.zeros(self.positions).double()
            for one, weight, shift in turned:
                by_position += one.roll(shift, 0)
                at += weight.roll(shift)
            by_position = by_position.double()
        between = (by_position**2 / at.clamp_min(1e-300)[:, None]).sum(0) / self.whole - self.mean() ** 2
        return (between / self.variance()).nan_to_num(0.0, 0.0, 0.0)

    def token_share(self) -> Float[Tensor, " latents"]:
        """Variance of means by token over all variance."""
        keys = np.concatenate([key for key, _ in self.by_token])
        keys, sums = _summed(keys, np.concatenate([value for _, value in self.by_token]))
        known = np.array(sorted(self.token_weights))
        weights = np.array([self.token_weights[int(token)] for token in known])
        counts = weights[np.searchsorted(known, keys // self.latents)]
        between = np.bincount(keys % self.latents, weights=sums**2 / counts, minlength=self.latents) / self.whole
        share = (torch.from_numpy(between) - self.mean() ** 2) / self.variance()
        return share.nan_to_num(0.0, 0.0, 0.0)

    def null(self, turns: int, seed: int) -> Float[Tensor, "turns latents"]:
        """`position_share` with every group of contexts turned about by itself, so many times."""
        generator = torch.Generator().manual_seed(seed)
        read = torch.nonzero(self.weights.sum(0)).flatten()
        inner = PositionSums.__new__(PositionSums)  # positions that nothing is read at do not turn
        inner.__dict__ = {**self.__dict__, "sums": self.sums[:, read], "weights": self.weights[:, read]}
        inner.positions = len(read)
        size = (turns, self.groups)
        return torch.stack(
            [inner.position_share(shift) for shift in torch.randint(len(read), size, generator=generator)]
        )


def beyond_chance(share: Float[Tensor, " latents"], groups: int, rows: int) -> Float[Tensor, " latents"]:
    """A share of variance less what as many groups of as many independent rows have by chance (epsilon squared)."""
    return 1 - (1 - share) * (rows - 1) / max(rows - groups, 1)


def p_values(share: Float[Tensor, " latents"], null: Float[Tensor, "turns latents"]) -> np.ndarray:
    """How likely a share so large is under the null: by the gamma distribution of the null's mean and variance.

    A permutation's own p value is no smaller than one in its turns, too coarse for thousands of latents.
    """
    from scipy.stats import gamma

    mean, variance = null.mean(0).numpy(), null.var(0).numpy()
    sound = (variance > 0) & (mean > 0)
    shape = np.where(sound, mean**2 / np.where(sound, variance, 1), 1.0)
    scale = np.where(sound, variance / np.where(sound, mean, 1), 1.0)
    return np.where(sound, gamma.sf(share.numpy(), shape, scale=scale), 1.0)


def corrected(p: np.ndarray) -> np.ndarray:
    """False discovery rates (Benjamini and Hochberg, 1995)."""
    order = np.argsort(p)
    ranked = p[order] * len(p) / np.arange(1, len(p) + 1)
    found = np.empty_like(p)
    found[order] = np.minimum.accumulate(ranked[::-1])[::-1].clip(max=1)
    return found


def _summed(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, at = np.unique(keys, return_inverse=True)
    return found, np.bincount(at, weights=values, minlength=len(found))
