"""What an edit of activations is, what it may know of them, and what it is known to have done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass
class EditReport:
    """What one edit did while it was in force: that it ran, and whether it did something."""

    edit: Any
    """The edit, or the function."""
    calls: int = 0
    """Forward passes in which it was asked."""
    _met: Tensor | None = None
    _changed: Tensor | None = None
    _largest: Tensor | None = None

    def note_met(self, chosen: Bool[Tensor, "batch pos"], rows: Int[Tensor, " batch"] | None = None) -> None:
        """Count the positions that it chose to work on."""
        self._met = _added(self._met, chosen.flatten(1).sum(1), rows)

    def note_change(
        self, old: Tensor, new: Tensor, mask: Bool[Tensor, "batch pos"] | None, rows: Int[Tensor, " batch"] | None
    ) -> None:
        """Compare what it was given with what it gave back."""
        self.calls += 1
        if new is old or new.shape != old.shape or old.ndim < 2:
            return
        with torch.no_grad():
            change = (new - old).abs().amax(-1)
            if mask is not None and mask.shape == change.shape:
                change = change * mask
            self._changed = _added(self._changed, (change != 0).reshape(len(change), -1).sum(1), rows)
            largest = change.max()
            self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)

    def met(self, row: int | None = None) -> int:
        """Positions that it chose, of one row of the batch or of all; of an edit that does not say, those changed."""
        return self.changed(row) if self._met is None and self.calls else _count(self._met, row)

    def changed(self, row: int | None = None) -> int:
        """Positions that stood otherwise after it, of one row of the batch or of all."""
        return _count(self._changed, row)

    @property
    def largest(self) -> float:
        """The largest change of one number."""
        return 0.0 if self._largest is None else float(self._largest)

    def did_something(self, row: int | None = None) -> bool:
        """Whether it changed anything anywhere, in one row of the batch or in all."""
        return self.changed(row) > 0

    def said(self, row: int | None = None) -> str:
        """In words: what it changed, or why nothing."""
        name = getattr(self.edit, "__name__", None) or repr(self.edit)
        met, changed = self.met(row), self.changed(row)
        if changed:
            words = f"changed {changed:,} of {met:,} positions" if met > changed else f"changed {changed:,} positions"
        elif not self.calls:
            words = "never ran: its hook point was not reached"
        elif not met:
            words = "ran and met no position: nothing was changed"
        else:
            why = getattr(self.edit, "unchanged", "what it gives is what was there")
            words = f"ran at {met:,} positions and changed nothing: {why}"
        return f"{name}: {words}"

    def __str__(self) -> str:
        return self.said()


def _added(total: Tensor | None, counts: Tensor, rows: Int[Tensor, " batch"] | None) -> Tensor:
    size = len(counts) if rows is None else int(rows.max()) + 1 if rows.numel() else 0
    if total is None:
        total = counts.new_zeros(size)
    elif len(total) < size:
        total = torch.cat([total, total.new_zeros(size - len(total))])
    if rows is None:
        total[: len(counts)] += counts
        return total
    return total.index_add_(0, rows, counts)


def _count(counts: Tensor | None, row: int | None) -> int:
    if counts is None:
        return 0
    if row is None:
        return int(counts.sum())
    return int(counts[row]) if row < len(counts) else 0


@dataclass(frozen=True)
class EditContext:
    """What an edit may know of the activations that it is given, each (batch, pos) where known."""

    hook: str
    tokens: Int[Tensor, "batch pos"] | None = None
    positions: Int[Tensor, "batch pos"] | None = None
    """Number of each token in its own text, padding not counted."""
    mask: Bool[Tensor, "batch pos"] | None = None
    """False where a token is padding."""
    special: Bool[Tensor, "batch pos"] | None = None
    """True where a token is one of the tokenizer's special ones."""
    generated: Bool[Tensor, "batch pos"] | None = None
    """True where a token was generated, False where it belongs to the prompt."""
    step: Int[Tensor, "batch pos"] | None = None
    """0 in the prompt, then the number of the generated token, from 1."""
    lengths: Int[Tensor, " batch"] | None = None
    """Tokens in each text; in each prompt while it is continued."""
    continued: bool = False
    """Whether the texts are prompts that are being continued."""
    rows: Int[Tensor, " batch"] | None = None
    """Numbers of the rows in the caller's batch, where that was read in parts."""
    tokenizer: Any = field(default=None, compare=False, repr=False)
    report: EditReport | None = field(default=None, compare=False, repr=False)
    memory: dict[Any, Any] = field(default_factory=dict[Any, Any], compare=False, repr=False)
    """For what an edit finds at one hook point and needs at a later one of the same forward pass."""


@dataclass(frozen=True)
class Continued:
    """Texts that are being continued, in the forward passes of which edits may ask what is prompt."""

    width: int
    """Columns of the prompts, padding in front counted."""
    lengths: Int[Tensor, " batch"]
    """Tokens of each prompt."""


EditFunction = Callable[[Tensor, EditContext], Tensor]


class Edit(Protocol):
    """An object that replaces activations: `apply(x, context) -> x` at each of `hooks`."""

    @property
    def hooks(self) -> Sequence[str]: ...
    def apply(self, x: Tensor, context: EditContext) -> Tensor: ...


@runtime_checkable
class Joining(Protocol):
    """An edit that looks at the model before it is put in."""

    def join(self, model: Any) -> None: ...
