"""Which positions are read, and reading ahead: the same as reading in place, and no thread stays."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from monosem.data import Document, PackedText, ReadAhead, kept_positions
from monosem.errors import ConfigError, DataError


class Encoder:
    """A letter tokenizer as encoders have them: a class token and a closing one, no beginning of sequence."""

    bos_token_id = eos_token_id = None
    cls_token_id, sep_token_id = 3, 4

    def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(c) for c in t] for t in texts]}


TEXTS = ["abc", "d", "efghij", "klmnopqrs", "tu"]


def test_positions_follow_the_rule(letter_tokenizer: type) -> None:
    batch = PackedText([Document(t) for t in TEXTS], letter_tokenizer(), 8).read(0, 99)
    real = ~batch.special
    assert torch.equal(kept_positions(batch), real)
    assert torch.equal(kept_positions(batch, exclude_special=False), ~batch.padding)
    skipping = kept_positions(batch, skip_first=3)
    assert torch.equal(skipping[:, 3:], real[:, 3:])
    assert not skipping[:, :3].any()
    last = kept_positions(batch, last_only=True)
    assert [chr(t) for t in batch.tokens[last].tolist()] == [t[-1] for t in TEXTS]
    both = kept_positions(batch, last_only=True, skip_first=3)
    assert torch.equal(both, last & skipping)


def test_without_packing_every_document_begins_a_context_of_its_own(letter_tokenizer: type) -> None:
    batch = PackedText([Document(t) for t in TEXTS], letter_tokenizer(), 6, packing=False).read(0, 99)
    words = [
        "".join(chr(t) for t in row[kept].tolist()) for row, kept in zip(batch.tokens, ~batch.special, strict=True)
    ]
    assert words == ["abc", "d", "efghi", "j", "klmno", "pqrs", "tu"]
    assert (batch.tokens[:, 0] == 1).all()
    assert batch.padding.sum(1).tolist() == [5 - len(w) for w in words]
    inputs = batch.inputs
    assert isinstance(inputs, dict)
    assert torch.equal(inputs["attention_mask"], (~batch.padding).long())
    assert batch.tokens[batch.ends].tolist() == [ord(c) for c in "cdjsu"]


def test_encoders_get_their_class_and_closing_tokens() -> None:
    batch = PackedText([Document(t) for t in TEXTS[:2]], Encoder(), 6, packing=False).read(0, 99)
    assert [row[~gap].tolist() for row, gap in zip(batch.tokens, batch.padding, strict=True)] == [
        [3, 97, 98, 99, 4],
        [3, 100, 4],
    ]
    assert batch.special.tolist() == [[True, False, False, False, True, True], [True, False, True, True, True, True]]


def test_reading_ahead_gives_what_reading_gives_and_reads_it_in_another_thread() -> None:
    threads: list[str] = []

    def read(start: int, stop: int) -> list[int]:
        threads.append(threading.current_thread().name)
        return list(range(start, stop))

    ahead = ReadAhead(read)
    spans = [(0, 3), (3, 6), (6, 7), (20, 22), (22, 24)]
    following = [(3, 6), (6, 7), (7, 9), (22, 24), (24, 26)]
    assert [ahead.read(s, f) for s, f in zip(spans, following, strict=True)] == [list(range(*s)) for s in spans]
    settle()
    in_place = [name for name in threads if name != "monosem-read-ahead"]
    assert len(in_place) == 2, "the first, and the one after a leap"
    assert len(threads) == 7


def test_the_time_of_waiting_is_what_reading_takes_longer_than_the_work() -> None:
    ahead = ReadAhead(lambda start, stop: time.sleep(0.05) or start)
    for start in range(4):
        ahead.read((start, start + 1), (start + 1, start + 2))
        time.sleep(0.15)
    assert 0.05 <= ahead.waited < 0.12, "only the first was waited for"
    settle()


def test_an_error_is_raised_where_its_part_is_asked_for_and_no_thread_stays() -> None:
    def read(start: int, stop: int) -> int:
        if start == 2:
            raise DataError("torn page")
        return start

    ahead = ReadAhead(read)
    assert [ahead.read((i, i + 1), (i + 1, i + 2)) for i in range(2)] == [0, 1]
    with pytest.raises(DataError, match="torn page"):
        ahead.read((2, 3), (3, 4))
    assert ahead.read((3, 4), (4, 5)) == 3
    settle()


def settle() -> None:
    """Every thread that reads ahead ends by itself."""
    until = time.monotonic() + 60
    while any(t.name == "monosem-read-ahead" for t in threading.enumerate()):
        assert time.monotonic() < until, "a thread stays"
        time.sleep(0.005)


def test_last_tokens_of_what_has_none_are_refused(letter_tokenizer: type) -> None:
    batch = PackedText([Document("abc")], letter_tokenizer(), 4).read(0, 1)
    bare = type(batch)(batch.tokens, batch.document, batch.position, batch.padding)
    with pytest.raises(ConfigError, match="last_only"):
        kept_positions(bare, last_only=True)
