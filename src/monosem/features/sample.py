"""A uniform sample of fixed size from a stream: the members with the smallest keys, which are hashes."""

from __future__ import annotations

import numpy as np

Columns = dict[str, np.ndarray]
SLACK = 4
"""Members are sorted out when a quarter more than wanted have come together."""


class KeySample:
    """The `size` members of the smallest keys, and their columns. What is kept does not depend on the order."""

    def __init__(self, size: int, columns: Columns) -> None:
        """Begin with no member; `columns` are empty arrays that say what belongs to one."""
        self.size = size
        self.limit = np.uint64(2**64 - 1)
        """Only smaller keys can still come in."""
        self._keys = [np.zeros(0, np.uint64)]
        self._columns = [columns]
        self._waiting = 0

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return list(self._columns[0])

    def kept_type(self, name: str) -> np.dtype:
        """The type of a column."""
        return self._columns[0][name].dtype

    def wanted(self, keys: np.ndarray) -> np.ndarray:
        """Indices of the keys that may come in."""
        return np.flatnonzero(keys < self.limit)

    def add(self, keys: np.ndarray, columns: Columns) -> None:
        """Take in members."""
        self._keys.append(keys)
        self._columns.append(columns)
        self._waiting += len(keys)
        if self._waiting > self.size + self.size // SLACK:
            self._sort_out()

    def kept(self) -> tuple[np.ndarray, Columns]:
        """Keys, in order, and columns."""
        self._sort_out()
        return self._keys[0], self._columns[0]

    def _sort_out(self) -> None:
        keys = np.concatenate(self._keys)
        order = np.argsort(keys)[: self.size]
        names = self._columns[0]
        columns = {name: np.concatenate([part[name] for part in self._columns])[order] for name in names}
        self._keys, self._columns, self._waiting = [keys[order]], [columns], len(order)
        if len(order) == self.size:
            self.limit = keys[order[-1]]
