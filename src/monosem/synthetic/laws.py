"""The laws by which planted features fire: how often, with whom, under whom, how strongly, in which directions."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.work import each

LEAST_OWN = 0.01
"""The least variance of a feature's normal variable that it shares with no other."""
SPREAD_RATE = 3e-4
"""Adam's rate when directions are pushed apart."""


def zipf(n: int, most: float, least: float, exponent: float) -> Float[Tensor, " n"]:
    """Rates that fall as rank^-exponent, stretched to go from `most` to `least` exactly."""
    weights = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    if n == 1:
        return torch.full((1,), most, dtype=torch.float64)
    return least + (most - least) * (weights - weights[-1]) / (weights[0] - weights[-1])


def forest(n: int, roots: int, branching: int, depth: int) -> Int[Tensor, " n"]:
    """The parent of every feature, -1 for none: `roots` trees, numbered level by level, then features without a tree.

    So the commonest features are the roots, and every feature's children stand in a row.
    """
    parents = torch.full((n,), -1, dtype=torch.int64)
    level, following = range(min(roots, n)), min(roots, n)
    for _ in range(depth):
        children = torch.arange(following, min(following + branching * len(level), n))
        parents[children] = level.start + (children - following) // branching
        level = range(following, following + len(children))
        following = level.stop
    return parents


def under_parents(
    rates: Float[Tensor, " n"], parents: Int[Tensor, " n"], exclusive: bool
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """How often each feature must fire, given that its parent does, to fire at its rate; and at which it will.

    Given its parent, a child fires at rate / parent's rate. Where of siblings that would fire at once only one may,
    drawn at random, that is multiplied by 1 + what its siblings would add up to (SynthSAEBench's first-order
    correction), and never above 1. The rates reached are exact for features that do not correlate.
    """
    given = rates.clone()
    has = parents >= 0
    given[has] = rates[has] / rates[parents[has]]
    sums = torch.zeros_like(rates).index_add_(0, parents[has], given[has])
    if exclusive and has.any():
        given[has] *= 1 + (sums[parents[has]] - given[has]).clamp_min(0)
    given = given.clamp_max(1)
    reached = given.clone()
    if exclusive and has.any():
        reached[has] *= _share_of_one(given[has], parents[has])
    of_itself, ancestors = reached.clone(), parents
    while (ancestors >= 0).any():
        reached *= torch.where(ancestors >= 0, of_itself[ancestors], 1)
        ancestors = torch.where(ancestors >= 0, parents[ancestors], -1)
    return given, reached


def _share_of_one(given: Float[Tensor, " n"], groups: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """How often one that would fire is the one drawn from its group: the mean of 1 / (1 + how many others would).

    That is the integral over t from 0 to 1 of the product of 1 - given_j (1 - t) over the others, a polynomial.
    """
    largest = int(torch.bincount(groups).max())
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(largest // 2 + 1))
    logs = torch.log1p(-given[:, None] * (1 - (nodes + 1) / 2))
    sums = torch.zeros(int(groups.max()) + 1, len(nodes), dtype=logs.dtype).index_add_(0, groups, logs)
    return (sums[groups] - logs).exp() @ (weights / 2)


def correlated(
    n: int, rank: int, scale: float, generator: torch.Generator
) -> tuple[Float[Tensor, "n rank"], Float[Tensor, " n"]]:
    """A factor F and standard deviations s with F F^T + diag(s^2) a correlation matrix: normal variables F z + s e."""
    factor = scale * torch.randn(n, rank, generator=generator)
    shared = factor.pow(2).sum(1, keepdim=True)
    factor = factor * ((1 - LEAST_OWN) / shared.clamp_min(1 - LEAST_OWN)).sqrt()
    return factor, (1 - factor.pow(2).sum(1)).sqrt()


def directions(n: int, d: int, steps: int, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Random unit vectors, pushed apart by `steps` of Adam on sum_(i != j) (f_i . f_j)^2 + n sum_i (f_i . f_i - 1)^2.

    The gradient is 4 F (F^T F) and terms of single rows: n d^2 operations a step instead of n^2 d.
    """
    rows = torch.nn.functional.normalize(torch.randn(n, d, generator=generator))
    first, second = torch.zeros_like(rows), torch.zeros_like(rows)
    for step in each("spreading directions", range(1, steps + 1), unit="steps"):
        gradient = overlap_gradient(rows)
        first.lerp_(gradient, 0.1)
        second.lerp_(gradient.square(), 0.001)
        rows -= SPREAD_RATE * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return torch.nn.functional.normalize(rows)


def overlap_gradient(rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Of the loss that `directions` makes small."""
    squares = rows.pow(2).sum(1, keepdim=True)
    return 4 * (rows @ (rows.T @ rows) - squares * rows + len(rows) * (squares - 1) * rows)
