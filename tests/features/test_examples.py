"""Top examples: against a brute-force oracle, at any cut into batches, saved, and shown."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor

from monosem.analysis import TokenEffects
from monosem.codes import SparseCodes
from monosem.data import ContextBatch, Document, PackedText
from monosem.errors import FileError
from monosem.features import ExampleCollector, Examples, peaks_on_a_word, print_features, token_text, top_examples
from monosem.models import SubjectModel
from monosem.sae import ReLUSAE, SAEMetadata, TopKSAE

LATENTS, LENGTH = 11, 13
Passage = tuple[float, int, int, list[int], list[float], int]


def stream(seed: int, letter_tokenizer: type) -> tuple[ContextBatch, Tensor, Tensor]:
    """Contexts of random documents, the positions kept, and dense random codes of every position."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcdefgh"), size=rng.integers(1, 30))) for _ in range(20)]
    batch = PackedText([Document(t) for t in texts], letter_tokenizer(), LENGTH).read(0, 1000)
    kept = ~batch.special & torch.from_numpy(rng.random(tuple(batch.tokens.shape)) < 0.9)
    dense = torch.from_numpy(rng.random((*batch.tokens.shape, LATENTS), dtype=np.float32))
    dense *= torch.from_numpy(rng.random(dense.shape) < 0.3)
    return batch, kept, dense


def by_brute_force(
    batch: ContextBatch, kept: Tensor, dense: Tensor, latent: int, n: int, before: int, after: int
) -> list[Passage]:
    """A latent's best place in each document, strongest first, with its window."""
    best: dict[int, tuple[float, int, int]] = {}
    for context in range(len(batch)):
        for p in range(LENGTH):
            value, document = float(dense[context, p, latent]), int(batch.document[context, p])
            if kept[context, p] and value > 0 and value > best.get(document, (0, 0, 0))[0]:
                best[document] = (value, context, p)
    found: list[Passage] = []
    for document, (value, context, p) in sorted(best.items(), key=lambda item: -item[1][0])[:n]:
        window = range(max(0, p - before), min(LENGTH, p + after + 1))
        activations = [float(dense[context, q, latent]) if kept[context, q] else 0.0 for q in window]
        tokens = [int(batch.tokens[context, q]) for q in window]
        found.append((value, document, int(batch.position[context, p]), tokens, activations, p - window[0]))
    return found


def collected(
    collector: ExampleCollector, batch: ContextBatch, kept: Tensor, dense: Tensor, cuts: list[int]
) -> Examples:
    bounds = [0, *sorted(cuts), len(batch)]
    for first, last in itertools.pairwise(bounds):
        columns = (batch.tokens, batch.document, batch.position, batch.padding)
        part = ContextBatch(*(column[first:last] for column in columns))
        collector(part, kept[first:last], SparseCodes.from_dense(dense[first:last][kept[first:last]]))
    return collector.examples()


def passages(examples: Examples, latent: int) -> list[Passage]:
    return [
        (e.activation, e.document, e.position, e.tokens.tolist(), e.activations.tolist(), e.peak)
        for e in examples[latent]
    ]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.sampled_from([1, 3, 7, 100]),
    window=st.sampled_from([(0, 0), (2, 1), (20, 8)]),
    cuts=st.lists(st.integers(0, 10), max_size=6),
)
def test_passages_are_those_of_brute_force_however_the_stream_is_cut(
    letter_tokenizer: type, seed: int, n: int, window: tuple[int, int], cuts: list[int]
) -> None:
    batch, kept, dense = stream(seed, letter_tokenizer)
    examples = collected(ExampleCollector(LATENTS, n, *window), batch, kept, dense, cuts)
    for latent in range(LATENTS):
        expected = by_brute_force(batch, kept, dense, latent, n, *window)
        assert passages(examples, latent) == expected
        assert len({document for _, document, *_ in expected}) == len(expected)
        firing = int(((dense[..., latent] > 0) & kept).sum())
        assert examples.firing[latent] == firing
        assert examples.firing_rate(latent) == pytest.approx(firing / int(kept.sum()))
    assert examples.n_tokens == int(kept.sum())


def test_stored_zeros_never_count(letter_tokenizer: type) -> None:
    batch, kept, dense = stream(0, letter_tokenizer)
    dense[..., 4] = 0
    values, indices = dense[kept].topk(LATENTS, dim=-1)
    codes = SparseCodes.from_top_k(values, indices.to(torch.int32), LATENTS)
    collector = ExampleCollector(LATENTS, 5)
    collector(batch, kept, codes)
    assert passages(collector.examples(), 4) == []
    assert collector.examples().firing[4] == 0
    assert passages(collector.examples(), 2) == by_brute_force(batch, kept, dense, 2, 5, 20, 8)


