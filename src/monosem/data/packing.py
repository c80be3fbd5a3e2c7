"""Packing: documents end to end, cut into contexts, so that no tail of a document is lost."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from threading import Lock
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from monosem.data.documents import WINDOW, Document, DocumentStream, Skipped
from monosem.errors import DataError
from monosem.text import first_token, is_encoder, last_token, special_tokens

CHUNK = 256  # documents tokenised at a time, at most
SAMPLED = 128  # documents by which a text's tokens are counted
CHUNK_CHARACTERS = 65_536  # or the documents that reach so many
TEMPLATE_MISTAKES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""What a chat template may end with, beside jinja's own errors."""
END, LAST_WORD, SPECIAL, PADDING = 1, 2, 4, 8
"""Marks of a token: the last of its document, the last that is not special, a special one of it; none at all."""

Columns = Int[np.ndarray, "5 tokens"]
"""Token, document, position, marks, a hash of what the document holds."""


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
    written: Bool[Tensor, "contexts pos"] | None = None
    """True at special tokens that stand in a document, written there or by a chat template."""
    last_words: Bool[Tensor, "contexts pos"] | None = None
    """True at the last token of a document that is not special."""
    content: Int[Tensor, "contexts pos"] | None = None
    """A hash of the tokens of the document, equal for equal documents; -1 where document is -1."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def __getitem__(self, part: slice) -> ContextBatch:
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        parts = {name: x[part] for name, x in columns.items() if isinstance(x, Tensor)}
        return replace(self, **parts)

    def of(self, contexts: Int[Tensor, " some"], length: int) -> ContextBatch:
        """Some of the contexts, up to a length."""
        columns: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: x[contexts, :length] for name, x in columns.items() if isinstance(x, Tensor)})

    @property
    def special(self) -> Bool[Tensor, "contexts pos"]:
        return self.document < 0 if self.written is None else (self.document < 0) | self.written

    @property
    def inputs(self) -> Tensor | dict[str, Tensor]:
        """What a model takes: tokens, with a mask where padding stands among them."""
        if self.packed:
            return self.tokens
        return {"input_ids": self.tokens, "attention_mask": (~self.padding).long()}


class Entry(NamedTuple):
    """A text to be tokenised."""

    document: int
    text: str
    framed: bool
    """Whether it says by itself where it begins, as conversations do."""


def _between(tokens: list[int], mark: int = 0) -> Columns:
    """Tokens of no document."""
    n = len(tokens)
    return np.array([tokens, [-1] * n, [-1] * n, [mark] * n, [-1] * n], np.int32)


class PackedText:
    """Tokenised documents as a sequence of contexts, of which any can be read at any time.

    The stream is: separator, document, separator, document, ... (a conversation is framed by its template, and a text
    that begins with the separator has it). Each context is the next `context_length` tokens of it, or, with
    `prepend_bos`, a beginning-of-sequence token and the next `context_length - 1`; where these begin with that token,
    it is not put twice, and padding stands at the end instead. With a seed the documents come in another random order
    every epoch and the stream never ends; without, they come once, in the order given, and the last context is padded.
    A stream of documents is shuffled within its windows.

    Without packing, every document begins a context of its own, and the rest of its last context is padding; in the
    place of separators, the contexts of encoders end with their closing token.

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
        self.documents, self.tokenizer, self.context_length = documents, tokenizer, context_length
        self.packing, self.seed = packing, seed
        self.skipped: Skipped = getattr(documents, "skipped", Skipped())
        separator = eos if eos is not None else tokenizer.bos_token_id
        closing = None if packing else last_token(tokenizer)
        self._bos = bos if prepend_bos else None
        self._opening = [separator] if packing and separator is not None else []
        self._closing = [] if closing is None else [closing]
        fillers = (getattr(tokenizer, "pad_token_id", None) if is_encoder(tokenizer) else None, separator, 0)
        self._filler = next(token for token in fillers if token is not None)
        self._body = context_length - prepend_bos
        self._words = self._body - len(self._closing)
        if self._words < 1 or context_length < 2:
            least = 2 + len(self._closing)
            raise DataError(f"context_length must be at least {least}, got {context_length}")
        self._special = np.array(sorted(special_tokens(tokenizer)), np.int64)
        self._lock = Lock()
        self._starts = array("q", [0])  # where in the stream each chunk begins
        self._marks = array("q", [0, 0, 0])  # and of what: epoch, window, number in the order of the window
        self._held: tuple[int, Columns] | None = None
        self._order: tuple[tuple[int, int], np.ndarray] | None = None

    @cached_property
    def n_tokens(self) -> int | None:
        """About how many tokens the text has, by those of some documents; None of a stream or of conversations."""
        if isinstance(self.documents, DocumentStream) or any(one.messages for one in self.documents):
            return None
        sizes = [len(one.text) for one in self.documents]
        some = range(0, len(sizes), -(-len(sizes) // SAMPLED)) if sizes else ()
        texts = [self.documents[i].text for i in some]
        read = sum(map(len, self.tokenizer(texts, add_special_tokens=False)["input_ids"])) if texts else 0
        return round(read * sum(sizes) / max(1, sum(map(len, texts)))) + len(sizes) * len(self._opening)

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
            last, entries, characters = first, list[Entry](), 0
            while last < len(order) and last - first < CHUNK and characters < CHUNK_CHARACTERS:
                place = int(order[last])
                document, last = documents[place], last + 1
                text = self._text(document, window * WINDOW + place)
                if text is not None:
                    entries.append(Entry(window * WINDOW + place, text, bool(document.messages)))
                    characters += len(text)
            columns = self._tokenise(entries)
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
                    raise self._emptiness()
                epoch, window = epoch + 1, 0
        self._starts.append(position)
        self._marks.extend((epoch, window, last))

    def require_tokens(self) -> None:
        """Look at the first tokens.

        Raises:
            DataError: there are none; how many documents were skipped for which reasons.
        """
        if not len(self.read(0, 1)):
            raise self._emptiness()

    def _emptiness(self) -> DataError:
        return DataError("the text has no tokens" + (f": {self.skipped.summary}" if self.skipped else ""))

    def _text(self, document: Document, number: int) -> str | None:
        """The words of a document: its text, or its conversation as the tokenizer's template writes it, if it does."""
        if not document.messages:
            return document.text
        if getattr(self.tokenizer, "chat_template", None) is None:
            raise DataError("the text is of conversations, and the tokenizer has no chat template to write them with")
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template([dict(m) for m in document.messages], tokenize=False)
        except (TemplateError, *TEMPLATE_MISTAKES) as error:
            reason, begins = " ".join(str(error).split()) or type(error).__name__, document.messages[0]["content"][:40]
            where = f"conversation {number} ({begins!r}...)"
            self.skipped.add(f"{where}: {reason}", common=f"the chat template refuses a conversation: {reason}")
            return None

    def _tokenise(self, entries: list[Entry]) -> Columns:
        options = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        texts = [entry.text for entry in entries]
        encoded = self.tokenizer(texts, verbose=False, **options)["input_ids"] if texts else []
        parts = [self._columns(entry, ids) for entry, ids in zip(entries, encoded, strict=True) if len(ids)]
        return np.concatenate([np.zeros((5, 0), np.int32), *parts], axis=1)

    def _columns(self, entry: Entry, ids: list[int]) -> Columns:
        """A document as it stands in the stream."""
        marks = np.where(np.isin(ids, self._special), SPECIAL, 0)
        marks[np.flatnonzero(marks == 0)[-1:]] |= LAST_WORD
        marks[-1] |= END
        content = crc32(np.array(ids, np.int32).tobytes()) & 0x7FFFFFFF
        columns = (ids, np.full(len(ids), entry.document), np.arange(len(ids)), marks, np.full(len(ids), content))
        own = np.array(columns, np.int32)
        if self.packing:
            framed = entry.framed or ids[:1] == self._opening
            return own if framed else np.concatenate([_between(self._opening), own], axis=1)
        pieces = np.split(own, range(self._words, len(ids), self._words), axis=1)
        closed = [np.concatenate([piece, _between(self._closing)], axis=1) for piece in pieces]
        rest = self._body - closed[-1].shape[1]
        return np.concatenate([*closed, _between([self._filler] * rest, PADDING)], axis=1)

    def _stream(self, first: int, last: int) -> Columns:
        """The tokens first to last of the stream."""
        number = bisect_right(self._starts, first) - 1
        parts: list[Columns] = [np.zeros((5, 0), np.int32)]
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
        whole = np.full((5, n_contexts * self._body), -1, np.int64)
        whole[0], whole[3] = self._filler, PADDING
        whole[:, : part.shape[1]] = part
        contexts = whole.reshape(5, n_contexts, self._body)
        if self._bos is not None:
            before = np.broadcast_to(np.array([self._bos, -1, -1, 0, -1])[:, None, None], (5, n_contexts, 1))
            after = np.broadcast_to(np.array([self._filler, -1, -1, PADDING, -1])[:, None, None], (5, n_contexts, 1))
            twice = contexts[0, :, :1] == self._bos
            once = np.concatenate([before, contexts], axis=2)
            contexts = np.where(twice, np.concatenate([contexts, after], axis=2), once)
        tokens, document, position, marks, content = torch.from_numpy(contexts)
        has = {mark: (marks & mark) != 0 for mark in (END, LAST_WORD, SPECIAL, PADDING)}
        columns = (tokens, document, position, has[PADDING], has[END], self.packing, has[SPECIAL], has[LAST_WORD])
        return ContextBatch(*columns, content=content)

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
