"""What training reads from: a sequence of pools of shuffled rows, each of which can be made again at any time."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.activations.content import rows_hash
from monosem.errors import ConfigError, DataError
from monosem.sae import SAEMetadata


class Place(NamedTuple):
    """A place in a source: so many rows into a pool."""

    pool: int = 0
    row: int = 0


START = Place()


class ActivationSource(ABC):
    """Shuffled activations, in pools. A pool is a pure function of its number: that is what makes runs resumable."""

    d_in: int
    """Width of a row, or of each source of it."""
    n_sources: int = 1
    """How many activations side by side a dictionary reads (crosscoders)."""
    n_rows: int | None = None
    """Rows of an epoch; None where they have no end, or where it is not known."""
    _last: tuple[int, Tensor] | None = None

    @property
    def metadata(self) -> SAEMetadata:
        """What an SAE trained on this should remember of it."""
        return SAEMetadata()

    @property
    def device(self) -> torch.device | None:
        """Where its rows are made, by a model; None where they are read and go wherever they are wanted."""
        return None if self.whole is self else self.whole.device

    @property
    def words(self) -> str:
        """What it is of, for a report."""
        return "the rows given"

    @property
    def d_out(self) -> int:
        """Width of what is to be predicted."""
        return self.d_in

    @property
    def whole(self) -> ActivationSource:
        """The source of which this is a part, and whose batches it shares with the other parts."""
        return self

    def by_context(self) -> ActivationSource:
        """The same activations context by context; sources by context share their batches as this one's do.

        Raises:
            ConfigError: the text that they are of is not at hand.
        """
        raise ConfigError(
            f"of {self.words} the text is not at hand, from which the model would have to read on: train on "
            "ms.activations(model, hook, text=...)"
        )

    def take(self, rows: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch own_columns"]:
        """This part's columns of rows of the whole source."""
        return rows

    def split(self, rows: Float[Tensor, "batch columns"]) -> tuple[Tensor, Tensor | None]:
        """Rows of a pool as what a dictionary reads, and what it must predict if that is something else."""
        return rows, None

    @abstractmethod
    def make_pool(self, number: int) -> Float[Tensor, "rows d_in"]:
        """The shuffled rows of one pool; no rows at the end of the source."""

    def pool(self, number: int) -> Float[Tensor, "rows d_in"]:
        """As `make_pool`; the last one is remembered."""
        if self._last is None or self._last[0] != number:
            self._last = None
            self._last = (number, self.make_pool(number))
        return self._last[1]

    def documents(self, number: int) -> Int[Tensor, " rows"] | None:
        """Of which document each row of a pool is, where that is known."""
        return None

    def state(self) -> dict[str, Any]:
        """Numbers and words with which a new source of the same data need not read again what comes before a pool."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        """Begin with what another source of the same data has left; pools are the same without."""

    def identity(self) -> dict[str, Any]:
        """All that decides the rows, as JSON: data, model, hook points, positions, buffer, seed. Where a source of
        one's own does not say it, its first rows stand for it.
        """
        return {"source": type(self).__name__, "first rows": rows_hash(self.pool(0)[:256])}

    def to_read(self, rows: int) -> float:
        """Tokens that are to be read yet for so many rows in all, beside what is being read; 0 if they are there."""
        return 0.0

    def probe(self) -> dict[str, Tensor]:
        """A small batch to store with an SAE: `activations`, or `tokens` and `kept` from which to get them."""
        return {"activations": self.pool(0)[:256].clone()}

    def probe_activations(self, probe: dict[str, Tensor]) -> Float[Tensor, "rows d_in"]:
        """The rows that a probe stands for."""
        return probe["activations"]


class Rows(NamedTuple):
    """Some rows of a source."""

    x: Tensor
    """What is read."""
    target: Tensor | None
    """What must be predicted, if that differs."""
    documents: Tensor | None
    """(rows,) of which document each is, where that is known."""


def first_rows(source: ActivationSource, n: int) -> Iterator[Rows]:
    """The first rows of a source, at most those of one epoch, a pool at a time.

    Raises:
        DataError: the source has no rows.
    """
    whole = source.whole
    left = n if whole.n_rows is None else min(n, whole.n_rows)
    for number in itertools.count():
        rows = source.take(whole.pool(number)[:left])
        if not len(rows):
            if not number:
                raise DataError("the source of activations is empty")
            return
        documents = whole.documents(number)
        yield Rows(*source.split(rows), None if documents is None else documents[:left])
        left -= len(rows)


def batches(
    source: ActivationSource, batch_size: int, place: Place = START
) -> Iterator[tuple[Float[Tensor, "batch d_in"], Place]]:
    """Batches from a place on, each with the place after it. Batches may span pools; an incomplete last one is dropped.

    A batch is a copy: the pool that it is from can be let go before the next one is made.

    Raises:
        DataError: the source has no rows at all.
    """
    number, row = place
    rest, pool = None, source.pool(number)
    if number == 0 and not len(pool):
        raise DataError("the source of activations is empty")
    while True:
        need = batch_size - (0 if rest is None else len(rest))
        part = pool[row : row + need]
        row += len(part)
        if len(part) < need:
            rest = part.clone() if rest is None else torch.cat([rest, part])
            number, row = number + 1, 0
            del pool, part
            pool = source.pool(number)
            if not len(pool):
                return
            continue
        yield (part.clone() if rest is None else torch.cat([rest, part])), Place(number, row)
        rest = None
