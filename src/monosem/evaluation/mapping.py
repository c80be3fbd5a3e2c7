"""Evaluation of what reads several hook points or models side by side, or predicts others than it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.activations import Mapping, reopened
from monosem.data import Batch, BatchReader
from monosem.errors import DataError
from monosem.evaluation.controls import PCA
from monosem.evaluation.downstream import EVALUATING, LOSSES, DownstreamLoss, loss_contexts
from monosem.evaluation.losses import downstream_loss
from monosem.evaluation.reconstruction import Reconstruction
from monosem.evaluation.sources import SourceLosses
from monosem.work import Stage, doing, each, stage

FIT_TOKENS = 32_768


class MappingSums:
    """The metrics of a mapping and its controls, and the losses of its models with what is predicted put in."""

    def __init__(
        self,
        mapping: Mapping,
        sample: Float[Tensor, "rows ..."],
        k: int,
        controls: bool,
        observers: Sequence[Callable[..., None]],
        contexts: BatchReader | None,
    ) -> None:
        """Begin with a sample of what is to be predicted, to which controls are fitted; losses need the contexts."""
        self.mapping, self.observers, flat = mapping, observers, sample.flatten(1)
        mean = flat.mean(0)
        self.controls: dict[str, Callable[[Tensor], Tensor]] = {"mean": lambda x: mean.to(x).expand_as(x)}
        if controls:
            self.controls["PCA"] = PCA(flat, k)
        self.parts = {name: Reconstruction(mean) for name in ("SAE", *self.controls)}
        self._rebuilt: dict[str, Tensor] = {}
        self.loss = None if contexts is None else self._losses(contexts)

    def _losses(self, contexts: BatchReader) -> DownstreamLoss | SourceLosses | None:
        """The losses of every source; None where no model predicts anything."""
        found: dict[str, DownstreamLoss] = {}
        for number, (source, (model, hook)) in enumerate(self.mapping.predicted.items()):
            replaced = {name: self._part(name, number) for name in self.parts}
            loss = downstream_loss(model, hook, {"zero": torch.zeros_like, **replaced}, contexts)
            if loss is not None:
                found[source] = loss
        if len(self.mapping.predicted) == 1:
            return next(iter(found.values()), None)
        return SourceLosses(found) if found else None

    def _part(self, name: str, source: int) -> Callable[[Tensor], Tensor]:
        """What stands for one source in the reconstruction of the batch at hand."""
        n_sources = len(self.mapping.predicted)
        return lambda x: self._rebuilt[name].unflatten(1, (n_sources, -1))[:, source].to(x.device)

    @property
    def n_predictions(self) -> int:
        return 0 if self.loss is None else self.loss.n_predictions

    def add(self, batch: Batch, losing: Stage | None) -> None:
        """Take in some contexts; the losses too, if there is a stage of the work for them."""
        x, target, kept = self.mapping.read(batch)
        codes, target = self.mapping.sae.encode(x), target.flatten(1)
        self._rebuilt = {"SAE": self.mapping.sae.decode(codes, x).flatten(1)}
        self._rebuilt |= {name: control(target) for name, control in self.controls.items()}
        for name, part in self.parts.items():
            part.add(target, self._rebuilt[name], batch.document[kept], codes if name == "SAE" else None)
        for observer in self.observers:
            observer(batch, kept, codes, x)
        if losing is not None and self.loss is not None:
            with losing:
                self.loss.add(batch, kept)
                losing.advance(kept.numel())


@torch.no_grad()
def measure_mapping(
    mapping: Mapping,
    data: dict[str, Any],
    *,
    tokens: int,
    loss_tokens: int,
    controls: bool,
    observers: Sequence[Callable[..., None]],
) -> tuple[MappingSums, dict[str, str | int | float]]:
    """Go once through `data`, the `text`, or `images` and `labels`, of `reopened`; also returns the report's facts.

    Raises:
        DataError: there is nothing that the dictionary reads.
    """
    contexts, name = reopened(mapping.sae.metadata, mapping.model, mapping.hooks[0], **data)
    n_contexts = -(-tokens // contexts.context_length)
    first = contexts.read(0, min(n_contexts, max(1, FIT_TOKENS // contexts.context_length)))
    with doing("reading a sample"):
        x, sample, _ = mapping.read(first)
    if not len(x):
        raise DataError(f"{name} has no positions that the SAE reads")
    k = max(1, round(mapping.sae.encode(x[:4096]).l0().double().mean().item()))
    losing = stage(LOSSES, min(loss_tokens, tokens), unit="tokens")
    sums = MappingSums(mapping, sample, k, controls, observers, contexts if loss_tokens else None)
    at_once = loss_contexts(mapping.model, contexts.context_length)
    steps = range(0, n_contexts, at_once)
    for start in each(EVALUATING, steps, at_once * contexts.context_length):
        batch = contexts.read(start, min(start + at_once, n_contexts))
        if not len(batch):
            break
        sums.add(batch, losing if sums.n_predictions < loss_tokens else None)
    losing.close()
    where = " + ".join(mapping.hooks)
    if mapping.targets != mapping.hooks:
        where += f" -> {' + '.join(mapping.targets)}"
    return sums, {
        "model": mapping.model.name,
        "hook": where,
        "data": name,
        "things": "tokens" if data.get("images") is None else "patches",
    }
