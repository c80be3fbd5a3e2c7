"""Dictionaries of the bundled model in three widths, for the studies of what is between widths: one pass for all."""

from __future__ import annotations

from pathlib import Path

import monosem as ms
from monosem.models import SubjectModel
from monosem.sae import SAE

HOOK, WIDTHS, K = "resid_post.2", (256, 1024, 4096), 24


def dictionaries(model: SubjectModel, tokens: int, path: Path | None) -> dict[int, SAE]:
    """BatchTopK dictionaries by width; with a folder they are kept, and read from there the next time."""
    source = ms.activations(model, HOOK, text="bundled", buffer_tokens=32_768)
    saes: dict[str, SAE] = {str(n): ms.BatchTopKSAE(model.d_model, n, k=K, seed=n) for n in WIDTHS}
    ms.train_together(saes, source, tokens=tokens, path=path)
    return {int(name): sae for name, sae in saes.items()}
