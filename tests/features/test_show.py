"""Features in the terminal, and the text of tokens."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from rich.console import Console
from shared_fixtures import random_gpt2
from small_store import small_sae

from monosem.codes import SparseCodes
from monosem.data import ContextBatch, Document, PackedText
from monosem.features import Feature, FeatureStore, Vocabulary, harvest, new_harvest, print_features, write_store
from monosem.features.show import visible
from monosem.features.state import Harvest
from monosem.models import SubjectModel
from monosem.sae import TopKSAE


@pytest.mark.parametrize("text", ["naïve café", "三日 — “so”", "🙂🙃 ok", "plain words", "↵\n\t\x07"])
def test_a_character_of_several_tokens_stands_at_the_last_of_them(tokenizer: Any, text: str) -> None:
    tokens = np.array(tokenizer(text)["input_ids"])
    pieces = Vocabulary.of(tokenizer).texts(tokens)
    assert len(pieces) == len(tokens)
    assert "".join(pieces) == text


def test_an_added_token_is_its_own_text_and_an_id_without_a_token_has_none(tokenizer: Any) -> None:
    """Added tokens are written as they are, not in the letters of byte-level vocabularies; ids may have holes."""
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["café", " naïve"])
    vocabulary = Vocabulary.of(more)
    ids = more("The café is naïve.")["input_ids"]
    assert {more.convert_tokens_to_ids("café"), more.convert_tokens_to_ids(" naïve")} <= set(ids)
    assert "".join(vocabulary.texts(ids)) == "The café is naïve."
    assert vocabulary.text(more.convert_tokens_to_ids("café")) == "café"


def holed(tokenizer: Any) -> Any:
    """The tokenizer with a token whose id is far beyond all others."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    plain["model"]["vocab"]["Ġ" + "z" * 9] = len(tokenizer) + 50
    own = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(plain)), **own)


def test_ids_may_have_holes(tokenizer: Any, tmp_path: Path) -> None:
    """A harvest counts by id, not by how many tokens there are; ids without a token promote nothing."""
    holes = holed(tokenizer)
    size = len(tokenizer) + 51
    assert len(holes) == len(tokenizer) + 1
    module = random_gpt2(vocabulary=size)
    model = SubjectModel(module, holes, "holes")
    sae = small_sae()
    harvested = harvest(sae, tmp_path, model, tokens=600, progress=False)
    assert len(harvested.vocabulary) == size
    assert harvested.vocabulary.text(size - 1) == " " + "z" * 9
    known = set(range(len(tokenizer))) | {size - 1}
    for feature in harvested.features(range(20)):
        assert {effect.token for effect in [*feature.promoted, *feature.suppressed]} <= known


def test_every_token_has_its_bytes(tokenizer: Any) -> None:
    vocabulary = Vocabulary.of(tokenizer)
    assert len(vocabulary) == len(tokenizer)
    for token in range(len(tokenizer)):
        assert vocabulary.text(token) == tokenizer.decode([token])
    tokens = tokenizer("🙂")["input_ids"]
    assert len(tokens) > 1
    assert vocabulary.texts(tokens) == [""] * (len(tokens) - 1) + ["🙂"]
    for first in range(1, len(tokens)):
        assert vocabulary.texts([*tokens[first:], *tokenizer(" and")["input_ids"]])[-1] == " and"
    assert tokenizer.bos_token_id in vocabulary.special


def plain(width: int = 80, color: Literal["truecolor"] | None = None) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, color_system=color, force_terminal=color is not None, highlight=False), out


@pytest.fixture(scope="module")
def shown(small_model: SubjectModel, tmp_path_factory: pytest.TempPathFactory) -> list[Feature]:
    """Features of random codes over real tokens: words, line ends, characters of several bytes and of double width."""
    rng = np.random.default_rng(0)
    said = "Naïve men went to the café — and came back with 三日三日三日.\nThen it rained A\tB\x07C 🙂🙂🙂"
    said += " word word word Unquestionably internationalisation and incomprehensibility,"
    words = said.split(" ")
    texts = [" ".join(rng.permutation(words)) for _ in range(24)]  # no two alike: one of equal ones would be shown
    text = PackedText([Document(t) for t in texts], small_model.tokenizer, 64)
    sae = TopKSAE(32, 30, k=3)
    sae.metadata = small_sae().metadata.model_copy(update={"context_length": 64})
    begun = new_harvest(sae, small_model, "resid_post.1", "texts")
    for batch in text.in_batches(3):
        kept = ~batch.special
        generator = torch.Generator().manual_seed(len(batch) + int(batch.tokens.sum()))
        dense = torch.rand(int(kept.sum()), 30, generator=generator)
        dense = torch.where(torch.rand(dense.shape, generator=generator) < 0.1, dense, 0)
        dense[:, 5] = 0
        dense[:, 6] *= 1e7
        begun.add(batch, kept, SparseCodes.from_dense(dense))
    folder = write_store(begun, tmp_path_factory.mktemp("shown"), sae, small_model)
    return FeatureStore(folder).features(range(30))


