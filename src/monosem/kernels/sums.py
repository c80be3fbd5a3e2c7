"""Sums in one order on every device."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor


def index_add_(total: Tensor, numbers: Int[Tensor, " m"], values: Tensor) -> Tensor:
    """As torch's `total.index_add_(0, numbers, values)`, with the same bits at every call on a GPU too.

    Args:
        total: (n, *shape), changed in place.
        numbers: to which row of it each value goes.
        values: (m, *shape)

    On a GPU torch's own adds by atomic operations, whichever comes first; `index_put_` sorts the numbers before.
    """
    if total.device.type == "cuda":
        return total.index_put_((numbers.long(),), values, accumulate=True)
    return total.index_add_(0, numbers, values)
