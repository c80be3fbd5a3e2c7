"""What a model loses when activations are replaced: its loss, loss recovered, KL; whatever the model predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from monosem.data import Batch, ImageBatch
from monosem.evaluation.predictions import Predictions
from monosem.intervals import DocumentSums, Interval, Metric
from monosem.interventions import Replace
from monosem.models import ModelSet, Replay, SubjectModel

EVALUATING, LOSSES = "evaluating", "measuring losses"  # stages of the work
LOSS_POSITIONS = 4_096
"""Logits are computed of no more at a time: a vocabulary may be large."""
UNMOVED = 1e-6
"""Nats a prediction: a loss that an ablation changes by less has not moved."""
RowFunction = Callable[[Float[Tensor, "rows d"]], Float[Tensor, "rows d"]]


class Counted(NamedTuple):
    """The predictions of a batch that count."""

    where: Bool[Tensor, ...]
    """(contexts, pos) or (contexts,): which of the model's outputs."""
    documents: Int[Tensor, " predictions"]
    targets: Int[Tensor, " predictions"] | None
    """What is right; None where nothing says it."""


class DownstreamLoss(ABC):
    """The loss of a model (nats), clean and with each of several replacements at one hook point.

        loss recovered = (loss_ablated - loss_replaced) / (loss_ablated - loss_clean)

    The loss is the cross-entropy of what is right; where nothing says what is, it is KL(clean || replaced).
    """

    what: str
    """The loss in words."""
    has_targets = True
    """Whether it is known what is right."""

    def __init__(self, model: SubjectModel, hook: str, replacements: Mapping[str, RowFunction]) -> None:
        """Begin; `replacements` must have "zero" and "mean", the ablations that loss is recovered against."""
        self.model, self.hook, self.replacements = model, hook, replacements
        self.sums = DocumentSums()
        self._replay: Replay | None = None

    @property
    def n_predictions(self) -> int:
        """How many have been taken in."""
        return int(self.sums.total("predictions")) if "predictions" in self.sums else 0

    @abstractmethod
    def counted(self, batch: Batch, chosen: Bool[Tensor, "contexts pos"]) -> Counted:
        """The predictions that count where the chosen positions are replaced."""

    def replaced(self, batch: Batch, chosen: Bool[Tensor, "contexts pos"]) -> Int[Tensor, " contexts"]:
        """Of each context, how many chosen positions have a prediction that counts."""
        where = self.counted(batch, chosen).where
        return (chosen & where.reshape(len(batch), -1)).sum(1)

    def add(self, batch: Batch, chosen: Bool[Tensor, "contexts pos"]) -> None:
        """Take in one batch of contexts; `chosen` are the positions to replace."""
        self.take(self.predict(batch, chosen))

    @torch.no_grad()
    def predict(
        self, batch: Batch, chosen: Bool[Tensor, "contexts pos"], done: Callable[[float], None] = lambda share: None
    ) -> Predictions:
        """What the model predicts, clean and with each replacement at the chosen positions; `done` is told shares."""
        where, documents, targets = self.counted(batch, chosen)
        single = where.ndim == 1
        found = Predictions(
            documents,
            torch.zeros_like(documents) if single else where.nonzero()[:, 1],
            batch.tokens[:, 0][where] if single else batch.tokens[where],
            targets,
            *({}, {}, {}),
        )
        device = self.model.device
        where, targets = where.to(device), None if targets is None else targets.to(device)
        self._replay = self._replay or Replay(self.model, [self.hook], batch[:1].inputs)

        def add(name: str, logarithms: Tensor, kl: Tensor) -> None:
            loss = kl if targets is None else F.nll_loss(logarithms, targets, reduction="none")
            hits = logarithms.argmax(-1) == right
            found.loss[name], found.kl[name], found.right[name] = (one.cpu().numpy() for one in (loss, kl, hits))
            done(1 / (1 + len(self.replacements)))

        with self._replay.of(batch.inputs) as logits:
            clean = F.log_softmax(logits[where].float(), dim=-1)
            chances, right = clean.exp(), clean.argmax(-1) if targets is None else targets
            add("clean", clean, torch.zeros(len(clean), device=device))
            for name, function in self.replacements.items():
                with self.model.edit([Replace(self.hook, function, where=chosen)]):
                    replaced = F.log_softmax(self.model(batch.inputs)[where].float(), dim=-1)
                add(name, replaced, (clean - replaced).mul_(chances).sum(-1))
        return found

    def take(self, found: Predictions) -> None:
        """Take in predictions."""
        documents = found.documents.numpy()
        self.sums.add("predictions", documents, np.ones(len(documents)))
        for name in found.loss:
            self.sums.add(name, documents, found.loss[name])
            self.sums.add(f"kl {name}", documents, found.kl[name])
            self.sums.add(f"right {name}", documents, found.right[name])

    def clean(self) -> Interval:
        return self.sums.interval(_mean_of("clean"))

    def metrics(self, name: str) -> dict[str, Interval]:
        """What `ratios` names, each with its interval."""
        return {metric: self.sums.interval(ratio) for metric, ratio in self.ratios(name).items()}

    def ratios(self, name: str) -> dict[str, Metric]:
        """Loss, loss recovered against both ablations, and KL(clean || replaced) of one replacement, of the sums."""
        found: dict[str, Metric] = {"ce": _mean_of(name)} if self.has_targets else {}
        for ablation in ("mean", "zero"):
            found[f"loss_recovered_{ablation}"] = lambda s, lost=ablation: _recovered(s, name, lost)
        return found | {"kl": _mean_of(f"kl {name}")}

    def facts(self) -> dict[str, str | int | float]:
        """What was measured, and the ends of the scale."""
        facts: dict[str, str | int | float] = {"loss": self.what, "predictions": self.n_predictions}
        for name in ("clean", "zero", "mean") if self.has_targets else ():
            facts[f"ce_{name}"] = self.sums.interval(_mean_of(name)).value
        return facts | {"kl_zero": self.sums.interval(_mean_of("kl zero")).value}