@pytest.mark.parametrize("width", [40, 60, 80, 110, 200])
def test_without_colour_the_peak_stands_in_guillemets_and_lines_fit(shown: list[Feature], width: int) -> None:
    console, out = plain(width)
    print_features(console, shown, n_passages=8)
    lines = out.getvalue().splitlines()
    assert all(console.measure(line).maximum <= width for line in lines)
    heads = [line for line in lines if line.startswith("latent")]
    assert len(heads) == 30
    assert "latent 5never fired" not in out.getvalue()
    assert "never fired in" in out.getvalue()
    bodies = [line for line in lines if re.match(r" +[\d.e+]+  ", line)]
    assert len(bodies) == 29 * 8
    assert all(line.count("«") == 1 and line.count("»") == 1 for line in bodies)
    assert not any(line.endswith("…") for line in bodies), "a passage was cut after it had been made to fit"


def test_the_peak_is_the_strongest_token(shown: list[Feature]) -> None:
    console, out = plain(200)
    print_features(console, shown[:1], n_passages=3)
    bodies = [line for line in out.getvalue().splitlines() if re.match(r" +[\d.e+]+  ", line)]
    for line, example in zip(bodies, shown[0].top, strict=False):
        peak = line[line.index("«") + 1 : line.index("»")]
        assert peak == _shown(example.texts[example.peak])
        assert line.split()[0] == f"{example.activation:.3g}"


def _shown(text: str) -> str:
    text = text.replace("\n", "↵").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"<{ord(c):02x}>" for c in text)


def test_with_colour_tokens_are_shaded_and_passages_have_no_guillemets(shown: list[Feature]) -> None:
    console, out = plain(100, "truecolor")
    print_features(console, shown[:2])
    codes = re.findall(r"\x1b\[([\d;]+)m", out.getvalue())
    shaded = [code for code in codes if "48;2;" in code]
    assert any("48;2;255;140;0" in code for code in shaded)
    assert not any(code.split(";")[0] == "2" for code in shaded), "only the numbers are dim"
    passages = [line for line in out.getvalue().splitlines() if "48;2;" in line]
    assert len(passages) == 10
    assert not any("«" in line for line in passages)


def test_effects_are_printed_with_their_weights(shown: list[Feature]) -> None:
    console, out = plain(100)
    print_features(console, shown[:1], n_passages=1)
    first, last = shown[0].promoted[0], shown[0].suppressed[0]
    assert f"promotes   «{visible(first.text)}» {first.weight:+.2f}  «" in out.getvalue()
    assert f"suppresses «{visible(last.text)}» {last.weight:+.2f}" in out.getvalue()


def test_a_feature_by_itself_prints_its_ranges_and_neighbours(shown: list[Feature]) -> None:
    text = repr(shown[3])
    name = f"{visible(shown[3].name)}  " if shown[3].name is not None else ""
    assert text.startswith(f"latent 3  {name}fires on")
    assert "of firings" in text
    assert f"nearest: {shown[3].neighbours[0].latent} (" in text
    assert all(len(line) <= 110 for line in text.splitlines())


def test_notable_latents_are_sparse_strong_and_of_different_words(small_model: SubjectModel, tmp_path: Path) -> None:
    n, tokenizer = 4400, small_model.tokenizer
    word = [tokenizer.convert_tokens_to_ids(name) for name in ("Ġriver", "Ġpeople")]
    filler = torch.tensor(tokenizer(" and the of in on it was for with a he she")["input_ids"])
    tokens = filler[torch.randint(len(filler), (n // 16, 16), generator=torch.Generator().manual_seed(0))]
    document = torch.arange(n // 16)[:, None].expand(-1, 16)
    position = torch.arange(16).expand(n // 16, -1)
    dense = torch.zeros(n, 5)
    places = torch.arange(0, n, 110)
    for i, token in enumerate(word):
        tokens.view(-1)[places + 7 * i] = token
        dense[places + 7 * i, i] = 3.0 + i
    dense[places + 7, 2] = 1.0  # the same word as latent 1, weaker
    dense[:, 3] = 9.0  # always on
    dense[places[:5], 4] = 9.0  # too rare to say
    batch = ContextBatch(tokens, document, position, torch.zeros_like(tokens, dtype=torch.bool))

    def store(folder: str, batch: ContextBatch) -> FeatureStore:
        harvest = Harvest(5, len(tokenizer), 16)
        harvest.add(batch, torch.ones_like(tokens, dtype=torch.bool), SparseCodes.from_dense(dense))
        return FeatureStore(write_store(harvest, tmp_path / folder, TopKSAE(32, 5, k=1), small_model))

    words = store("words", batch)
    assert words.notable(10) == [1, 0]
    assert words.notable(1) == [1]
    assert words.notable(10, whole_words=False) == [1, 0]
    assert [words[i].name for i in (0, 1)] == [tokenizer.decode([t]).strip() for t in word[:2]]
    fragment = tokenizer("ing")["input_ids"][0]
    tokens.view(-1)[places + 8] = fragment  # " people" goes on as " peopleing": its name is the whole of it
    assert [store("words", batch)[i].name for i in (0, 1)] == ["river", "people·ing"]
    tokens.view(-1)[places + 7] = tokenizer(",")["input_ids"][0]
    assert store("marks", batch).notable(10) == [0], "a comma is no word"
    assert store("marks", batch).notable(10, whole_words=False) == [1, 0]
