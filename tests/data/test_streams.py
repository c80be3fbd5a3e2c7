"""Long texts, data sets and conversations: in bounded memory, any part again, and what cannot be read is counted."""

from __future__ import annotations

import copy
import gzip
import json
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from monosem.data import ContextBatch, Document, DocumentStream, PackedText, documents, read_documents
from monosem.data import documents as module
from monosem.errors import ConfigError, DataError, FileError

TALK = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]


def same(a: ContextBatch, b: ContextBatch) -> bool:
    columns = ("tokens", "document", "position", "padding", "ends")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in columns)


def stream_of(texts: list[str]) -> DocumentStream:
    return DocumentStream(lambda start: (Document(t) for t in texts[start:]))


# Streams ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 5)
    monkeypatch.setattr("monosem.data.packing.WINDOW", 5)


@pytest.mark.usefixtures("small_windows")
def test_a_stream_read_in_order_is_the_list(letter_tokenizer: Any) -> None:
    texts = ["abcdefgh"[: n % 7 + 1] for n in range(23)]
    whole = PackedText([Document(t) for t in texts], letter_tokenizer(), 6).read(0, 100)
    assert same(PackedText(stream_of(texts), letter_tokenizer(), 6).read(0, 100), whole)


@pytest.mark.usefixtures("small_windows")
def test_a_shuffled_stream_has_every_document_once_an_epoch_and_any_part_again(letter_tokenizer: Any) -> None:
    texts = [chr(ord("a") + n) * 3 for n in range(23)]
    batch = PackedText(stream_of(texts), letter_tokenizer(), 6, seed=4).read(0, 80)
    order = batch.document[batch.position == 0].tolist()
    for epoch in range(3):
        part = order[23 * epoch : 23 * epoch + 23]
        assert sorted(part) == list(range(23))
        assert [{d // 5 for d in part[w : w + 5]} for w in range(0, 20, 5)] == [{0}, {1}, {2}, {3}]
        assert part != sorted(part)
    real = ~batch.special
    pairs = zip(batch.document[real].tolist(), batch.tokens[real].tolist(), strict=True)
    assert all(texts[document][0] == chr(token) for document, token in pairs)
    fresh = PackedText(stream_of(texts), letter_tokenizer(), 6, seed=4)
    for start, stop in ((60, 70), (3, 9), (70, 71), (0, 80)):
        assert same(fresh.read(start, stop), batch[start:stop])


@pytest.mark.usefixtures("small_windows")
def test_memory_does_not_grow_with_the_text(letter_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a text four times as long, read to its end, no more is kept but four times as many marks."""
    monkeypatch.setattr("monosem.data.packing.CHUNK_CHARACTERS", 8000)

    def kept(n_documents: int) -> tuple[int, int]:
        def read_from(start: int) -> Iterator[Document]:
            return (Document("abcdefgh" * 500) for _ in range(start, n_documents))

        text = PackedText(DocumentStream(read_from), letter_tokenizer(), 256)
        tracemalloc.start()
        n_tokens = sum(int((~batch.special).sum()) for batch in text.in_batches(32))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert n_tokens == 4000 * n_documents
        return peak, len(text._starts)

    (small, few), (large, many) = kept(60), kept(240)
    assert many == 4 * few
    assert large < small + 50_000, f"{small:,} bytes for a short text, {large:,} for a long one"


def test_going_on_tokenises_each_document_once_and_going_back_only_what_is_needed(letter_tokenizer: Any) -> None:
    counted: list[int] = []

    class Counting(letter_tokenizer):
        def __call__(self, text: Any, **options: Any) -> Any:
            counted.append(len(text))
            return super().__call__(text, **options)

    text = PackedText([Document("abcdefgh" * 200)] * 2000, Counting(), 64)
    for start in range(0, 40_000, 100):
        text.read(start, start + 100)
    assert sum(counted) < 2000 + 2 * max(counted)
    counted.clear()
    text.read(20_000, 20_010)
    assert len(counted) <= 2


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("kind", ["list", "stream"])
def test_a_reader_with_the_state_of_another_goes_on_where_that_one_was(
    letter_tokenizer: Any, monkeypatch: pytest.MonkeyPatch, kind: str, seed: int | None
) -> None:
    monkeypatch.setattr("monosem.data.packing.CHUNK", 3)
    texts, counted = [chr(ord("a") + n % 26) * (n % 40 + 1) for n in range(200)], list[int]()

    class Counting(letter_tokenizer):
        def __call__(self, text: Any, **options: Any) -> Any:
            counted.append(len(text))
            return super().__call__(text, **options)

    def opened() -> PackedText:
        documents = stream_of(texts) if kind == "stream" else [Document(t) for t in texts]
        return PackedText(documents, Counting(), 8, seed=seed)

    first = opened()
    first.skipped.add("one that is no text", warn=False)
    first.read(0, 300)
    state = json.loads(json.dumps(first.state()))
    expected, after, beginning = first.read(300, 340), first.read(400, 500), first.read(0, 3)
    other = opened()
    other.load_state(state)
    counted.clear()
    assert same(other.read(300, 340), expected)
    assert sum(counted) < 30
    assert same(other.read(400, 500), after)
    assert same(other.read(0, 3), beginning)
    assert len(other.skipped) == 1
    other.load_state(opened().state())  # of one that has read less
    assert other.state()["starts"] == first.state()["starts"]


def test_long_files_are_read_as_a_stream_and_short_ones_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(3000)))
    listed = read_documents(tmp_path)
    assert isinstance(listed, documents.Documents)
    monkeypatch.setattr(module, "IN_MEMORY", 1000)
    streamed = read_documents(tmp_path)
    assert isinstance(streamed, DocumentStream)
    assert [d for number in range(4) for d in streamed.window(number)] == listed
    assert streamed.window(1) == listed[1024:2048]
    assert streamed.window(3) == []


def test_a_long_text_file_becomes_documents_of_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 100)
    content = "".join(f"line {i}\n" for i in range(100))
    (tmp_path / "a.txt").write_text(content)
    found = read_documents(tmp_path / "a.txt")
    assert isinstance(found, list)
    assert 5 < len(found) < 15
    assert "".join(d.text for d in found) == content
    assert all(d.text.endswith("\n") and len(d.text) < 120 for d in found)


# Files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_zstd_files_are_read_whole_though_of_several_frames(tmp_path: Path, kind: str, frames: int) -> None:
    lines = [f"día {i}" if kind == "txt" else json.dumps({"text": f"día {i}"}) for i in range(9)]
    parts = ["".join(line + "\n" for line in lines[i::frames]) for i in range(frames)]
    packed = [pa.Codec("zstd").compress(part.encode(), asbytes=True) for part in parts]
    (tmp_path / f"a.{kind}.zst").write_bytes(b"".join(packed))
    (tmp_path / f"a.{kind}").write_text("".join(parts), encoding="utf-8")
    found, plain = read_documents(tmp_path / f"a.{kind}.zst"), read_documents(tmp_path / f"a.{kind}")
    assert isinstance(found, list)
    assert isinstance(plain, list)
    assert [d.text for d in found] == [d.text for d in plain]
    assert len(plain) == (1 if kind == "txt" else 9)


def test_a_torn_zstd_file_is_named(tmp_path: Path) -> None:
    whole = pa.Codec("zstd").compress(bytes(range(97, 123)) * 4000, asbytes=True)
    (tmp_path / "a.txt.zst").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match=r"a\.txt\.zst cannot be read"):
        read_documents(tmp_path / "a.txt.zst")


def test_what_cannot_be_read_is_skipped_counted_and_named_once(tmp_path: Path) -> None:
    rows = ['{"text": "one"}', '{"text": 5}', '{"text": "to', '{"label": 1}', '{"text": "two"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"words" * 99)[:-12])
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "d.txt").write_text("three")
    (tmp_path / "e.parquet").write_bytes(b"no table")
    with pytest.warns(UserWarning, match=r"skipped \(6\); the first: .*a\.jsonl .*line 2 is 5") as caught:
        found = read_documents(tmp_path)
    assert len(caught) == 1
    assert isinstance(found, list)
    assert [d.text for d in found] == ["one", "two", "three"]
    assert len(found.skipped) == 6
    assert "labels without text" in list(found.skipped.reasons)[2]


def test_a_stream_counts_what_it_skips_once_however_often_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_MEMORY", 0)
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{}\n{"text": "two"}\n[]\n')
    with pytest.warns(UserWarning, match="line 2") as caught:
        found = read_documents(tmp_path)
    assert isinstance(found, DocumentStream)
    assert [d.text for _ in range(3) for d in (*found.window(0), *found.window(1))] == ["one", "two"] * 3
    assert len(caught) == 1
    assert len(found.skipped) == 2


def test_labels_without_text_are_said_to_be_so(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": [1, 0]}), tmp_path / "a.parquet")
    with pytest.raises(FileError, match=r"\(it has labels without text: label\)"):
        read_documents(tmp_path / "a.parquet")
    pq.write_table(pa.table({"sentence": ["Words."], "label": [1]}), tmp_path / "a.parquet")
    with pytest.raises(FileError, match=r"\(it has labels without text: sentence, label\): call the column"):
        read_documents(tmp_path / "a.parquet")


# Conversations ----------------------------------------------------------------------------------------------------


class Chatty:
    """A letter tokenizer with a template; mixed in below."""

    chat_template = "yes"

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool) -> str:
        if messages[0]["role"] != "user":
            raise ValueError("conversations begin with the user")
        return "^" + "".join(f"<{m['role'][0]}>{m['content']}" for m in messages)


@pytest.fixture
def chatty(letter_tokenizer: Any) -> Any:
    """Its template begins with the beginning-of-sequence token."""
    return type("ChattyTokenizer", (Chatty, letter_tokenizer), {})(bos=ord("^"))


def test_conversations_are_written_by_the_tokenizer_s_template(
    tmp_path: Path, chatty: Any, letter_tokenizer: Any
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TALK}) + "\n" + json.dumps({"messages": TALK[1:]}) + "\n")
    pq.write_table(pa.table({"messages": [TALK]}), tmp_path / "b.parquet")
    for source, n_bad in ((tmp_path / "a.jsonl", 1), (tmp_path / "b.parquet", 0), ([TALK], 0)):
        text = PackedText(read_documents(source), chatty, 64)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            batch = text.read(0, 2)
        assert "".join(chr(t) for t in batch.tokens[~batch.special].tolist()) == "<u>Who?<a>Me."
        assert len(caught) == len(text.skipped) == n_bad
    with pytest.raises(DataError, match="no chat template"):
        PackedText(read_documents([TALK]), letter_tokenizer(), 64).read(0, 1)


def chat_tokenizer(template: str, tokenizer: Any) -> Any:
    """The bundled model's tokenizer with tokens of a chat, and a template."""
    new = copy.deepcopy(tokenizer)
    new.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    new.bos_token, new.eos_token, new.chat_template = "<|im_start|>", "<|im_end|>", template
    return new


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
FRAMED = "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {{ eos_token }}{% endfor %}"
BARE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("prepend_bos", [True, False])
@pytest.mark.parametrize("template", [CHATML, FRAMED, BARE])
def test_a_conversation_has_the_ids_of_its_template_and_nothing_between(
    tokenizer: Any, template: str, prepend_bos: bool, packing: bool
) -> None:
    chat = chat_tokenizer(template, tokenizer)
    talks = [[{"role": "user", "content": "Who goes there?"}, {"role": "assistant", "content": "A friend."}], TALK]
    expected = [chat.apply_chat_template(talk, tokenize=True, return_dict=False) for talk in talks]
    text = PackedText(read_documents(talks), chat, 200, prepend_bos=prepend_bos, packing=packing)
    batch = text.read(0, 9)
    assert len(batch) == (1 if packing else 2)
    for number, ids in enumerate(expected):
        of_it = batch.document == number
        assert batch.tokens[of_it].tolist() == ids
        assert batch.position[of_it].tolist() == list(range(len(ids)))
        special = [token in chat.all_special_ids for token in ids]
        assert batch.special[of_it].tolist() == special
    stream = batch.tokens[~batch.padding].tolist()
    begins = [] if ids_begin(template) or not prepend_bos else [chat.bos_token_id]
    assert stream == [*begins, *expected[0], *([] if packing else begins), *expected[1]]


def ids_begin(template: str) -> bool:
    """Whether what a template writes begins with the beginning-of-sequence token."""
    return template != BARE


def test_refused_conversations_are_counted_one_by_one_and_all_refused_is_said_at_once(chatty: Any) -> None:
    good, bad = TALK, TALK[1:]
    text = PackedText(read_documents([*[bad] * 50, good]), chatty, 16, seed=0)
    with pytest.warns(UserWarning, match="conversations begin with the user"):
        text.read(0, 20)
    assert len(text.skipped) == 50
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for seed in (None, 0):
            text = PackedText(read_documents([bad] * 50), chatty, 16, seed=seed)
            with pytest.raises(DataError, match=r"50 documents were skipped \(50 x the chat template refuses"):
                text.require_tokens()


@pytest.mark.parametrize("bad", [[{"role": "user"}], [{"role": 1, "content": "x"}], ["Who?", 5], [5]])
def test_what_is_no_conversation_is_refused(bad: Any) -> None:
    with pytest.raises(DataError, match="'messages' in item 1"):
        read_documents(["fine", bad])


# Data sets --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("datasets")
    folder = tmp_path_factory.mktemp("data_set")
    for split, n in (("train", 30), ("test", 3)):
        texts = [f"{split} {i}" for i in range(n)]
        pq.write_table(pa.table({"text": texts, "other": [t.upper() for t in texts]}), folder / f"{split}.parquet")
    return folder


@pytest.mark.usefixtures("small_windows")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_data_set_is_a_stream_of_its_rows(data_set: Path, letter_tokenizer: Any) -> None:
    found = read_documents(f"hub:{data_set}")
    assert isinstance(found, DocumentStream)
    assert [d.text for number in range(7) for d in found.window(number)] == [f"train {i}" for i in range(30)]
    assert [d.text for d in found.window(2)] == [f"train {i}" for i in range(10, 15)]
    test = read_documents(f"hub:{data_set}:test:other")
    assert isinstance(test, DocumentStream)
    assert [d.text for d in test.window(0)] == ["TEST 0", "TEST 1", "TEST 2"]
    whole = PackedText(found, letter_tokenizer(), 9, seed=1).read(0, 60)
    again = PackedText(read_documents(f"hub:{data_set}"), letter_tokenizer(), 9, seed=1)
    assert same(again.read(40, 60), whole[40:60])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_data_set_that_cannot_be_had_says_what_there_is(data_set: Path) -> None:
    with pytest.raises(FileError, match="no column 'words': it has text, other"):
        read_documents(f"hub:{data_set}:train:words")
    with pytest.raises(FileError, match=r"validation.*train"):
        read_documents(f"hub:{data_set}:validation")
    with pytest.raises(ConfigError, match="write hub:owner/name"):
        read_documents("hub:a/b:train:text:more")


def test_without_the_extra_a_data_set_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install 'monosem\[hub\]'"):
        read_documents("hub:owner/name")
