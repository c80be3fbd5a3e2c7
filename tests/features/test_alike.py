"""One example per text: equal documents, passages that documents share; padding is no part of a passage."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from small_store import LENGTH, small_sae
from streams import LATENTS, SMALL, Stream, assert_equal

from monosem.codes import SparseCodes
from monosem.data import Document, PackedText
from monosem.features import FeatureStore, Harvest, alike, harvest
from monosem.models import SubjectModel

SENTENCE = "the river ran past a mill and old men sat on its bank to watch boats go down with corn wool salt tin"
WORDS = re.findall(r"\w+", SENTENCE)


def texts_of(rng: np.random.Generator, n: int, length: int = 40) -> list[str]:
    return [" ".join(rng.choice(WORDS, length)) for _ in range(n)]


@pytest.mark.parametrize("packing", [True, False])
def test_of_equal_documents_one_is_shown(small_model: SubjectModel, tmp_path: Path, packing: bool) -> None:
    """30 texts, each 8 times, in another order each time: as many examples as with each once, all of other texts."""
    rng = np.random.default_rng(0)
    texts = texts_of(rng, 30)
    repeated = [text for _ in range(8) for text in rng.permutation(texts).tolist()]
    sae = small_sae()
    sae.metadata.packing = packing
    store = harvest(sae, tmp_path / "all", small_model, text=repeated, tokens=10**6, progress=False)
    once = harvest(sae, tmp_path / "once", small_model, text=texts, tokens=10**6, progress=False)
    full = 0
    for feature, alone in zip(*(each.features(range(store.n_latents)) for each in (store, once)), strict=True):
        shown = [repeated[example.document] for example in feature.top]
        assert len(set(shown)) == len(shown)
        assert len({"".join(example.texts) for example in feature.top}) == len(shown)
        full += len(shown) == store.index["settings"]["top"]
        assert packing or len(alone.top) == len(shown)
    assert full > 10, "distinct texts fill the list"


def stream_of_equals(letter_tokenizer: type, seed: int) -> Stream:
    """Random codes over documents of which many are equal."""
    stream = Stream(seed, letter_tokenizer)
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcdefgh"), size=rng.integers(1, 30))) for _ in range(6)]
    documents = [Document(texts[i]) for i in rng.integers(0, 6, 20)]
    stream.batch = PackedText(documents, letter_tokenizer(), stream.batch.tokens.shape[1]).read(0, 1000)
    shape = (*stream.batch.tokens.shape, LATENTS)
    stream.kept = ~stream.batch.special
    stream.pre = torch.from_numpy(rng.random(shape).astype(np.float32)) + 0.1
    stream.on = torch.from_numpy(rng.random(shape) < 0.4)
    stream.dense = stream.pre * stream.on * stream.kept[..., None]
    return stream


def test_what_is_kept_of_equal_documents_does_not_depend_on_cuts_or_merging(letter_tokenizer: type) -> None:
    for seed in range(4):
        stream = stream_of_equals(letter_tokenizer, seed)
        assert len(stream.batch[2:5].content) == 3
        whole, cut = stream.harvest([]), stream.harvest([1, 2, 5, 9])
        merged = stream.harvest([], 4).merge(stream.harvest([3], 0, 4))
        assert_equal(whole, cut)
        assert_equal(whole, merged, sums=1e-12)
        n = whole.layout.n_top
        for latent in range(LATENTS):
            best: dict[int, float] = {}
            values = stream.dense[..., latent][stream.kept].tolist()
            for content, value in zip(stream.batch.content[stream.kept].tolist(), values, strict=True):
                if value > 0:
                    best[content] = max(value, best.get(content, 0))
            held = whole.slots.place[latent, :n] >= 0
            found = sorted(whole.slots.activation[latent, :n][held].tolist(), reverse=True)
            assert found == pytest.approx(sorted(best.values(), reverse=True)[:n])
        assert np.array_equal(np.sort(shown_places(whole)), np.sort(shown_places(merged)))


def shown_places(harvest: Harvest) -> np.ndarray:
    chosen = alike.shown(harvest)
    return np.where(chosen, harvest.slots.place[:, : harvest.layout.n_top], -1)


def test_of_a_passage_in_different_documents_one_is_shown(small_model: SubjectModel) -> None:
    """40 documents, of which every second holds the same notice; the feature fires on a word of it, and elsewhere."""
    rng = np.random.default_rng(1)
    notice = "this book may be read by all the people who wish to take it home under the terms of its licence"
    texts = [
        f"{text} {notice} no {i}. {text}" if i % 2 else f"{text} people {text}"
        for i, text in enumerate(texts_of(rng, 40, 24))
    ]
    tokenizer = small_model.tokenizer
    (people,) = tokenizer(" people")["input_ids"]
    packed = PackedText([Document(text) for text in texts], tokenizer, 128, packing=False)
    found = Harvest(1, len(tokenizer), 128)
    for batch in packed.in_batches(7):
        kept = ~batch.special
        on = (batch.tokens == people) & kept
        strength = (3.0 + batch.document % 2 + batch.document / 1000) * on
        found.add(batch, kept, SparseCodes.from_dense(strength[kept].float()[:, None]))
    documents = found.slots.document[0, : found.layout.n_top][alike.shown(found)[0]]
    assert (documents % 2).sum() == 1, "the notice once, though it is in the 20 strongest"
    assert documents[documents % 2 == 1] == [39], "and where it is strongest"
    assert len(documents) == 1 + (found.layout.n_top - 20)


def test_padding_is_no_part_of_a_passage(small_model: SubjectModel, tmp_path: Path) -> None:
    texts = [f"{word} {i}" for i in range(40) for word in ("river", "mill", "boat")]
    sae = small_sae()
    sae.metadata.packing = False
    store = harvest(sae, tmp_path, small_model, text=texts, tokens=LENGTH * 200, progress=False)
    end, checked = small_model.tokenizer.eos_token, 0
    for feature in FeatureStore(tmp_path).features(range(store.n_latents)):
        for example in [*feature.top, *feature.samples, *feature.near_misses, *feature.silent]:
            text = "".join([*example.before, *example.texts, *example.after])
            assert text.removeprefix(end).removeprefix(" ") == texts[example.document]
            checked += 1
    assert checked > 100
    stored = store.sql("select tokens from passages").column("tokens").to_pylist()
    assert all(tokens.count(small_model.tokenizer.eos_token_id) <= 1 for tokens in stored)


def test_settings_ask_for_as_many_as_are_shown(letter_tokenizer: type) -> None:
    found = Stream(3, letter_tokenizer).harvest([4])
    assert alike.shown(found, of_text=False).sum(1).max() == SMALL.top
