"""Activations of whole texts at one hook point."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.errors import DataError
from monosem.models import SubjectModel

SINK = 10.0
"""Positions whose norm is so many times the median are sinks of attention: no part of what a text says."""


def batches(model: SubjectModel, texts: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Texts of any lengths, as many at a time as go through the model at once.

    Raises:
        DataError: there are none.
    """
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise DataError("give a list of texts, none of them empty")
    size = model.contexts_at_once(max(len(model.tokens(text)[0]) for text in texts))
    for start in range(0, len(texts), size):
        yield model.padded(texts[start : start + size])


def last_positions(batch: dict[str, Tensor]) -> Int[Tensor, " batch"]:
    """Of the last token of each text."""
    return batch["attention_mask"].sum(1) - 1


def spoken(x: Float[Tensor, "batch pos d"], batch: dict[str, Tensor], special: Tensor) -> Bool[Tensor, "batch pos"]:
    """Positions that say something: no padding, no special token, no sink."""
    kept = batch["attention_mask"].bool() & ~torch.isin(batch["input_ids"], special.to(x.device))
    norms = x.float().norm(dim=-1)
    return kept & (norms <= SINK * norms[kept].median()) if kept.any() else kept


def of_texts(
    model: SubjectModel, hook: str, texts: Sequence[str], at: str, special: Tensor
) -> Float[Tensor, "texts d"]:
    """One vector a text: the mean over its tokens ("mean"), or that of its last token ("last")."""
    model.hook_point(hook).require_rows()
    found: list[Tensor] = []
    for batch in batches(model, texts):
        x = model.capture(batch, [hook])[hook].float()
        if at == "last":
            found.append(x[torch.arange(len(x)), last_positions(batch)])
            continue
        kept = spoken(x, batch, special)
        if not bool(kept.any(1).all()):
            raise DataError("a text has no token but special ones: nothing can be read of it")
        found.append((x * kept[..., None]).sum(1) / kept.sum(1, keepdim=True))
    return torch.cat(found)
