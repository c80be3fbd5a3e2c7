"""Ways through several dictionaries."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from monosem.circuits.connections.connections import Connections
from monosem.errors import ConfigError


class Path(NamedTuple):
    """A way through several dictionaries."""

    latents: tuple[int, ...]
    """A feature of each dictionary, the earliest first."""
    weight: float
    """The product of the connections on it."""


def paths(
    chain: Sequence[Connections], latent: int, k: int = 10, *, width: int = 1000, corrected: bool = True
) -> list[Path]:
    """The strongest ways into a feature of the last dictionary, from those of the first, whatever their sign.

    paths = ms.circuits.paths([ms.connections(model, t0, t1, "bundled"), ms.connections(model, t1, t2, "bundled")], 12)

    Strongest by the product of what is expected of their connections (or of the weights alone), found backwards: of
    each length the strongest `width` go on. With all that there are, the products add up to that of the matrices.

    Args:
        chain: connections, each from the dictionary that the one before leads into.
        latent: a feature of the last one.
        k: how many.
        width: how many are followed.
        corrected: by what is expected, where all have read a text.

    Raises:
        ConfigError: the chain has a gap, or the latent is not among the targets.
    """
    for before, after in itertools.pairwise(chain):
        if before.target.sae is not after.source.sae:
            raise ConfigError(
                f"the chain has a gap: what leads to {before.target.read} is not what {after.source.write} starts from"
            )
    if not chain:
        raise ConfigError("a path needs connections: give one or several, the earliest first")
    chain[-1]._column(latent)
    every = corrected and all(each.expected is not None for each in chain)
    found = [Path((latent,), 1.0)]
    for each in reversed(chain):
        by = each.expected if every and each.expected is not None else each.weights
        columns = {one: column for column, one in enumerate(each.latents.tolist())}
        longer: list[Path] = []
        for path in found:
            if path.latents[0] in columns:
                column = by[:, columns[path.latents[0]]]
                strongest = column.abs().topk(min(width, len(column))).indices.tolist()
                longer += [
                    Path((i, *path.latents), path.weight * float(column[i])) for i in strongest if column[i] != 0
                ]
        found = sorted(longer, key=lambda path: -abs(path.weight))[:width]
    return found[:k]
