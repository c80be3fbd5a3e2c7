"""Losses as a metric of a pass: which loss fits a model, by what it predicts and of what; and where losses end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.activations.reading import parts_of, positions_wanted
from monosem.data import Batch, BatchReader, ImageBatch, Images
from monosem.errors import DataError
from monosem.evaluation.downstream import LOSSES, DownstreamLoss, OutputLoss, RowFunction, loss_contexts
from monosem.evaluation.language import LanguageLoss
from monosem.evaluation.metric import Metric, Seen
from monosem.evaluation.predictions import Predictions
from monosem.evaluation.sources import SourceLosses
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.ranks import everyone
from monosem.sae.metadata import SAEMetadata
from monosem.work import Stage, doing

Edit = Callable[[Float[Tensor, "rows d"], Float[Tensor, "rows d"], Float[Tensor, "rows d"]], Float[Tensor, "rows d"]]
"""From activations, their reconstruction and random numbers: what to put in."""


class Losses(Metric):
    """The losses of a model with each column's reconstruction put in, at each source that is predicted.

    It also runs the passes: `predict` is what `Seen.predictions` calls, and other metrics of behaviour read the same.
    """

    def __init__(
        self,
        sources: Mapping[str, tuple[SubjectModel, str]],
        columns: list[str],
        contexts: BatchReader,
        known: SAEMetadata,
        tokens: int,
        edits: Mapping[str, Edit] | None = None,
        one_in: int = 1,
    ) -> None:
        """Begin.

        Args:
            sources: model and hook point of each, in the order of the columns of what is predicted.
            columns: names of the dictionaries and controls, "mean" among them.
            contexts: what is read.
            known: the rules of what is read of them.
            tokens: how many positions to replace, from the first context on; at most one context more.
            edits: put in what these make of each column's reconstruction too, as "COLUMN EDIT"; where one source alone
                is predicted.
            one_in: of so many contexts replace only in the first.
        """
        self._seen: Seen | None = None
        self._rows, self._noise, self._noisy = torch.zeros(0, dtype=torch.int64), torch.zeros(0), bool(edits)
        self.one_in = one_in
        self.work: Stage | None = None
        """What its passes are a part of; each call of `predict` is a stage of its own where there is none."""
        self.losses: dict[str, DownstreamLoss] = {}
        for number, (source, (model, hook)) in enumerate(sources.items()):
            put_in: dict[str, RowFunction] = {} if edits else {"zero": torch.zeros_like}
            put_in |= {name: self._part(name, number, len(sources)) for name in columns}
            put_in |= {f"{name} {key}": self._made(name, e) for key, e in (edits or {}).items() for name in columns}
            loss = downstream_loss(model, hook, put_in, contexts)
            if loss is not None:
                self.losses[source] = loss
        self.single = len(sources) == 1
        self.last = self._last_context(contexts, known, tokens) if self.losses else 0
        """Losses are measured of the contexts before this one."""

    def __bool__(self) -> bool:
        """Whether the model predicts anything."""
        return bool(self.losses)

    def _last_context(self, contexts: BatchReader, known: SAEMetadata, tokens: int) -> int:
        """By the data alone, so that it does not depend on how many processes or batches there are."""
        loss, start, found = next(iter(self.losses.values())), 0, 0
        while found < tokens and len(batch := contexts.read(start, start + 64)):
            reached = loss.replaced(batch, positions_wanted(known, batch)).cumsum(0)
            start += int((reached < tokens - found).sum()) + 1 if int(reached[-1]) >= tokens - found else len(batch)
            found += int(reached[-1])
        return start

    def _part(self, name: str, source: int, n_sources: int) -> RowFunction:
        """What stands for one source in the reconstruction of the contexts at hand."""

        def put_in(x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
            assert self._seen is not None
            rows = self._seen.reconstruction(name)[self._rows]
            return rows.unflatten(1, (n_sources, -1))[:, source].to(x)

        return put_in

    def _made(self, name: str, edit: Edit) -> RowFunction:
        """What an edit makes of the reconstruction of the contexts at hand."""

        def put_in(x: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
            assert self._seen is not None
            return edit(x, self._seen.reconstruction(name)[self._rows].to(x), self._noise[self._rows].to(x))

        return put_in

    def _draw(self, seen: Seen, kept: Bool[Tensor, "contexts pos"]) -> Float[Tensor, "rows d"]:
        """Random numbers that depend on the context alone."""
        generator, rows = torch.Generator(), list[Tensor]()
        for number, n in enumerate(kept.sum(1).tolist(), seen.start):
            rows.append(torch.randn(n, seen.target.shape[1], generator=generator.manual_seed(number)))
        return torch.cat(rows)

    def predict(self, seen: Seen) -> dict[str, Predictions]:
        """Run the model with each column's reconstruction put in, source by source."""
        assert seen.batch is not None
        assert seen.kept is not None
        n = max(0, self.last - seen.start)
        batch, kept = seen.batch[:n], seen.kept[:n]
        if not len(batch) or not kept.any():
            return {}
        numbers = torch.zeros(kept.shape, dtype=torch.int64)
        numbers[kept] = torch.arange(int(kept.sum()))
        self._seen, found = seen, dict[str, list[Predictions]]()
        self._noise = self._draw(seen, kept) if self._noisy else self._noise
        if self.one_in > 1:
            batch, kept, numbers = (
                _some(one, -seen.start % self.one_in, self.one_in) for one in (batch, kept, numbers)
            )
        with self._working(int(kept.sum())) as work:
            for order, part in _parts(batch, next(iter(self.losses.values())).model):
                own = kept[order, : part.tokens.shape[1]]
                self._rows = numbers[order, : part.tokens.shape[1]][own]
                each = everyone().size * int(own.sum()) / len(self.losses)
                for source, loss in self.losses.items():
                    passes = loss.predict(part, own, lambda share, each=each: work.advance(share * each))
                    found.setdefault(source, []).append(passes)
        self._seen = None
        return {source: Predictions.cat(parts) for source, parts in found.items()}

    @contextmanager
    def _working(self, positions: int) -> Iterator[Stage]:
        if self.work is None:
            with doing(LOSSES, everyone().size * positions, unit="tokens") as work:
                yield work
        else:
            with self.work:
                yield self.work

    def add(self, seen: Seen) -> None:
        for source, found in seen.predictions().items():
            self.losses[source].take(found)

    @property
    def n_predictions(self) -> int:
        """Of each source."""
        return min(loss.n_predictions for loss in self.losses.values())

    @property
    def _together(self) -> DownstreamLoss | SourceLosses:
        return next(iter(self.losses.values())) if self.single else SourceLosses(self.losses)

    def result(self, name: str) -> dict[str, Interval]:
        return self._together.metrics(name) if self.losses and self.n_predictions else {}

    def facts(self) -> dict[str, str | int | float]:
        return self._together.facts() if self.losses and self.n_predictions else {}

    def merge(self, other: Metric) -> None:
        assert isinstance(other, Losses)
        for source, loss in self.losses.items():
            loss.sums.merge(other.losses[source].sums)

    def state(self) -> dict[str, np.ndarray]:
        return {f"{source}\n{key}": v for source, loss in self.losses.items() for key, v in loss.sums.arrays.items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        for key, values in state.items():
            source, _, name = key.partition("\n")
            self.losses[source].sums.arrays[name] = values.copy()


def _some(contexts: Any, first: int, step: int) -> Any:
    """Every so many-th of some contexts."""
    return contexts[first::step]


def _parts(batch: Batch, model: SubjectModel) -> Iterator[tuple[Int[Tensor, " contexts"], Batch]]:
    """A few contexts at a time, of like length where most of them is padding: logits are large."""
    length = batch.tokens.shape[1]
    if getattr(batch, "packed", True):
        at_once = loss_contexts(model, length)
        for start in range(0, len(batch), at_once):
            yield torch.arange(start, min(start + at_once, len(batch))), batch[start : start + at_once]
    else:
        yield from parts_of(batch, loss_contexts(model, 1))


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
