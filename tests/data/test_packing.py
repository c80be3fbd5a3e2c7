"""Packing: nothing lost, nothing twice, everything in order, and every token knows where it comes from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosem.data import ContextBatch, Document, PackedText
from monosem.errors import DataError

documents_of = st.lists(st.text("abcdefgh", min_size=0, max_size=25), min_size=1, max_size=8)


def by_plain_loop(
    texts: list[str], order: list[int], length: int, bos: int | None, separator: int | None
) -> list[list[tuple[int, int, int, bool]]]:
    """Contexts of (token, document, position, padding), made one token at a time."""
    contexts: list[list[tuple[int, int, int, bool]]] = []

    def put(token: int, document: int, position: int, padding: bool = False) -> None:
        if not contexts or len(contexts[-1]) == length:
            contexts.append([] if bos is None else [(bos, -1, -1, False)])
        contexts[-1].append((token, document, position, padding))

    for document in order:
        if separator is not None:
            put(separator, -1, -1)
        for position, letter in enumerate(texts[document]):
            put(ord(letter), document, position)
    while contexts and len(contexts[-1]) < length:
        put(separator if separator is not None else 0, -1, -1, True)
    return contexts


def rows(batch: ContextBatch) -> list[list[tuple[int, int, int, bool]]]:
    columns = (batch.tokens, batch.document, batch.position, batch.padding)
    return [list(zip(*context, strict=True)) for context in zip(*(c.tolist() for c in columns), strict=True)]


def packed(texts: list[str], tokenizer: Any, length: int, **options: Any) -> PackedText:
    return PackedText([Document(t) for t in texts], tokenizer, length, **options)


@given(
    texts=documents_of,
    length=st.integers(2, 12),
    bos=st.booleans(),
    eos=st.booleans(),
    at_a_time=st.integers(1, 5),
)
def test_every_token_of_every_document_stands_once_and_in_order(
    letter_tokenizer: Any, texts: list[str], length: int, bos: bool, eos: bool, at_a_time: int
) -> None:
    tokenizer = letter_tokenizer(bos=1 if bos else None, eos=2 if eos else None)
    separator = 2 if eos else (1 if bos else None)
    expected = by_plain_loop(texts, list(range(len(texts))), length, 1 if bos else None, separator)
    text = packed(texts, tokenizer, length, prepend_bos=bos)
    batches = list(text.in_batches(at_a_time))
    assert [row for batch in batches for row in rows(batch)] == expected
    assert all(len(batch) == at_a_time for batch in batches[:-1])
    assert rows(packed(texts, tokenizer, length, prepend_bos=bos).read(0, 1000)) == expected


@given(texts=documents_of, length=st.integers(2, 9), bos=st.booleans())
def test_document_and_position_lead_back_to_the_letter(
    letter_tokenizer: Any, texts: list[str], length: int, bos: bool
) -> None:
    batch = packed(texts, letter_tokenizer(), length, prepend_bos=bos).read(0, 1000)
    real = ~batch.special
    for token, document, position in zip(
        batch.tokens[real].tolist(), batch.document[real].tolist(), batch.position[real].tolist(), strict=True
    ):
        assert texts[document][position] == chr(token)
    assert int(real.sum()) == sum(map(len, texts))
    assert set(batch.tokens[batch.special].tolist()) <= {1, 2}


@given(texts=documents_of, length=st.integers(2, 9))
def test_padding_stands_at_the_very_end_alone(letter_tokenizer: Any, texts: list[str], length: int) -> None:
    padding = packed(texts, letter_tokenizer(), length).read(0, 1000).padding
    flat = padding[:, 1:].reshape(-1).int()
    assert not padding[:, 0].any()
    assert (flat.diff() >= 0).all()
    assert flat.sum() < length - 1


def test_more_documents_than_are_tokenised_at_once(letter_tokenizer: Any) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcd"), size=rng.integers(0, 9))) for _ in range(700)]
    expected = by_plain_loop(texts, list(range(700)), 7, 1, 2)
    text = packed(texts, letter_tokenizer(), 7)
    assert rows(text.read(300, 317)) == expected[300:317]
    assert rows(text.read(0, 5)) == expected[:5]
    assert rows(text.read(0, 10_000)) == expected
    assert len(text.read(10_000, 10_001)) == 0


@settings(max_examples=40)
@given(texts=st.lists(st.text("abcdefgh", min_size=1, max_size=9), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_every_shuffled_epoch_has_every_document_once(letter_tokenizer: Any, texts: list[str], seed: int) -> None:
    batch = packed(texts, letter_tokenizer(), 5, seed=seed).read(0, 60)
    begins = batch.position == 0
    order = batch.document[begins].tolist()
    n_epochs = len(order) // len(texts)
    assert n_epochs >= 1
    for epoch in range(n_epochs):
        assert sorted(order[epoch * len(texts) : (epoch + 1) * len(texts)]) == list(range(len(texts)))
    assert not batch.padding.any()
    expected = by_plain_loop(texts, order, 5, 1, 2)
    assert rows(batch)[: len(expected) - 1] == expected[:60][: len(expected) - 1]


def test_the_order_follows_from_the_seed_and_differs_between_epochs(letter_tokenizer: Any) -> None:
    texts = [chr(ord("a") + i) * 3 for i in range(20)]

    def order(seed: int) -> list[int]:
        batch = packed(texts, letter_tokenizer(), 9, seed=seed).read(0, 30)
        return batch.document[batch.position == 0].tolist()

    first = order(0)
    assert first == order(0) != order(1)
    assert first[:20] != first[20:40]
    assert first[:20] != list(range(20))


def test_a_part_read_by_itself_is_the_part_of_the_whole(letter_tokenizer: Any) -> None:
    texts = ["abcdefgh" * n for n in range(1, 9)]
    whole = rows(packed(texts, letter_tokenizer(), 6, seed=3).read(0, 200))
    fresh = packed(texts, letter_tokenizer(), 6, seed=3)
    assert rows(fresh.read(150, 170)) == whole[150:170]
    assert rows(fresh.read(10, 20)) == whole[10:20]


def test_batches_are_of_64_bit_integers(letter_tokenizer: Any) -> None:
    batch = packed(["abc"], letter_tokenizer(), 4).read(0, 2)
    assert {batch.tokens.dtype, batch.document.dtype, batch.position.dtype} == {torch.int64}
    assert batch.padding.dtype == torch.bool


def test_what_cannot_be_packed_says_why(letter_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="prepend_bos=False"):
        packed(["abc"], letter_tokenizer(bos=None), 4)
    with pytest.raises(DataError, match="at least 2, got 1"):
        packed(["abc"], letter_tokenizer(), 1)
    with pytest.raises(DataError, match="no tokens"):
        packed([""], letter_tokenizer(bos=None, eos=None), 4, prepend_bos=False, seed=0).read(0, 1)
