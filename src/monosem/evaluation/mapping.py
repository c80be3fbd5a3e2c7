"""Evaluation of what reads several hook points or models side by side, or predicts others than it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from monosem.activations import Found, Mapping, Reading, reopened, rows_a_context
from monosem.data import Batch, BatchReader, ContextBatch
from monosem.evaluation.controls import PCA
from monosem.evaluation.downstream import LOSSES, DownstreamLoss, loss_contexts
from monosem.evaluation.losses import downstream_loss, share_of
from monosem.evaluation.progress import measured, tell_place
from monosem.evaluation.reconstruction import Reconstruction
from monosem.evaluation.sources import SourceLosses
from monosem.ranks import Group, everyone
from monosem.work import Stage, doing, stage

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

    def add_up(self, every: Group) -> None:
        """Take in what other processes have, of which each takes in all."""
        for part in [*self.parts.values(), *([self.loss] if self.loss is not None else [])]:
            part.add_up(every)

    def add(self, batch: Batch, found: Found, losing: Stage | None) -> None:
        """Take in some contexts and what was read of them; the losses too, if there is a stage of the work for them."""
        (x, target), kept = self.mapping.sides(found), found.kept
        codes, target = self.mapping.sae.encode(x), target.flatten(1)
        self._rebuilt = {"SAE": self.mapping.sae.decode(codes, x).flatten(1)}
        self._rebuilt |= {name: control(target) for name, control in self.controls.items()}
        for name, part in self.parts.items():
            part.add(target, self._rebuilt[name], batch.document[kept], codes if name == "SAE" else None)
        for observer in self.observers:
            observer(batch, kept, codes, x)
        if losing is not None and self.loss is not None:
            if isinstance(batch, ContextBatch):  # not what is padding in all
                length = int((~batch.padding).sum(1).max())
                batch, kept = batch.of(torch.arange(len(batch)), length), kept[:, :length]
            with losing:
                self.loss.add(batch, kept)
                losing.advance(int(kept.sum()))


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
    rows_a_context(contexts, mapping.sae.metadata)
    at_once = loss_contexts(mapping.model, contexts.context_length)

    def reading(rows: int) -> Reading:
        return Reading(mapping.model, contexts, [mapping.wanted], rows, at_once=at_once)

    with doing("reading a sample"):
        first = [mapping.sides(piece.found[0]) for piece in reading(min(tokens, FIT_TOKENS))]
        x, sample = (torch.cat(parts) for parts in zip(*first, strict=True))
    k = max(1, round(mapping.sae.encode(x[:4096]).l0().double().mean().item()))
    losing = stage(LOSSES, min(loss_tokens, tokens), unit="tokens")
    sums = MappingSums(mapping, sample, k, controls, observers, contexts if loss_tokens else None)
    every = everyone()
    for piece in measured(reading(tokens)):
        for observer in observers:
            tell_place(observer, piece.start)
        wanted = sums.n_predictions < share_of(loss_tokens, tokens)
        sums.add(piece.batch, piece.found[0], losing if wanted else None)
    losing.close()
    sums.add_up(every)
    where = " + ".join(mapping.hooks)
    if mapping.targets != mapping.hooks:
        where += f" -> {' + '.join(mapping.targets)}"
    return sums, {
        "model": mapping.model.name,
        "hook": where,
        "data": name,
        "things": "tokens" if data.get("images") is None else "patches",
    }
