"""The one way from contexts to rows: which positions an SAE reads, and what its model gives there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.data import Batch, BatchReader, ContextBatch, PackedText, kept_positions
from monosem.errors import DataError
from monosem.models import ModelSet, SubjectModel
from monosem.ranks import ALONE, Group, everyone
from monosem.sae.metadata import SAEMetadata

READ_TOKENS = 32_768
"""Positions of contexts that are read at a time where most of them may be padding."""
ALIKE, LEAST_POSITIONS = 0.75, 256
"""Lengths that go together, as a share of the longest; fewer positions than so many are not worth their own pass."""
LOOKED_AT, LOOKED_AT_MOST = 64, 4_096
"""Contexts in which something to read must be."""


class Wanted(NamedTuple):
    """What is to be read for one SAE."""

    known: SAEMetadata
    """Its rules."""
    hooks: Sequence[str]


class Found(NamedTuple):
    """What was read for one SAE."""

    rows: dict[str, Float[Tensor, "rows *source d"]]
    """In float32, at each hook point, in the order of the positions."""
    kept: Bool[Tensor, "contexts pos"]
    """Where they stand."""


@torch.no_grad()
def read_rows(model: SubjectModel | ModelSet, batch: Batch, wanted: Sequence[Wanted]) -> list[Found]:
    """One pass of a model over contexts, for all SAEs that want some of their positions.

    Contexts that are mostly padding go through the model in groups of like length, without what is padding in all.
    """
    hooks = sorted({hook for _, names in wanted for hook in names})
    kept = [torch.zeros(batch.padding.shape, dtype=torch.bool) for _ in wanted]
    rows: list[dict[str, list[Tensor]]] = [{hook: [] for hook in names} for _, names in wanted]
    owners: list[list[Tensor]] = [[] for _ in wanted]
    for order, part in parts_of(batch, model.contexts_at_once(1)):
        captured = model.capture(part.inputs, hooks)
        for i, (known, names) in enumerate(wanted):
            own = positions_read(known, part, {hook: captured[hook] for hook in names})
            kept[i][order, : own.shape[1]] = own
            owners[i].append(order.repeat_interleave(own.sum(1)))
            for hook in names:
                rows[i][hook].append(captured[hook][own.to(captured[hook].device)].to(torch.float32))
    return [Found(_joined(rows[i], owners[i]), kept[i]) for i in range(len(wanted))]


def _joined(rows: dict[str, list[Tensor]], owners: list[Int[Tensor, " rows"]]) -> dict[str, Tensor]:
    """The rows of all parts in the order of their contexts."""
    if len(owners) == 1:
        return {hook: parts[0] for hook, parts in rows.items()}
    order = torch.cat(owners).argsort(stable=True)
    return {hook: torch.cat(parts)[order.to(parts[0].device)] for hook, parts in rows.items()}


def parts_of(batch: Batch, n_positions: int) -> Iterator[tuple[Int[Tensor, " contexts"], Batch]]:
    """The numbers and the contexts of each part that goes through a model by itself.

    Contexts end to end, and images, are one part. Documents of their own are sorted by length; a part has some of like
    length, `n_positions` positions at most, up to the end of its longest.
    """
    if not isinstance(batch, ContextBatch) or batch.packed:
        yield torch.arange(len(batch)), batch
        return
    lengths = (~batch.padding).sum(1).clamp_min(1)
    order = lengths.argsort(stable=True, descending=True)
    start = 0
    while start < len(order):
        left = lengths[order[start:]]
        longest = int(left[0])
        alike = int((left >= ALIKE * longest).sum())
        size = min(max(alike, LEAST_POSITIONS // longest), max(1, n_positions // longest))
        chosen = order[start : start + size].sort().values
        yield chosen, batch.of(chosen, longest)
        start += len(chosen)


def positions_read(
    known: SAEMetadata, batch: Batch, captured: Mapping[str, Float[Tensor, "contexts pos *source d"]]
) -> Bool[Tensor, "contexts pos"]:
    """The positions of contexts that an SAE reads, by its rules and by the norms at all the hook points captured."""
    kept = positions_wanted(known, batch)
    for hook, x in captured.items():
        if x.shape[:2] != batch.special.shape:
            raise DataError(f"{hook} gives {tuple(x.shape)} for {len(batch)} contexts of {batch.special.shape[1]}")
        kept = kept & within_norm(known, hook, x).cpu()
    return kept


def positions_wanted(known: SAEMetadata, batch: Batch) -> Bool[Tensor, "contexts pos"]:
    """The positions that an SAE reads as far as the data alone say it."""
    return kept_positions(
        batch,
        exclude_special=known.exclude_special is not False,
        skip_first=known.skip_first or 0,
        last_only=bool(known.last_only),
    )


def within_norm(
    known: SAEMetadata, hook: str, x: Float[Tensor, "contexts pos *source d"]
) -> Bool[Tensor, "contexts pos"]:
    """Where the rows at a hook point are not of a norm that was left out of training."""
    names = [f"{hook} of {model}" for model in known.models or []] if x.ndim > 3 else [hook]
    limits = [(known.max_norm or {}).get(name, math.inf) for name in names]
    if min(limits, default=math.inf) == math.inf:
        return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
    norms = x.to(torch.float32).norm(dim=-1).reshape(*x.shape[:2], -1)
    return ~((norms > norms.new_tensor(limits)) & norms.isfinite()).any(-1)


def rows_a_context(contexts: BatchReader, known: SAEMetadata) -> float:
    """How many rows an SAE reads of a context, by the first contexts; special tokens counted.

    Raises:
        DataError: it reads nothing of them.
    """
    if not isinstance(contexts, PackedText):
        return contexts.context_length
    n = LOOKED_AT
    while not positions_wanted(known, batch := contexts.read(0, n)).any():
        if len(batch) < n or n >= LOOKED_AT_MOST:
            rules = {name: getattr(known, name) for name in ("exclude_special", "skip_first", "last_only")}
            by = ", ".join(f"{name}={value}" for name, value in rules.items() if value)
            skipped = f": {contexts.skipped.summary}" if contexts.skipped else ""
            raise DataError(
                f"there is nothing that the SAE reads in {len(batch):,} contexts of the text ({by}){skipped}"
            )
        n *= 8
    every = known.model_copy(update={"exclude_special": False})
    return positions_wanted(every, batch).sum().item() / len(batch)


def contexts_at_once(model: SubjectModel | ModelSet, contexts: BatchReader) -> int:
    """How many contexts to read at a time: more than go through the model at a time where they may be short."""
    length = contexts.context_length
    own = model.contexts_at_once(length)
    return own if getattr(contexts, "packing", True) else max(own, READ_TOKENS // length)


class Piece(NamedTuple):
    """Some contexts, and what was read of them for each SAE."""

    start: int
    """Number of the first context."""
    batch: Batch
    found: list[Found]


class Reading:
    """Contexts in order, with what each SAE reads of them, until the first SAE has read so many rows.

    `for piece in Reading(...)`; `rows` is how many have been read. How many contexts go through the model at a time
    does not change which are read.
    """

    def __init__(
        self,
        model: SubjectModel | ModelSet,
        contexts: BatchReader,
        wanted: Sequence[Wanted],
        rows: int,
        *,
        at_once: int | None = None,
        start: int = 0,
        counted: tuple[int, int] = (0, 0),
    ) -> None:
        """Begin.

        Args:
            model: the model.
            contexts: what it reads.
            wanted: one or several SAEs' rules and hook points.
            rows: how many rows the first SAE is to read, at most one context more.
            at_once: contexts at a time.
            start: the first context.
            counted: rows that the first SAE has read already, and the context up to which.
        """
        self.model, self.contexts, self.wanted, self.wished = model, contexts, wanted, rows
        self.at_once = at_once or contexts_at_once(model, contexts)
        self.start, (self.rows, self._counted_to) = start, counted

    def __iter__(self) -> Iterator[Piece]:
        return (piece for piece in self._rounds(ALONE) if piece is not None)

    def rounds(self) -> Iterator[Piece | None]:
        """The pieces; of several processes this one's: in every round each has one, or at the end None.

        `rows` counts those of all.
        """
        return self._rounds(everyone())

    def _rounds(self, every: Group) -> Iterator[Piece | None]:
        n, own = 0, None
        for piece in self._pieces(every):
            own, n = piece or own, n + 1
            if n % every.size == 0:
                yield own
                own = None
        if n % every.size:
            yield own

    def _pieces(self, every: Group) -> Iterator[Piece | None]:
        """Those that this process is to read; None for those that others are."""
        known, turn = self.wanted[0].known, 0
        while self.start < self._counted_to or self.rows < self.wished:
            batch = self.contexts.read(self.start, self.start + self.at_once)
            if not len(batch):
                return
            new = self.start >= self._counted_to
            if new:  # no more contexts than it takes, as far as that is known before the model has read them
                reached = positions_wanted(self.wanted[0].known, batch).sum(1).cumsum(0)
                batch = batch[: int((reached < self.wished - self.rows).sum()) + 1]
            piece, rows = None, int(positions_wanted(known, batch).sum())
            if turn % every.size == every.rank:
                piece = Piece(self.start, batch, read_rows(self.model, batch, self.wanted))
                rows = int(piece.found[0].kept.sum())
            if known.max_norm and every.size > 1:  # how many there are only who has read them knows
                rows = every.words(rows if piece else 0)[turn % every.size]
            self.rows += rows if new else 0
            self.start, turn = self.start + len(batch), turn + 1
            yield piece
