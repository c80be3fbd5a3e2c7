"""Features of one place as sparse sums of features of another: the lasso by FISTA, and the proof that it is solved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.work import doing


@dataclass(frozen=True)
class Lasso:
    """The solution W of: minimise tr(W' G W) / 2 - tr(W' C) + sum of penalties |W|."""

    weights: Float[Tensor, "m targets"]
    violation: float
    """By how much the conditions of the minimum fail at most, as a share of the penalty: 0 at the minimum."""
    steps: int


@torch.no_grad()
def lasso(
    gram: Float[Tensor, "m m"],
    products: Float[Tensor, "m targets"],
    penalty: float,
    tolerance: float = 1e-3,
    most_steps: int = 5000,
) -> Lasso:
    """Solve it for all targets at once, from E[f f'] and E[f y'] alone.

    FISTA with restarts, until the conditions of Karush, Kuhn and Tucker hold to the tolerance: with R = G W - C,
    R = -penalty sign(W) where W is not 0, |R| <= penalty where it is. They prove the minimum, whatever has found it.

    Sources: Beck & Teboulle, A Fast Iterative Shrinkage-Thresholding Algorithm, 2009; O'Donoghue & Candès, Adaptive
    Restart for Accelerated Gradient Schemes, 2015.
    """
    step = 1 / _largest(gram)
    found = torch.zeros_like(products)
    ahead, momentum, left, n = found, torch.ones(products.shape[1]).to(products), float("inf"), 0
    with doing("lasso", most_steps, unit="steps") as work:
        while n < most_steps and left > tolerance:
            for _ in range(25):
                moved = _shrunk(ahead - step * (gram @ ahead - products), step * penalty)
                change = moved - found
                turns = ((ahead - moved) * change).sum(0) > 0  # the momentum leads away from the minimum
                momentum = torch.where(turns, 1, momentum)
                following = (1 + (1 + 4 * momentum**2).sqrt()) / 2
                ahead = moved + torch.where(turns, 0, (momentum - 1) / following) * change
                found, momentum = moved, following
            n += 25
            work.advance(25)
            left = violation(gram, products, found, penalty)
    return Lasso(found, left, n)


def violation(
    gram: Float[Tensor, "m m"],
    products: Float[Tensor, "m targets"],
    weights: Float[Tensor, "m targets"],
    penalty: float,
) -> float:
    """By how much the conditions of the minimum fail at most, as a share of the penalty."""
    slope = gram @ weights - products
    wrong = torch.where(weights == 0, (slope.abs() - penalty).clamp(min=0), (slope + penalty * weights.sign()).abs())
    return float(wrong.max()) / penalty


def _shrunk(x: Tensor, by: float) -> Tensor:
    return x.sign() * (x.abs() - by).clamp(min=0)


def _largest(gram: Float[Tensor, "m m"]) -> float:
    """A bound from above on the largest eigenvalue: power iteration, and a little more; never above that of norms."""
    vector = torch.ones(len(gram), dtype=gram.dtype, device=gram.device)
    value = torch.zeros(())
    for _ in range(100):
        vector = gram @ (vector / vector.norm())
        value = vector.norm()
    return min(1.05 * float(value), float(gram.abs().sum(1).max()))
