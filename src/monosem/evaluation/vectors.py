"""Ready rows to evaluate on: no model, so reconstruction and firing alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from monosem.activations import ActivationSource, Rows, first_rows
from monosem.activations.vectors import check_finite
from monosem.errors import ConfigError, DataError, MismatchError
from monosem.evaluation.downstream import EVALUATING
from monosem.evaluation.going_on import Keeper
from monosem.evaluation.metric import Column, Seen
from monosem.evaluation.truth import Planted
from monosem.sae import SAE
from monosem.work import doing

ROWS = 8192
POOL_ROWS = 32_768
PLANTED_SEED = 3_000_017
"""Of rows to evaluate on: an SAE is hardly trained on this one."""


class VectorReading:
    """Rows in order, beside what must be predicted of them; each a document of its own where nothing says which."""

    def __init__(self, sae: SAE, pieces: Callable[[], Iterator[Rows]], rows: int) -> None:
        """What the first of the dictionaries reads, of which all have the shapes; `pieces` begins anew."""
        self.sae, self._begin, self.rows = sae, pieces, rows

    @staticmethod
    def of(sae: SAE, x: Tensor | np.ndarray, target: Tensor | np.ndarray | None, rows: int) -> VectorReading:
        """Ready activations.

        Args:
            sae: any dictionary.
            x: (rows, *in_shape), what it reads.
            target: (rows, *out_shape), what it must predict, if that is not x; several sources count as one long row.
            rows: as many of them, at most.

        Raises:
            MismatchError: they are of other shapes.
            ConfigError: this SAE predicts another site, and no target was given.
            DataError: there are no rows, or one is not finite.
        """
        _require_shape(x, sae.in_shape, "reads")
        if target is not None:
            _require_shape(target, sae.out_shape, "predicts")
            if len(target[:rows]) != len(x[:rows]):
                raise MismatchError(f"{len(x)} rows to read and {len(target)} to predict: give a target for every row")

        def pieces() -> Iterator[Rows]:
            for start in range(0, min(rows, len(x)), POOL_ROWS):
                stop = min(start + POOL_ROWS, rows)
                yield Rows(_tensor(x[start:stop]), None if target is None else _tensor(target[start:stop]), None)

        return VectorReading(sae, pieces, min(rows, len(x)))

    @staticmethod
    def of_source(sae: SAE, source: ActivationSource, rows: int) -> VectorReading:
        """The first rows of a source, a pool at a time; documents are those of a store."""
        n = rows if source.whole.n_rows is None else min(rows, source.whole.n_rows)
        return VectorReading(sae, lambda: first_rows(source, rows), n)

    @staticmethod
    def of_planted(sae: SAE, planted: Planted, rows: int) -> VectorReading:
        """Rows of a generator with known truth, drawn a pool at a time."""

        def pieces() -> Iterator[Rows]:
            for number, start in enumerate(range(0, rows, POOL_ROWS)):
                yield Rows(planted.sample(min(POOL_ROWS, rows - start), PLANTED_SEED + number).x, None, None)

        return VectorReading(sae, pieces, rows)

    def sample(self, rows: int) -> tuple[Tensor, Tensor]:
        """What is read and what is predicted, flat, of the first rows."""
        found, n = list[tuple[Tensor, Tensor]](), 0
        for x, target, _ in self._read():
            found.append((x, target))
            n += len(x)
            if n >= rows:
                break
        if not n:
            raise DataError("there are no rows to evaluate on")
        x, target = (torch.cat([side[i] for side in found])[:rows] for i in (0, 1))
        return x, target.flatten(1)

    def seen(self, columns: Mapping[str, Column], keeper: Keeper | None = None) -> Iterator[Seen]:
        """All of them, some at a time; nothing is kept, for it takes no longer than to read what was."""
        start = 0
        with doing(EVALUATING, self.rows, unit="rows") as stage:
            for parts in self._read():
                for x, target, own in zip(*(part.split(ROWS) for part in parts), strict=True):
                    yield Seen(x, target.flatten(1), own, columns, start=start)
                    start += len(x)
                    stage.advance(len(x))

    def _read(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What an SAE reads and predicts, beside it, and the documents."""
        begun, sae = 0, self.sae
        for x, target, documents in self._begin():
            if target is None and not sae.autoencodes:
                raise ConfigError(
                    f"this {sae.architecture} predicts another site than it reads: give the rows that it must predict "
                    "too, evaluate(sae, x, target=y)"
                )
            numbers = torch.arange(begun, begun + len(x))
            begun += len(x)
            inputs = _rows(sae, x, sae.in_shape, "reads", numbers)
            goal = inputs if target is None else _rows(sae, target, sae.out_shape, "predicts", numbers)
            yield inputs, goal, numbers if documents is None else documents


def _tensor(given: Tensor | np.ndarray) -> Tensor:
    """A copy of an array: a mapped file cannot be written to."""
    return torch.from_numpy(np.array(given)) if isinstance(given, np.ndarray) else given


def _rows(sae: SAE, given: Tensor, shape: tuple[int, ...], does: str, numbers: Tensor) -> Tensor:
    """Rows beside the SAE; `numbers` are their places in the data."""
    _require_shape(given, shape, does)
    found = given.to(sae.W_enc.device, torch.float32)
    check_finite(found.flatten(1), numbers)
    return found


def _require_shape(given: Tensor | np.ndarray, shape: tuple[int, ...], does: str) -> None:
    if tuple(given.shape[1:]) != shape or not given.ndim:
        wanted = " x ".join(map(str, shape))
        raise MismatchError(f"the SAE {does} rows of width {wanted}, got activations of shape {tuple(given.shape)}")
