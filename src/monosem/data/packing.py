"""Packing: documents end to end, cut into contexts, so that no tail of a document is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from monosem.data.documents import Document
from monosem.errors import DataError

CHUNK = 256  # documents tokenised at a time


@dataclass(frozen=True)
class ContextBatch:
    """Contexts, and for every token where it comes from."""

    tokens: Int[Tensor, "contexts pos"]
    document: Int[Tensor, "contexts pos"]
    """Index of the document; -1 at special tokens (beginning of sequence, separators) and padding."""
    position: Int[Tensor, "contexts pos"]
    """Index of the token within its document; -1 where document is -1."""
    padding: Bool[Tensor, "contexts pos"]
    """True where nothing stands: after the end of the last document."""

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def special(self) -> Bool[Tensor, "contexts pos"]:
        return self.document < 0


class PackedText:
    """Tokenised documents as a sequence of contexts, made as far as it is read.

    The stream is: separator, document, separator, document, ... Each context is the next `context_length` tokens of it,
    or, with `prepend_bos`, a beginning-of-sequence token and the next `context_length - 1`. With a seed the documents
    come in another random order every epoch and the stream never ends; without, they come once, in the order given, and
    the last context is padded.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        tokenizer: Any,
        context_length: int,
        *,
        prepend_bos: bool = True,
        seed: int | None = None,
    ) -> None:
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if prepend_bos and bos is None:
            raise DataError("the tokenizer has no beginning-of-sequence token: use prepend_bos=False")
        if context_length < 2:
            raise DataError(f"context_length must be at least 2, got {context_length}")
        self.documents, self.tokenizer, self.context_length = documents, tokenizer, context_length
        self.seed = seed
        self._bos = bos if prepend_bos else None
        self._separator = eos if eos is not None else bos
        self._body = context_length - prepend_bos
        self._epoch, self._next = 0, 0
        self._order = self._shuffled(0)
        self._tokens = np.zeros(0, np.int32)
        self._document = np.zeros(0, np.int32)
        self._position = np.zeros(0, np.int32)

    def _shuffled(self, epoch: int) -> np.ndarray:
        if self.seed is None:
            return np.arange(len(self.documents))
        return np.random.default_rng((self.seed, epoch)).permutation(len(self.documents))

    @property
    def _ended(self) -> bool:
        return self.seed is None and self._next >= len(self.documents)

    def _extend(self) -> None:
        """Tokenise the next documents."""
        if self._next >= len(self._order):
            if not len(self._tokens):
                raise DataError("the text has no tokens")
            self._epoch, self._next = self._epoch + 1, 0
            self._order = self._shuffled(self._epoch)
        chosen = self._order[self._next : self._next + CHUNK]
        self._next += len(chosen)
        encoded = self.tokenizer([self.documents[i].text for i in chosen], add_special_tokens=False, verbose=False)[
            "input_ids"
        ]
        tokens, document, position = [self._tokens], [self._document], [self._position]
        for i, ids in zip(chosen, encoded, strict=True):
            if self._separator is not None:
                tokens.append(np.array([self._separator], np.int32))
                document.append(np.array([-1], np.int32))
                position.append(np.array([-1], np.int32))
            tokens.append(np.asarray(ids, np.int32))
            document.append(np.full(len(ids), i, np.int32))
            position.append(np.arange(len(ids), dtype=np.int32))
        self._tokens = np.concatenate(tokens)
        self._document = np.concatenate(document)
        self._position = np.concatenate(position)

    def read(self, start: int, stop: int) -> ContextBatch:
        """Contexts start to stop; fewer where the text ends."""
        while len(self._tokens) < stop * self._body and not self._ended:
            self._extend()
        first, last = start * self._body, min(stop * self._body, len(self._tokens))
        n_contexts = max(0, -(-(last - first) // self._body))
        missing = n_contexts * self._body - max(0, last - first)
        filler = self._separator if self._separator is not None else 0

        def cut(stream: np.ndarray, fill: int, bos: int) -> Tensor:
            part = np.pad(stream[first:last] if n_contexts else stream[:0], (0, missing), constant_values=fill)
            part = part.reshape(n_contexts, self._body)
            if self._bos is not None:
                part = np.pad(part, ((0, 0), (1, 0)), constant_values=bos)
            return torch.from_numpy(np.ascontiguousarray(part, dtype=np.int64))

        bos = self._bos if self._bos is not None else 0
        padding = cut(np.zeros(len(self._tokens), np.int32), 1, 0).bool()
        return ContextBatch(
            cut(self._tokens, filler, bos), cut(self._document, -1, -1), cut(self._position, -1, -1), padding
        )

    def in_batches(self, n_contexts: int) -> Iterator[ContextBatch]:
        """All contexts from the first on, a few at a time."""
        start = 0
        while len(batch := self.read(start, start + n_contexts)):
            yield batch
            start += n_contexts