def test_a_batch_without_codes_or_positions_is_nothing(letter_tokenizer: type) -> None:
    batch, kept, dense = stream(0, letter_tokenizer)
    collector = ExampleCollector(LATENTS)
    collector(batch, kept, SparseCodes.from_dense(0 * dense[kept]))
    collector(batch, kept & False, SparseCodes.from_dense(dense[kept & False]))
    examples = collector.examples()
    assert examples.n_tokens == int(kept.sum())
    assert all(examples[latent] == [] for latent in range(LATENTS))
    collector(batch, kept, SparseCodes.from_dense(dense[kept]))
    assert passages(collector.examples(), 1) == by_brute_force(batch, kept, dense, 1, 12, 20, 8)


def test_a_latent_that_does_not_exist_is_an_error(letter_tokenizer: type) -> None:
    examples = collected(ExampleCollector(LATENTS), *stream(0, letter_tokenizer), cuts=[])
    for latent in (-1, LATENTS):
        with pytest.raises(IndexError, match="0 to 10"):
            examples[latent]


@pytest.mark.parametrize("empty", [False, True])
def test_examples_load_back_as_they_were_saved(letter_tokenizer: type, tmp_path: Path, empty: bool) -> None:
    batch, kept, dense = stream(3, letter_tokenizer)
    examples = collected(ExampleCollector(LATENTS, 4, 3, 2), batch, kept, dense * (not empty), [2, 5])
    examples.save(tmp_path / "features")
    loaded = Examples.load(tmp_path / "features")
    assert (loaded.n_latents, loaded.n_tokens, loaded.before) == (LATENTS, examples.n_tokens, 3)
    assert np.array_equal(loaded.firing, examples.firing)
    for latent in range(LATENTS):
        assert passages(loaded, latent) == passages(examples, latent)


@pytest.mark.parametrize("damage", ["missing", "torn", "another table"])
def test_damaged_features_are_named(letter_tokenizer: type, tmp_path: Path, damage: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    collected(ExampleCollector(LATENTS), *stream(3, letter_tokenizer), cuts=[]).save(tmp_path)
    path = tmp_path / "examples.parquet"
    if damage == "missing":
        path.unlink()
    elif damage == "torn":
        path.write_bytes(path.read_bytes()[:500])
    else:
        pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(FileError, match="monosem eval") as error:
        Examples.load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_top_examples_of_a_model_are_those_of_its_activations(tiny: SubjectModel) -> None:
    """The strongest token of a latent is where a plain capture and the encoder say."""
    hook = "resid_post.1"
    sae = TopKSAE(32, 40, k=4, seed=3)
    sae.metadata = SAEMetadata(hook=hook)
    texts = [f"{a} {b} in the {c}." for a in ("A man", "No one") for b in ("slept", "sang") for c in ("barn", "rain")]
    text = PackedText([Document(t) for t in texts], tiny.tokenizer, 12)
    examples = top_examples(sae, tiny, text.in_batches(2), n_examples=3)
    batch = text.read(0, 1000)
    kept = ~batch.special
    dense = sae.encode(tiny.capture(batch.tokens, [hook])[hook]).to_dense() * kept[..., None]
    assert examples.n_tokens == int(kept.sum())
    for latent in range(40):
        found = examples[latent]
        on = dense[..., latent] > 0
        assert examples.firing[latent] == int(on.sum())
        if found:
            assert found[0].activation == pytest.approx(dense[..., latent].max().item(), rel=1e-4)
            assert found[0].tokens[found[0].peak] == batch.tokens[dense[..., latent] == dense[..., latent].max()][0]


# Showing --------------------------------------------------------------------------------------------------------------


def test_token_text_puts_a_character_of_several_tokens_together(tokenizer: Any) -> None:
    for text in ("naïve café", "三日 — “so”", "🙂🙃 ok", "plain words"):
        tokens = np.array(tokenizer(text)["input_ids"])
        pieces = token_text(tokenizer, tokens)
        assert len(pieces) == len(tokens)
        assert "".join(pieces) == text
    tokens = np.array(tokenizer("🙂")["input_ids"])
    assert len(tokens) > 1
    assert token_text(tokenizer, tokens) == [""] * (len(tokens) - 1) + ["🙂"]


def test_token_text_of_a_window_that_begins_within_a_character_keeps_its_length(tokenizer: Any) -> None:
    tokens = np.array(tokenizer("🙂 ok then")["input_ids"])
    for first in range(1, 4):
        pieces = token_text(tokenizer, tokens[first:])
        assert len(pieces) == len(tokens) - first
        assert "".join(pieces).endswith(" ok then")


def plain(width: int = 80, color: str | None = None) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, color_system=color, force_terminal=color is not None, highlight=False), out


