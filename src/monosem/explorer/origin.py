"""Where the weights of two dictionaries began: decoder rows remember it, whatever was learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from torch import Tensor

from monosem.errors import FileError
from monosem.files import read_json, read_yaml

DRAWN = 256
"""Rows whose closest row in the other dictionary is looked at."""
IN_PLACE = 0.05
"""Share of them at their own number there that no chance explains."""
LEAST_IN_PLACE = 5
TRAINED = " (trained before)"


class Origin(NamedTuple):
    """What a run folder tells of the weights that it began with; None: not known."""

    seed: int | None
    weights: str | None
    """Their hash, and whether they had been trained."""


def read_origin(folder: Path) -> Origin:
    """The origin of the SAE of a run folder, as far as its files tell it."""
    try:
        identity = read_json(folder / "identity.json", dict[str, Any])
    except FileError:
        identity = {}
    try:
        described = read_yaml(folder / "run.yaml", dict[str, Any])
    except FileError:
        described = {}
    settings, sae = identity.get("settings"), described.get("sae")
    weights = cast("dict[str, Any]", settings).get("sae.weights at the start") if isinstance(settings, dict) else None
    seed = cast("dict[str, Any]", sae).get("seed", 0) if isinstance(sae, dict) else None
    return Origin(seed if isinstance(seed, int) else None, weights if isinstance(weights, str) else None)


def shared_start(
    a: Origin, b: Origin, hashes: tuple[str | None, str | None], rows: tuple[Tensor, Tensor]
) -> str | None:
    """How two dictionaries' weights began together, in words; None where nothing says that they did.

    Args:
        a: what is known of the one.
        b: of the other.
        hashes: of their weights as they are now.
        rows: (n_latents, d) their decoder rows, at unit length.
    """
    if hashes[0] is not None and hashes[0] == hashes[1]:
        return "both have the very same weights"
    for one, other, now in ((a, b, hashes[1]), (b, a, hashes[0])):
        if one.weights is not None and now is not None and one.weights == now + TRAINED:
            return "one was trained on from the weights of the other"
        if one.weights is not None and one.weights == other.weights and one.weights.endswith(TRAINED):
            return "both were trained on from the same weights"
    if a.seed is not None and a.seed == b.seed and not any(each.weights and TRAINED in each.weights for each in (a, b)):
        return f"both began from the same weights (seed {a.seed})"
    if a.weights is not None and a.weights == b.weights:
        return "both began from the same weights"
    drawn, found = in_place(*rows)
    if found > max(LEAST_IN_PLACE, IN_PLACE * drawn):
        return (
            f"both seem to have begun from the same weights (of {drawn} decoder rows {found} are closest to the row of "
            "the same number)"
        )
    return None


def in_place(a: Tensor, b: Tensor) -> tuple[int, int]:
    """Of rows drawn from those that both have, how many there are and how many are closest to the same one there."""
    n = min(len(a), len(b))
    drawn = np.sort(np.random.default_rng(0).choice(n, min(n, DRAWN), replace=False))
    closest = (a[drawn] @ b.T).argmax(1).numpy()
    return len(drawn), int((closest == drawn).sum())
