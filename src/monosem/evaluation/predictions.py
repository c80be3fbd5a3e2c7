"""What a model predicts with activations replaced, prediction by prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor


@dataclass
class Predictions:
    """The predictions of some contexts that count, clean and with every replacement put in."""

    documents: Int[Tensor, " predictions"]
    places: Int[Tensor, " predictions"]
    """Position in the context from which is predicted; 0 for one prediction a context."""
    tokens: Int[Tensor, " predictions"]
    """What stands there."""
    targets: Int[Tensor, " predictions"] | None
    """What is right; None where nothing says it."""
    loss: dict[str, np.ndarray]
    """Nats, by name of the replacement, "clean" first: cross-entropy, or KL where nothing says what is right."""
    kl: dict[str, np.ndarray]
    """KL(clean || replaced), nats."""
    right: dict[str, np.ndarray]
    """Whether the likeliest answer is the right one, or that of the clean model."""

    def __len__(self) -> int:
        return len(self.documents)

    @staticmethod
    def cat(parts: Sequence[Predictions]) -> Predictions:
        """One after another."""
        first = parts[0]
        if len(parts) == 1:
            return first

        def joined(what: str) -> dict[str, np.ndarray]:
            return {
                name: np.concatenate([getattr(part, what)[name] for part in parts]) for name in getattr(first, what)
            }

        targets = None if first.targets is None else torch.cat([p.targets for p in parts if p.targets is not None])
        documents, places, tokens = (
            torch.cat([getattr(p, n) for p in parts]) for n in ("documents", "places", "tokens")
        )
        return Predictions(documents, places, tokens, targets, joined("loss"), joined("kl"), joined("right"))
