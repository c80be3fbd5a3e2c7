"""Packing: nothing lost, nothing twice, everything in order, and every token knows where it comes from."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monosem.data import ContextBatch, Document, PackedText, kept_positions
from monosem.errors import DataError

documents_of = st.lists(st.text("abcdefgh", min_size=0, max_size=25), min_size=1, max_size=8)


def by_plain_loop(
    texts: list[str], order: list[int], length: int, bos: int | None, separator: int | None
) -> list[list[tuple[int, int, int, bool]]]:
    """Contexts of (token, document, position, padding): first the stream, token by token, then cut."""
    stream: list[tuple[int, int, int, bool]] = []
    for document in order:
        if separator is not None and texts[document] and ord(texts[document][0]) != separator:
            stream.append((separator, -1, -1, False))
        for position, letter in enumerate(texts[document]):
            stream.append((ord(letter), document, position, False))
    contexts: list[list[tuple[int, int, int, bool]]] = []
    for start in range(0, len(stream), length - (bos is not None)):
        part = stream[start : start + length - (bos is not None)]
        if bos is not None and part[0][0] != bos:
            part = [(bos, -1, -1, False), *part]
        filler = (separator if separator is not None else 0, -1, -1, True)
        contexts.append(part + [filler] * (length - len(part)))
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
    eos=st.sampled_from([None, 1, 2, ord("a")]),
    at_a_time=st.integers(1, 5),
)
def test_every_token_of_every_document_stands_once_and_in_order(
    letter_tokenizer: Any, texts: list[str], length: int, bos: bool, eos: int | None, at_a_time: int
) -> None:
    """Also where the separator is the token that begins a context, and where texts begin with it."""
    tokenizer = letter_tokenizer(bos=1 if bos else None, eos=eos)
    separator = eos if eos is not None else (1 if bos else None)
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


# Special tokens -------------------------------------------------------------------------------------------------------


def test_special_tokens_written_in_documents_are_special_where_they_stand(tokenizer: Any) -> None:
    chat = copy.deepcopy(tokenizer)
    chat.add_special_tokens({"additional_special_tokens": ["<|turn|>"]})
    chat.add_tokens(["whereupon"])
    end, turn, plain = (chat.convert_tokens_to_ids(t) for t in ("<|endoftext|>", "<|turn|>", "whereupon"))
    texts = ["It ended.<|endoftext|>Then <|turn|>he whereupon went", "and<|endoftext|>"]
    for packing in (True, False):
        batch = packed(texts, chat, 30, packing=packing).read(0, 9)
        inside = batch.document >= 0
        ids = [chat(text, add_special_tokens=False)["input_ids"] for text in texts]
        assert batch.tokens[inside].tolist() == [*ids[0], *ids[1]]
        assert batch.position[inside].tolist() == [*range(len(ids[0])), *range(len(ids[1]))]
        special = batch.special & inside
        assert sorted(batch.tokens[special].tolist()) == sorted([end, turn, end])
        assert plain in batch.tokens[~batch.special]
        kept = kept_positions(batch)
        assert not torch.isin(batch.tokens[kept], torch.tensor([end, turn])).any()
        assert kept.sum() == len(ids[0]) + len(ids[1]) - 3
        assert torch.equal(kept_positions(batch, exclude_special=False), ~batch.padding)


def test_the_last_token_of_a_document_is_a_word_where_special_ones_are_left_out(tokenizer: Any) -> None:
    text = "It ended here.<|endoftext|>"
    batch = packed([text], tokenizer, 30, packing=False).read(0, 9)
    word = tokenizer.decode(batch.tokens[kept_positions(batch, last_only=True)])
    every = tokenizer.decode(batch.tokens[kept_positions(batch, last_only=True, exclude_special=False)])
    assert (word, every) == (".", "<|endoftext|>")


@pytest.mark.parametrize("packing", [True, False])
def test_no_context_begins_with_two_beginnings(tokenizer: Any, packing: bool) -> None:
    """Though the separator is the beginning-of-sequence token, and some texts begin with it themselves."""
    bos = tokenizer.bos_token_id
    assert tokenizer.eos_token_id == bos
    texts = ["<|endoftext|>Once upon a time.", "There was a king. " * 9, "<|endoftext|>He had", "a daughter."] * 5
    for seed in (None, 1):
        batch = packed(texts, tokenizer, 9, packing=packing, seed=seed).read(0, 60)
        assert (batch.tokens[:, 0] == bos).all()
        assert not (((batch.tokens[:, :-1] == bos) & (batch.tokens[:, 1:] == bos)) & ~batch.padding[:, 1:]).any()
        of_it = batch.document == 1
        ids = tokenizer(texts[1], add_special_tokens=False)["input_ids"]
        assert batch.tokens[of_it].tolist()[: len(ids)] == ids


def test_an_encoder_s_contexts_begin_with_its_class_token_and_end_with_its_separator(roberta_tokenizer: Any) -> None:
    cls, sep, pad = (getattr(roberta_tokenizer, f"{name}_token_id") for name in ("cls", "sep", "pad"))
    batch = packed(["abcdefgh", "ij"], roberta_tokenizer, 6, packing=False).read(0, 9)
    letters = roberta_tokenizer("abcdefghij", add_special_tokens=False)["input_ids"]
    assert batch.tokens.tolist() == [
        [cls, *letters[:4], sep],
        [cls, *letters[4:8], sep],
        [cls, *letters[8:], sep, pad, pad],
    ]
    assert batch.special.tolist() == [[t in (cls, sep, pad) for t in row] for row in batch.tokens.tolist()]
    assert batch.padding.sum() == 2
    with pytest.raises(DataError, match="at least 3, got 2"):
        packed(["abc"], roberta_tokenizer, 2, packing=False)


def test_texts_of_no_tokens_leave_nothing_and_all_of_them_are_an_error(letter_tokenizer: Any) -> None:
    tokens = packed(["", "ab", ""], letter_tokenizer(), 6).read(0, 9).tokens
    assert tokens.tolist() == [[1, 2, ord("a"), ord("b"), 2, 2]]
    with pytest.raises(DataError, match="no tokens"):
        packed(["", ""], letter_tokenizer(), 6, seed=0).read(0, 1)
