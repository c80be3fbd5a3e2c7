"""The rows of a store by their number, as they are stored: what reads ready vectors reads them as an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monosem.activations.source import ActivationSource
from monosem.activations.stored import StoredActivations
from monosem.errors import DataError


class StoreRows:
    """Rows of a store, or of a part of it (`select`, `pair`, `stack`), of which one shard at a time is in memory."""

    def __init__(self, source: ActivationSource) -> None:
        """Rows of a store.

        Raises:
            DataError: the source is no store: its rows have no numbers.
        """
        whole = source.whole
        if not isinstance(whole, StoredActivations):
            raise DataError(
                "rows are read from an array, a file or a store: store_activations(model, hooks, text, path)"
            )
        self._source, self._store = source, whole
        self._ends = np.cumsum(whole.shard_sizes)
        self._last: tuple[int, Tensor] | None = None
        self.shape = (len(whole), *self._shard(0).shape[1:])
        self.ndim = len(self.shape)
        self.name = f"{source.words}, {' + '.join(getattr(source, 'hooks', []))}"

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Tensor:
        start, stop, _ = part.indices(len(self))
        found = [self._shard(0)[:0]]
        while start < stop:
            number, begins = self._place(start)
            rows = self._shard(number)[start - begins : stop - begins]
            found.append(rows)
            start += len(rows)
        return torch.cat(found)

    def labels(self) -> Sequence[str]:
        """Where each row is from, in words."""
        return _Labels(self)

    def _place(self, row: int) -> tuple[int, int]:
        """The shard of a row, and the first row of that."""
        number = int(np.searchsorted(self._ends, row, "right"))
        return number, 0 if not number else int(self._ends[number - 1])

    def _shard(self, number: int) -> Tensor:
        if self._last is None or self._last[0] != number:
            self._last = None
            rows = torch.cat(list(self._store.shard(number)))
            self._last = (number, self._source.split(self._source.take(rows))[0])
        return self._last[1]


class _Labels(Sequence[str]):
    """Document, position and token of rows, read when they are asked for."""

    def __init__(self, rows: StoreRows) -> None:
        self._rows = rows
        self._last: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: Any) -> str:
        number, begins = self._rows._place(row)
        if self._last is None or self._last[0] != number:
            self._last = (number, self._rows._store.places_of(number))
        document, position, token = self._last[1][row - begins].tolist()
        return f"document {document}, position {position}, token {token}"
