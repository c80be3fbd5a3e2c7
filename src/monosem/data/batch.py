"""What a model reads at a time, and which of its positions are wanted; whatever is read, text or images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from threading import Thread
from time import perf_counter
from typing import Any, Generic, Protocol, TypeVar

from jaxtyping import Bool, Int
from torch import Tensor

from monosem.errors import ConfigError


class Batch(Protocol):
    """Contexts (pieces of text, or images), with what is known of every position."""

    @property
    def inputs(self) -> Any:
        """What `model.capture` takes."""
        ...

    @property
    def tokens(self) -> Int[Tensor, "contexts pos"]:
        """What stands at each position: a token of the vocabulary, or a place in the image."""
        ...

    @property
    def document(self) -> Int[Tensor, "contexts pos"]:
        """Index of the document or image."""
        ...

    @property
    def position(self) -> Int[Tensor, "contexts pos"]:
        """Index within the document or image."""
        ...

    @property
    def content(self) -> Int[Tensor, "contexts pos"] | None:
        """A hash of what the document or image holds, equal for equal ones; None where that is not known."""
        ...

    @property
    def special(self) -> Bool[Tensor, "contexts pos"]:
        """True at positions that stand for no piece of the data: beginning of sequence, separators, class tokens."""
        ...

    @property
    def padding(self) -> Bool[Tensor, "contexts pos"]:
        """True where nothing stands."""
        ...

    @property
    def ends(self) -> Bool[Tensor, "contexts pos"] | None:
        """True at the last token of a document; None where there is no such thing."""
        ...

    @property
    def last_words(self) -> Bool[Tensor, "contexts pos"] | None:
        """True at the last token of a document that is not special; None where there is no such thing."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice) -> Batch: ...


class PlaceBatch(ABC):
    """What batches of all that is no text share: what stands at a position is the place itself, and nothing ends."""

    @property
    @abstractmethod
    def tokens(self) -> Int[Tensor, "contexts pos"]: ...

    @property
    def position(self) -> Int[Tensor, "contexts pos"]:
        return self.tokens

    @property
    def ends(self) -> None:
        return None

    @property
    def last_words(self) -> None:
        return None


class BatchReader(Protocol):
    """Contexts in an order that is fixed once and for all."""

    @property
    def context_length(self) -> int:
        """Positions in a context."""
        ...

    def read(self, start: int, stop: int) -> Batch:
        """Contexts start to stop; fewer where the data end."""
        ...

    def state(self) -> dict[str, Any]:
        """What a new reader of the same data can begin with: it then need not read again what comes before."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Begin with what a reader of the same data has left."""
        ...


def kept_positions(
    batch: Batch, *, exclude_special: bool = True, skip_first: int = 0, last_only: bool = False
) -> Bool[Tensor, "contexts pos"]:
    """The positions that an SAE reads.

    Args:
        batch: contexts.
        exclude_special: leave out special positions.
        skip_first: leave out so many positions at the beginning of every context, padding not counted.
        last_only: keep the last token of every document alone (of those that are not left out as special).

    Raises:
        ConfigError: `last_only` of what has no last tokens.
    """
    kept = ~batch.padding & ~batch.special if exclude_special else ~batch.padding
    if last_only:
        ends = batch.last_words if exclude_special else batch.ends
        if ends is None:
            raise ConfigError("last_only is for text: these contexts have no last tokens")
        kept = kept & ends
    if skip_first:
        kept = kept & ((~batch.padding).cumsum(1) > skip_first)
    return kept


Read = TypeVar("Read")
Span = tuple[int, int]


class ReadAhead(Generic[Read]):
    """Reads the next span in a thread while the one before is worked on. A thread lives for one span."""

    def __init__(self, read: Callable[[int, int], Read]) -> None:
        self.waited = 0.0
        """Seconds for which the caller had to wait."""
        self._read = read
        self._ahead: tuple[Span, Thread, list[Read | BaseException]] | None = None

    def read(self, span: Span, following: Span) -> Read:
        """As `read(*span)`; then `following` is begun."""
        began = perf_counter()
        result = self._take(span)
        if result is None:
            result = self._read(*span)
        self.waited += perf_counter() - began
        if isinstance(result, BaseException):
            raise result
        box: list[Read | BaseException] = []
        thread = Thread(target=self._fill, args=(following, box), name="monosem-read-ahead")
        self._ahead = (following, thread, box)
        thread.start()
        return result

    def settle(self) -> None:
        """Wait until nothing is being read."""
        if self._ahead is not None:
            self._ahead[1].join()

    def _take(self, span: Span) -> Read | BaseException | None:
        """What the thread has read, if it was this."""
        ahead, self._ahead = self._ahead, None
        if ahead is None:
            return None
        ahead[1].join()
        return ahead[2][0] if ahead[0] == span else None

    def _fill(self, span: Span, box: list[Read | BaseException]) -> None:
        try:
            box.append(self._read(*span))
        except BaseException as error:  # noqa: BLE001 - whatever it is, `read` raises it again
            box.append(error)
