"""Which loss fits a model: chosen by what it predicts and of what."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool
from torch import Tensor

from monosem.activations.reading import parts_of
from monosem.data import Batch, BatchReader, ImageBatch, Images
from monosem.errors import DataError
from monosem.evaluation.downstream import DownstreamLoss, OutputLoss, RowFunction, loss_contexts
from monosem.evaluation.language import LanguageLoss
from monosem.models import SubjectModel
from monosem.ranks import everyone


def share_of(loss_tokens: int, tokens: int) -> int:
    """How many tokens this process takes for the losses: all of its own where all are wanted, else an equal part.

    So several processes measure losses on the tokens of one process only where `loss_tokens` are all.
    """
    return loss_tokens if loss_tokens >= tokens else -(-loss_tokens // everyone().size)


@torch.no_grad()
def downstream_loss(
    model: SubjectModel, hook: str, replacements: Mapping[str, RowFunction], contexts: BatchReader
) -> DownstreamLoss | None:
    """The loss that fits what a model predicts; None for one that predicts nothing, such as an encoder.

    Raises:
        DataError: the labels of the images go beyond the model's classes.
    """
    example = contexts.read(0, 1)
    logits = model(example.inputs)
    if not isinstance(logits, Tensor) or logits.shape[-1] < 2 or logits.ndim not in (2, 3):
        return None
    each = logits.ndim == 3
    if each and model.writes_text and not isinstance(example, ImageBatch):
        return LanguageLoss(model, hook, replacements)
    labels = not each and isinstance(contexts, Images) and _labels_fit(model, contexts, logits.shape[-1])
    return OutputLoss(model, hook, replacements, each=each, labels=labels)


def add_losses(loss: DownstreamLoss, batch: Batch, kept: Bool[Tensor, "contexts pos"], wanted: int) -> int:
    """Take in the first contexts of a batch, until `wanted` positions have been replaced in all; how many were.

    Logits are computed of a few contexts at a time, of like length where most of them is padding.
    """
    model, length = loss.model, batch.tokens.shape[1]
    packed = getattr(batch, "packed", True)
    start, before = 0, loss.n_replaced
    while start < len(batch) and loss.n_replaced < wanted:
        reached = kept[start:].sum(1).cumsum(0)
        stop = start + int((reached < wanted - loss.n_replaced).sum()) + 1
        stop = min(stop, start + loss_contexts(model, length), len(batch)) if packed else stop
        for order, part in parts_of(batch[start:stop], loss_contexts(model, 1)):
            loss.add(part, kept[start:stop][order, : part.tokens.shape[1]])
        start = stop
    return loss.n_replaced - before


def _labels_fit(model: SubjectModel, images: Images, n_classes: int) -> bool:
    """Whether the labels of images are the model's own: equal names where both have names."""
    if images.labels is None:
        return False
    names = getattr(getattr(model.module, "config", None), "id2label", None) or {}
    own = [str(names.get(i, "")).lower() for i in range(n_classes)]
    named = not all(name in ("", f"label_{i}", str(i)) for i, name in enumerate(own))
    if named and images.classes is not None:
        return [name.lower() for name in images.classes] == own
    if int(images.labels.max()) >= n_classes:
        raise DataError(f"{images.name}: labels go up to {images.labels.max()}, {model.name} has {n_classes} classes")
    return True
