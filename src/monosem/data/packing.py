"""Packing: documents end to end, cut into contexts, so that no tail of a document is lost."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from monosem.data.documents import WINDOW, Document, DocumentStream, Skipped
from monosem.errors import DataError

CHUNK = 256  # documents tokenised at a time, at most
CHUNK_CHARACTERS = 65_536  # or the documents that reach so many
END, PADDING = 1, 2  # marks of a token: the last one of its document; none at all

Columns = Int[np.ndarray, "4 tokens"]
"""Token, document, position, marks."""


@dataclass(frozen=True)
class ContextBatch:
    """Contexts, and for every token where it comes from."""

    tokens: Int[Tensor, "contexts pos"]
    document: Int[Tensor, "contexts pos"]
    """Index of the document; -1 at special tokens (beginning of sequence, separators) and padding."""
    position: Int[Tensor, "contexts pos"]
    """Index of the token within its document; -1 where document is -1."""
    padding: Bool[Tensor, "contexts pos"]
    """True where nothing stands: after the end of the last document, or of each if they are not packed."""
    ends: Bool[Tensor, "contexts pos"] | None = None
    """True at the last token of a document; None where that is not known."""
    packed: bool = True

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, part: slice) -> ContextBatch:
        columns = (self.tokens, self.document, self.position, self.padding)
        ends = None if self.ends is None else self.ends[part]
        return ContextBatch(*(column[part] for column in columns), ends=ends, packed=self.packed)

    @property
    def special(self) -> Bool[Tensor, "contexts pos"]:
        return self.document < 0

    @property
    def inputs(self) -> Tensor | dict[str, Tensor]:
        """What a model takes: tokens, with a mask where padding stands among them."""
        if self.packed:
            return self.tokens
        return {"input_ids": self.tokens, "attention_mask": (~self.padding).long()}


def first_token(tokenizer: Any) -> int | None:
    """The token that begins a sequence: beginning-of-sequence, else the class token of encoders, if there is one."""
    bos = tokenizer.bos_token_id
    return bos if bos is not None else getattr(tokenizer, "cls_token_id", None)


class PackedText:
    """Tokenised documents as a sequence of contexts, of which any can be read at any time.

    The stream is: separator, document, separator, document, ... Each context is the next `context_length` tokens of it,
    or, with `prepend_bos`, a beginning-of-sequence token and the next `context_length - 1`. With a seed the documents
    come in another random order every epoch and the stream never ends; without, they come once, in the order given, and
    the last context is padded. A stream of documents is shuffled within its windows.

    Without packing, every document begins a context of its own, and the rest of its last context is padding; in the
    place of separators, documents end with the closing token of encoders, if the tokenizer has one.

    Memory holds the tokens read last, and four numbers for every chunk of about 16,000 tokens met so far, so that
    reading there again begins there. To read far ahead, all that comes before is tokenised once; a reader that is given
    the `state` of another goes on where that one was.
    """

    def __init__(
        self,
        documents: Sequence[Document] | DocumentStream,
        tokenizer: Any,
        context_length: int,
        *,
        prepend_bos: bool = True,
        packing: bool = True,
        seed: int | None = None,
    ) -> None:
        bos, eos = first_token(tokenizer), tokenizer.eos_token_id
        if prepend_bos and bos is None:
            raise DataError("the tokenizer has no beginning-of-sequence token: use prepend_bos=False")
        if context_length < 2:
            raise DataError(f"context_length must be at least 2, got {context_length}")
        self.documents, self.tokenizer, self.context_length = documents, tokenizer, context_length
        self.packing, self.seed = packing, seed
        self.skipped: Skipped = getattr(documents, "skipped", Skipped())
        separator = eos if eos is not None else tokenizer.bos_token_id
        self._bos = bos if prepend_bos else None
        self._opening = [separator] if packing and separator is not None else []
        closing = getattr(tokenizer, "sep_token_id", None) if tokenizer.bos_token_id is None else None
        self._closing = [closing] if not packing and closing is not None else []
        self._filler = separator if separator is not None else 0
        self._body = context_length - prepend_bos
        self._lock = Lock()
        self._starts = array("q", [0])  # where in the stream each chunk begins
        self._marks = array("q", [0, 0, 0])  # and of what: epoch, window, number in the order of the window
        self._held: tuple[int, Columns] | None = None
        self._order: tuple[tuple[int, int], np.ndarray] | None = None

    def _window(self, number: int) -> Sequence[Document]:
        if isinstance(self.documents, DocumentStream):
            return self.documents.window(number)
        return self.documents if number == 0 else ()

    def _order_of(self, epoch: int, window: int, length: int) -> np.ndarray:
        """The order in which the documents of a window come."""
        if self._order is None or self._order[0] != (epoch, window):
            if self.seed is None:
                order = np.arange(length)
            else:
                order = np.random.default_rng((self.seed, epoch, window) if window else (self.seed, epoch))
                order = order.permutation(length)
            self._order = ((epoch, window), order)
        return self._order[1]

    def _chunk(self, number: int) -> Columns:
        """The tokens of a chunk; where the next one begins is noted."""
        if self._held is None or self._held[0] != number:
            epoch, window, first = self._marks[3 * number : 3 * number + 3]
            documents = self._window(window)
            order = self._order_of(epoch, window, len(documents))
            last, texts, characters = first, list[str](), 0
            while last < len(order) and len(texts) < CHUNK and characters < CHUNK_CHARACTERS:
                texts.append(self._text(documents[order[last]]))
                characters += len(texts[-1])
                last += 1
            columns = self._tokenise(texts, (window * WINDOW + order[first:last]).tolist())
            self._held = (number, columns)
            if number + 1 == len(self._starts):
                self._note(self._starts[number] + columns.shape[1], epoch, window, last, len(order))
        return self._held[1]

    def _note(self, position: int, epoch: int, window: int, last: int, length: int) -> None:
        """Remember where the next chunk begins, if there is one."""
        if last >= length:
            window, last = window + 1, 0
            if not self._window(window):
                if self.seed is None:
                    return
                if position == 0:
                    raise DataError("the text has no tokens")
                epoch, window = epoch + 1, 0
        self._starts.append(position)
        self._marks.extend((epoch, window, last))

    def _text(self, document: Document) -> str:
        """The words of a document: its text, or its conversation as the tokenizer's template writes it."""
        if not document.messages:
            return document.text
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise DataError("the text is of conversations, and the tokenizer has no chat template to write them with")
        try:
            text = self.tokenizer.apply_chat_template([dict(m) for m in document.messages], tokenize=False)
        except Exception as error:  # a template may raise anything
            self.skipped.add(f"a conversation ({document.messages[0]['content'][:40]!r}...): {error}")
            return ""
        return text.removeprefix(getattr(self.tokenizer, "bos_token", None) or "")

    def _tokenise(self, texts: list[str], documents: list[int]) -> Columns:
        options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        encoded = self.tokenizer(texts, verbose=False, **options)["input_ids"] if texts else []
        parts: list[Columns] = [np.zeros((4, 0), np.int32)]
        for document, ids in zip(documents, encoded, strict=True):
            n_before, n = len(self._opening), len(ids)
            size = n_before + n + len(self._closing)
            if not self.packing:
                size = -(-size // self._body) * self._body if n else 0
            part = np.full((4, size), -1, np.int32)
            part[0], part[3] = self._filler, PADDING
            if size:
                part[0, : n_before + n + len(self._closing)] = [*self._opening, *ids, *self._closing]
                part[3, : n_before + n + len(self._closing)] = 0
                part[1, n_before : n_before + n] = document
                part[2, n_before : n_before + n] = np.arange(n)
                part[3, n_before + n - 1 : n_before + n] = END if n else 0
            parts.append(part)
        return np.concatenate(parts, axis=1)

    def _stream(self, first: int, last: int) -> Columns:
        """The tokens first to last of the stream."""
        number = bisect_right(self._starts, first) - 1
        parts: list[Columns] = [np.zeros((4, 0), np.int32)]
        while number < len(self._starts) and self._starts[number] < last:
            chunk, begin = self._chunk(number), self._starts[number]
            if begin + chunk.shape[1] > first:
                parts.append(chunk[:, max(0, first - begin) : last - begin])
            number += 1
        return np.concatenate(parts, axis=1)

    def read(self, start: int, stop: int) -> ContextBatch:
        """Contexts start to stop; fewer where the text ends."""
        with self._lock:
            part = self._stream(start * self._body, stop * self._body)
        n_contexts = -(-part.shape[1] // self._body)
        whole = np.full((4, n_contexts * self._body), -1, np.int64)
        whole[0], whole[3] = self._filler, PADDING
        whole[:, : part.shape[1]] = part
        contexts = whole.reshape(4, n_contexts, self._body)
        if self._bos is not None:
            before = np.broadcast_to(np.array([self._bos, -1, -1, 0])[:, None, None], (4, n_contexts, 1))
            contexts = np.concatenate([before, contexts], axis=2)
        tokens, document, position, marks = torch.from_numpy(contexts)
        return ContextBatch(tokens, document, position, marks == PADDING, marks == END, self.packing)

    def state(self) -> dict[str, Any]:
        """Where chunks begin, as far as they are known, and what was skipped."""
        with self._lock:
            return {"starts": list(self._starts), "marks": list(self._marks), **self.skipped.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        with self._lock:
            self.skipped.load_state(state)
            if len(state.get("starts", ())) > len(self._starts):
                self._starts, self._marks = array("q", state["starts"]), array("q", state["marks"])

    def in_batches(self, n_contexts: int) -> Iterator[ContextBatch]:
        """All contexts from the first on, a few at a time."""
        start = 0
        while len(batch := self.read(start, start + n_contexts)):
            yield batch
            start += n_contexts
