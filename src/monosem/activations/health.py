"""A look at activations before training: what would spoil a dictionary, and what to do about it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

LARGE_MEAN = 3.0  # times the norm of the standard deviations
EXTREME_NORM = 10.0  # times the median norm
DUPLICATES = 0.25  # share of rows; of text, some are always equal: the first tokens after BOS


@torch.no_grad()
def inspect_rows(x: Float[Tensor, "rows d_in"], centred: bool = False) -> list[str]:
    """What is wrong with raw activations, in words, with the remedy; nothing if they look well.

    Looks for rows that are not finite, a mean that dwarfs the differences, rows of extreme norm (sink tokens), rows
    that occur again, and dimensions that never change. A few thousand rows are enough.

    Args:
        x: the rows.
        centred: whether the dictionary subtracts the mean by itself, so that a large one does no harm.
    """
    if not len(x):
        return ["there are no rows"]
    found: list[str] = []
    finite = torch.isfinite(x).all(-1)
    if not finite.all():
        bad = (~finite).nonzero()[:, 0]
        found.append(
            f"{len(bad):,} of {len(x):,} rows are not finite (the first: row {bad[0].item()}): drop them, or load the "
            "model in float32 or bfloat16"
        )
    x = x[finite].double()
    if len(x) < 2:
        return found
    norms = x.norm(dim=-1)
    extreme = norms > EXTREME_NORM * norms.median()
    if extreme.any():
        found.append(
            f"{int(extreme.sum()):,} of {len(x):,} rows have more than {EXTREME_NORM:g} times the median norm (up to "
            f"{(norms.max() / norms.median()).item():.0f} times; sink tokens?): leave them out with "
            f"max_norm_ratio={EXTREME_NORM:g}"
        )
    usual = x[~extreme]
    mean, std = usual.mean(0), usual.std(0)
    if not centred and mean.norm() > LARGE_MEAN * std.norm() > 0:
        found.append(
            f"the mean is {(mean.norm() / std.norm()).item():.1f} times as large as the differences from it: centre, "
            "with transform='centre_scale' (the default)"
        )
    again = len(x) - len(torch.unique(x, dim=0))
    if again > DUPLICATES * len(x):
        found.append(
            f"{again:,} of {len(x):,} rows occur again ({again / len(x):.0%}): remove duplicate documents, or leave "
            "positions out that are always the same (skip_first)"
        )
    constant = std <= 1e-9 * usual.abs().amax(0)
    if constant.any():
        which = ", ".join(str(i) for i in constant.nonzero()[:5, 0].tolist())
        found.append(
            f"{int(constant.sum()):,} of {x.shape[1]:,} dimensions never change (as {which}): check the hook point; do "
            "not whiten"
        )
    return found
