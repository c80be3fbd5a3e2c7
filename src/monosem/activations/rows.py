"""Ready vectors as a harvest reads them: every row a text of its own, of one position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.activations.inputs import described
from monosem.activations.source import ActivationSource
from monosem.activations.store_rows import StoreRows
from monosem.activations.stored import StoredActivations
from monosem.activations.vectors import as_tensor, check_finite, is_store, read_vectors, real_numbers
from monosem.data.batch import PlaceBatch
from monosem.errors import DataError
from monosem.files import open_parquet, require_whole

LONGEST_LABEL = 200  # characters


@dataclass(frozen=True)
class RowBatch(PlaceBatch):
    """Rows that follow one another. What stands at the one position of a row is always token 0."""

    rows: Float[Tensor, "rows ..."]
    first: int
    """Number of the first."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> RowBatch:
        return RowBatch(self.rows[part], self.first + (part.start or 0))

    @property
    def inputs(self) -> Tensor:
        return self.rows

    @property
    def tokens(self) -> Int[Tensor, "rows 1"]:
        return torch.zeros(len(self), 1, dtype=torch.int64)

    @property
    def document(self) -> Int[Tensor, "rows 1"]:
        return torch.arange(self.first, self.first + len(self))[:, None]

    @property
    def content(self) -> Int[Tensor, "rows 1"]:
        bits = np.ascontiguousarray(self.rows.flatten(1).float().cpu().numpy() + np.float32(0)).view(np.uint32)
        odd = np.random.default_rng(0).integers(1, 2**63, bits.shape[1], dtype=np.uint64) | np.uint64(1)
        return torch.from_numpy(((bits.astype(np.uint64) @ odd) >> np.uint64(2)).astype(np.int64))[:, None]

    @property
    def special(self) -> Bool[Tensor, "rows 1"]:
        return torch.zeros(len(self), 1, dtype=torch.bool)

    @property
    def padding(self) -> Bool[Tensor, "rows 1"]:
        return self.special


class VectorRows:
    """The rows of a tensor, an array, a file or a store, once, in order; and what is known of each in words."""

    context_length = 1

    def __init__(
        self, x: Tensor | np.ndarray | str | Path | ActivationSource, labels: Sequence[Any] | None = None
    ) -> None:
        """Open rows.

        Args:
            x: (rows, d), or (rows, source, d) for a dictionary of several sources; a file that `read_vectors` takes, or
                the folder or address of a store; or a store that is open, or a part of one.
            labels: a word or number for each; if not given, of a .parquet file its other columns, of a store where each
                row is from.

        Raises:
            FileError: the file is missing or cannot be read.
            DataError: there are no rows, or not as many labels.
        """
        if isinstance(x, str | Path) and is_store(x):
            x = StoredActivations(x)
        if isinstance(x, ActivationSource):
            self.x: Any = StoreRows(x)
            self.name, self.labels = self.x.name, self.x.labels() if labels is None else labels
            return
        self.name = described(x, "rows")
        if isinstance(x, str | Path):
            path = Path(x).expanduser()
            x, labels = read_vectors(path), read_labels(path) if labels is None else labels
        if x.ndim not in (2, 3) or not len(x):
            raise DataError(f"{self.name}: vectors have the shape (rows, d) and at least one row, not {tuple(x.shape)}")
        if labels is not None and len(labels) != len(x):
            raise DataError(f"{self.name}: {len(labels)} labels for {len(x)} rows")
        self.x, self.labels = real_numbers(x, self.name), labels

    def __len__(self) -> int:
        return len(self.x)

    def label(self, number: int) -> str | None:
        """What is known of a row; None without labels."""
        return None if self.labels is None else str(self.labels[number])[:LONGEST_LABEL]

    def read(self, start: int, stop: int) -> RowBatch:
        """Rows start to stop; fewer at the end."""
        require_whole(self.x)
        rows = as_tensor(self.x[start:stop]).to(torch.float32)
        check_finite(rows.flatten(1), torch.arange(start, start + len(rows)))
        return RowBatch(rows, start)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing is remembered of rows."""


def read_labels(path: Path) -> list[str] | None:
    """What a table says of its rows beside their vectors: of several columns as `name: value · ...`; None if nothing.

    Raises:
        FileError: the file cannot be read as a table.
    """
    import pyarrow as pa

    if path.suffix != ".parquet":
        return None
    with open_parquet(path) as file:
        kinds = {field.name: field.type for field in file.schema_arrow}
        vectors = [name for name, kind in kinds.items() if pa.types.is_nested(kind)]
        numbers = [name for name, kind in kinds.items() if pa.types.is_floating(kind) or pa.types.is_integer(kind)]
        names = [name for name in kinds if name not in (vectors or numbers) and not pa.types.is_nested(kinds[name])]
        columns = file.read(names).to_pydict() if names else {}
    if not columns:
        return None
    if len(columns) == 1:
        return [str(value) for value in next(iter(columns.values()))]
    rows = zip(*columns.values(), strict=True)
    return [" · ".join(f"{name}: {value}" for name, value in zip(columns, row, strict=True)) for row in rows]
