"""What a model gives the dictionaries of one place to read: one pass of it for all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.activations import Found, Piece, Reading, Wanted, join, reopened, rows_a_context
from monosem.activations import Mapping as Places
from monosem.errors import DataError, MismatchError
from monosem.evaluation.downstream import EVALUATING, loss_contexts
from monosem.evaluation.going_on import Keeper
from monosem.evaluation.losses import Losses
from monosem.evaluation.metric import Column, Seen
from monosem.models import ModelSet, SubjectModel
from monosem.sae import SAE
from monosem.sae.metadata import SAEMetadata
from monosem.work import doing

RULES = ("context_length", "prepend_bos", "packing", "pixels")
"""What says how text or images are cut: a pass has one of each."""


COUNTED_TOKENS = 100_000
"""By which frequent tokens are told from rare ones."""


class ModelReading:
    """Contexts in order, with the rows that all of some dictionaries read, and what they must predict."""

    def __init__(
        self,
        saes: Mapping[str, SAE],
        model: SubjectModel | ModelSet,
        hook: str | Sequence[str] | None,
        tokens: int,
        rules: Mapping[str, Any] | None = None,
        **data: Any,
    ) -> None:
        """Open the data, the `text`, or `images` and `labels`, of `reopened`; `rules` stand in place of the SAE's own.

        Raises:
            MismatchError: a dictionary does not fit the model, or not beside the first.
            DataError: there is nothing that they read.
        """
        self.model, self.tokens = model, tokens
        self.places = {name: Places(sae, model, hook) for name, sae in saes.items()}
        self.first = next(iter(self.places.values()))
        self._require_one_place()
        for one in self.places.values():
            join(one.sae, model, one.hooks if len(one.hooks) > 1 else one.hooks[0])
        self.known = shared_rules([sae.metadata for sae in saes.values()]).model_copy(update=dict(rules or {}))
        self.asked = data
        self.contexts, self.data = reopened(self.known, model, self.first.hooks[0], **data)
        self.things = "tokens" if data.get("images") is None else "patches"
        rows_a_context(self.contexts, self.known)
        self.losses: Losses | None = None
        """To be measured of the first contexts."""
        self.work = EVALUATING
        """The name of this stage of the work."""

    def _require_one_place(self) -> None:
        (name, first), *others = self.places.items()
        for other, one in others:
            for what, own, wanted in (
                ("reads", one.hooks, first.hooks),
                ("predicts", one.targets, first.targets),
                ("is of shape", one.sae.in_shape, first.sae.in_shape),
                *((rule, getattr(one.sae.metadata, rule), getattr(first.sae.metadata, rule)) for rule in RULES),
            ):
                if own != wanted:
                    raise MismatchError(
                        f"{other} and {name} cannot share a pass: {what} {own} and {wanted}. Evaluate them one by one"
                    )

    @property
    def facts(self) -> dict[str, str | int | float]:
        where = " + ".join(self.first.hooks)
        if self.first.targets != self.first.hooks:
            where += f" -> {' + '.join(self.first.targets)}"
        return {"model": self.model.name, "hook": where, "data": self.data, "things": self.things}

    def _reading(self, rows: int, place: tuple[int, int] = (0, 0)) -> Reading:
        alone = self.first.alone
        at_once = None if alone else loss_contexts(self.model, self.contexts.context_length)
        start, counted = place
        return Reading(
            self.model,
            self.contexts,
            [Wanted(self.known, self.first.places)],
            rows,
            at_once=at_once,
            start=start,
            counted=(counted, start),
        )

    def sample(self, rows: int) -> tuple[Tensor, Tensor]:
        """What is read and what is predicted, flat, of the first rows."""
        found = [self._sides(piece.found[0]) for piece in self._reading(min(self.tokens, rows))]
        if not found:
            raise DataError(f"{self.data}: there is nothing that the SAE reads")
        x, target = (torch.cat(parts) for parts in zip(*found, strict=True))
        return x, target

    def _sides(self, found: Found) -> tuple[Tensor, Tensor]:
        if self.first.targets == self.first.hooks:
            x = target = self.first.inputs(found)
        else:
            x, target = self.first.sides(found)
        wrong = int((~x.flatten(1).isfinite().all(1) | ~target.flatten(1).isfinite().all(1)).sum())
        if wrong:
            raise DataError(
                f"{wrong:,} of {len(x):,} activations at {' + '.join(self.first.places)} of {self.model.name} are not "
                "finite: load the model in float32 or bfloat16"
            )
        return x.to(torch.float32), target.flatten(1).to(torch.float32)

    def seen(self, columns: Mapping[str, Column], keeper: Keeper | None = None) -> Iterator[Seen]:
        """All that is read, or this process's part of it, as a stage of the work; from where it was kept."""
        place = keeper.go_on() if keeper else (0, 0)
        reading, before = self._reading(self.tokens, place), place[1]
        with doing(self.work, self.tokens, done=before, unit="tokens") as work:
            for piece in reading.rounds():
                if piece is not None:
                    yield self._of(piece, columns)
                work.advance(reading.rows - before)
                before = reading.rows
                if keeper:
                    keeper.round_is_over(reading.start, reading.rows)

    def token_counts(self) -> np.ndarray:
        """How often each token stands in the beginning of the data; the last entry is of all that do not."""
        batch = self.contexts.read(0, -(-COUNTED_TOKENS // self.contexts.context_length))
        return np.append(np.bincount(batch.tokens[~batch.special & ~batch.padding].numpy()), 0)

    def _of(self, piece: Piece, columns: Mapping[str, Column]) -> Seen:
        (x, target), kept = self._sides(piece.found[0]), piece.found[0].kept
        return Seen(
            x,
            target,
            piece.batch.document[kept],
            columns,
            batch=piece.batch,
            kept=kept,
            start=piece.start,
            predict=self.losses.predict if self.losses else None,
        )


def shared_rules(known: Sequence[SAEMetadata]) -> SAEMetadata:
    """The rules by which exactly those positions are read that all of some dictionaries read."""
    first = known[0]
    if len(known) == 1:
        return first
    limits = [one.max_norm or {} for one in known]
    hooks = {hook for one in limits for hook in one}
    return first.model_copy(
        update={
            "exclude_special": any(one.exclude_special is not False for one in known),
            "skip_first": max(one.skip_first or 0 for one in known),
            "last_only": any(one.last_only for one in known),
            "max_norm": {hook: min(one[hook] for one in limits if hook in one) for hook in hooks} or None,
        }
    )