@pytest.fixture(scope="module")
def shown(tokenizer: Any) -> Examples:
    """Features of random codes over real tokens: words, line ends, characters of several bytes and of double width."""
    texts = [
        "Naïve men went to the café — and came back with 三日三日三日三日三日三日三日三日三日.\nThen it rained.",
        "A\tB\x07C 🙂🙂🙂 " + "word " * 30,
        "Unquestionably internationalisation and incomprehensibility, " * 3,
    ] * 8
    text = PackedText([Document(t) for t in texts], tokenizer, 64)
    collector = ExampleCollector(30)
    for batch in text.in_batches(3):
        kept = ~batch.special
        generator = torch.Generator().manual_seed(len(batch) + int(batch.tokens.sum()))
        dense = torch.rand(int(kept.sum()), 30, generator=generator)
        dense = torch.where(torch.rand(dense.shape, generator=generator) < 0.1, dense, 0)
        dense[:, 5] = 0
        dense[:, 6] *= 1e7
        collector(batch, kept, SparseCodes.from_dense(dense))
    return collector.examples()


@pytest.mark.parametrize("width", [40, 60, 80, 110, 200])
def test_without_colour_the_peak_stands_in_guillemets_and_lines_fit(
    shown: Examples, tokenizer: Any, width: int
) -> None:
    console, out = plain(width)
    print_features(console, range(30), shown, tokenizer, n_passages=8)
    lines = out.getvalue().splitlines()
    assert all(console.measure(line).maximum <= width for line in lines)
    heads = [line for line in lines if line.startswith("latent")]
    assert len(heads) == 30
    assert "latent 5never fired" not in out.getvalue()
    assert "never fired in" in out.getvalue()
    bodies = [line for line in lines if line.startswith("  ") and line.strip()]
    assert len(bodies) == 29 * 8
    assert all(line.count("«") == 1 and line.count("»") == 1 for line in bodies)
    assert not any(line.endswith("…") for line in bodies), "a passage was cut after it had been made to fit"


def test_the_peak_is_the_strongest_token(shown: Examples, tokenizer: Any) -> None:
    console, out = plain(200)
    print_features(console, [0], shown, tokenizer, n_passages=3)
    for line, example in zip(out.getvalue().splitlines()[1:4], shown[0], strict=False):
        peak = line[line.index("«") + 1 : line.index("»")]
        assert peak == _shown(token_text(tokenizer, example.tokens)[example.peak])
        assert line.split()[0] == f"{example.activation:.3g}"


def _shown(text: str) -> str:
    text = text.replace("\n", "↵").replace("\t", "⇥")
    return "".join(c if c.isprintable() else f"<{ord(c):02x}>" for c in text)


def test_with_colour_tokens_are_shaded_and_there_are_no_guillemets(shown: Examples, tokenizer: Any) -> None:
    console, out = plain(100, "truecolor")
    print_features(console, [0, 1], shown, tokenizer)
    codes = re.findall(r"\x1b\[([\d;]+)m", out.getvalue())
    shaded = [code for code in codes if "48;2;" in code]
    assert any("48;2;255;140;0" in code for code in shaded)
    assert not any(code.split(";")[0] == "2" for code in shaded), "only the numbers are dim"
    assert "«" not in out.getvalue()


def test_effects_are_printed_with_their_weights(shown: Examples, tokenizer: Any) -> None:
    console, out = plain(100)
    effects = [TokenEffects([(" river", 1.5), ("\n", 0.25)], [(" stone", -2.0)])]
    print_features(console, [0], shown, tokenizer, effects, n_passages=1)
    assert "promotes   « river» +1.50  «↵» +0.25" in out.getvalue()
    assert "suppresses « stone» -2.00" in out.getvalue()


def test_notable_latents_are_sparse_strong_and_of_different_words(tokenizer: Any) -> None:
    n = 4400
    word = tokenizer(" river stone house")["input_ids"]
    filler = tokenizer(" and")["input_ids"][0]
    tokens = torch.full((n // 16, 16), filler)
    document = torch.arange(n // 16)[:, None].expand(-1, 16)
    position = torch.arange(16).expand(n // 16, -1)
    dense = torch.zeros(n, 5)
    places = torch.arange(0, n, 110)
    for i, token in enumerate(word[:2]):
        tokens.view(-1)[places + i] = token
        dense[places + i, i] = 3.0 + i
    dense[places + 1, 2] = 1.0  # the same word as latent 1, weaker
    dense[:, 3] = 9.0  # always on
    dense[places[:5], 4] = 9.0  # too rare to say
    collector = ExampleCollector(5)
    batch = ContextBatch(tokens, document, position, torch.zeros_like(tokens, dtype=torch.bool))
    collector(batch, torch.ones_like(tokens, dtype=torch.bool), SparseCodes.from_dense(dense))
    examples = collector.examples()
    assert examples.notable(10) == [1, 0]
    assert examples.notable(1) == [1]
    telling: Callable[..., bool] = peaks_on_a_word(tokenizer)
    assert telling(examples[0][0])
    assert examples.notable(10, lambda _: False) == []


def test_latents_of_another_architecture_are_collected_too(tiny: SubjectModel) -> None:
    sae = ReLUSAE(32, 40, seed=3)
    text = PackedText([Document("A man slept in the barn.")], tiny.tokenizer, 12)
    assert top_examples(sae, tiny, text.in_batches(2), "resid_post.0").n_tokens > 5
