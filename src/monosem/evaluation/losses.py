"""Which loss fits a model: chosen by what it predicts and of what."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from monosem.data import BatchReader, ImageBatch, Images
from monosem.errors import DataError
from monosem.evaluation.downstream import DownstreamLoss, OutputLoss, RowFunction
from monosem.evaluation.language import LanguageLoss
from monosem.models import SubjectModel


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
    writes = getattr(model.module, "can_generate", lambda: model.family is None)()
    each = logits.ndim == 3
    if each and writes and not isinstance(example, ImageBatch):
        return LanguageLoss(model, hook, replacements)
    labels = not each and isinstance(contexts, Images) and _labels_fit(model, contexts, logits.shape[-1])
    return OutputLoss(model, hook, replacements, each=each, labels=labels)


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