def _recovered(sums: dict[str, np.ndarray], name: str, lost: str) -> np.ndarray:
    """The share of a loss that an ablation costs which a replacement does not; NaN where it costs none."""
    cost = sums[lost] - sums["clean"]
    moved = np.abs(cost) > UNMOVED * sums["predictions"]
    return (sums[lost] - sums[name]) / np.where(moved, cost, np.nan)


def _mean_of(name: str) -> Metric:
    """A sum over the number of predictions."""
    return lambda sums: sums[name] / sums["predictions"]


def loss_contexts(model: SubjectModel | ModelSet, length: int) -> int:
    """How many contexts of that many positions to compute losses of at a time."""
    return min(model.contexts_at_once(length), max(1, LOSS_POSITIONS // length))


class OutputLoss(DownstreamLoss):
    """One prediction a context (a class, a score of several parts), or one a position where the model gives these.

    What is right are the labels of images, if they are those of the model; else KL from the model's own output counts.
    """

    def __init__(
        self, model: SubjectModel, hook: str, replacements: Mapping[str, RowFunction], *, each: bool, labels: bool
    ) -> None:
        super().__init__(model, hook, replacements)
        self.each, self.labels, self.has_targets = each, labels, labels
        self.what = "cross-entropy of the labels" if labels else "KL from the model's own output"

    def counted(self, batch: Batch, chosen: Bool[Tensor, "contexts pos"]) -> Counted:
        where = chosen if self.each else chosen.any(1)
        documents = batch.document[where] if self.each else batch.document.amax(1)[where]
        targets = None
        if self.labels and isinstance(batch, ImageBatch) and batch.labels is not None:
            targets = torch.as_tensor(batch.labels.astype("int64"))[where]
        return Counted(where, documents, targets)

    def ratios(self, name: str) -> dict[str, Metric]:
        return super().ratios(name) | {"accuracy" if self.labels else "agreement": _mean_of(f"right {name}")}

    def facts(self) -> dict[str, str | int | float]:
        right = self.sums.interval(_mean_of("right clean")).value
        return super().facts() | ({"accuracy_clean": right} if self.labels else {})
