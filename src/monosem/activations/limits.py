"""Norms above which a dictionary reads no rows, where its files give a multiple of the median and not the median."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from monosem.activations.guess import short_contexts
from monosem.models import ModelSet, SubjectModel
from monosem.sae import SAE


@torch.no_grad()
def limit_norms(sae: SAE, model: SubjectModel | ModelSet, places: Sequence[str]) -> None:
    """Put the limits into the metadata, from the median norm of a short text's rows; nothing where they are known.

    The median moves little from text to text, and what is to be left out lies far above.

    Args:
        sae: a dictionary; `metadata.max_norm` is set.
        model: its model.
        places: the canonical names of what it reads.
    """
    known = sae.metadata
    if known.max_norm_ratio is None or known.max_norm is not None or not isinstance(model, SubjectModel):
        return
    tokens = short_contexts(model, known.prepend_bos)
    if tokens is None:
        return
    captured = model.capture(tokens, list(places))
    medians = {place: x[:, 1:].float().norm(dim=-1).median().item() for place, x in captured.items()}
    known.max_norm = {place: known.max_norm_ratio * median for place, median in medians.items()}
