"""The tokens of a text as bytes, so that a store can be read without its tokenizer."""

from __future__ import annotations

import codecs
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

LONGEST_CHARACTER = 4  # bytes, and so at most as many tokens


class Vocabulary:
    """The bytes of every token id."""

    def __init__(self, pieces: Sequence[bytes], special: Sequence[int] = ()) -> None:
        self.pieces = list(pieces)
        self.special = frozenset(special)

    @staticmethod
    def of(tokenizer: Any) -> Vocabulary:
        """All tokens of a tokenizer (transformers). An id that stands for none has no bytes."""
        names = {token: name for name, token in tokenizer.get_vocab().items()}
        added = {token: str(said) for token, said in tokenizer.added_tokens_decoder.items()}  # as they are written
        special = set(tokenizer.all_special_ids)
        characters = _byte_level() if _decodes(tokenizer, "ByteLevel") else None
        word_pieces = _decodes(tokenizer, "WordPiece")
        pieces: list[bytes] = []
        for token in range(vocabulary_size(tokenizer)):
            name = names.get(token)
            if token in added:
                pieces.append(added[token].encode())
            elif name is None:
                pieces.append(b"")
            elif characters and token not in special and all(c in characters for c in name):
                pieces.append(bytes(characters[c] for c in name))
            elif len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
                pieces.append(bytes([int(name[3:5], 16)]))
            elif word_pieces and token not in special:  # whole words stand alone, "##" goes on with the one before
                pieces.append((name[2:] if name.startswith("##") else f" {name}").encode())
            elif name.startswith("▁"):
                pieces.append(name.replace("▁", " ").encode())
            else:
                pieces.append(tokenizer.decode([token]).encode())
        return Vocabulary(pieces, sorted(special))

    def __len__(self) -> int:
        return len(self.pieces)

    @functools.cached_property
    def known(self) -> np.ndarray:
        """The ids that stand for a token."""
        return np.array([token for token, piece in enumerate(self.pieces) if piece], np.int64)

    def text(self, token: int) -> str:
        """One token by itself, with replacement characters where it is not whole ones."""
        return self.pieces[token].decode(errors="replace")

    def texts(self, tokens: Sequence[int] | np.ndarray) -> list[str]:
        """The text of each token; a character that spans several tokens stands at the last of them."""
        numbers, whole = np.asarray(tokens).tolist(), self._whole
        if all(whole[token] is not None for token in numbers):
            return [whole[token] or "" for token in numbers]
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        texts = [decoder.decode(self.pieces[token]) for token in numbers]
        rest = decoder.decode(b"", final=True)
        if texts and rest:
            texts[-1] += rest
        return texts

    def find(self, text: str) -> list[int]:
        """Tokens whose text is this, with or without a space before it, in any case."""
        wanted = text.strip().lower() or text
        return [i for i in range(len(self)) if self._plain[i] == wanted]

    @functools.cached_property
    def _whole(self) -> list[str | None]:
        """The text of each token that is whole characters; None for the others."""
        texts: list[str | None] = []
        for piece in self.pieces:
            try:
                texts.append(piece.decode())
            except UnicodeDecodeError:
                texts.append(None)
        return texts

    @functools.cached_property
    def _plain(self) -> list[str]:
        texts = [self.text(token) for token in range(len(self))]
        return [text.strip().lower() or text for text in texts]


def vocabulary_size(tokenizer: Any) -> int:
    """Every token id is smaller. Ids may have holes, so that there are more of them than tokens."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def _decodes(tokenizer: Any, kind: str) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and kind in repr(backend.decoder)


def _byte_level() -> dict[str, int]:
    """The printable characters that stand for bytes in byte-level vocabularies (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
