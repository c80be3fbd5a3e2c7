"""Scores: right explanations near 1, shuffled ones near chance, whatever the order; no test was in a prompt."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import ChatServer, reader
from planted import WORDS, Planted
from scipy.stats import binomtest

from monosem.errors import ConfigError, DataError
from monosem.explain import measures
from monosem.explain.cases import Case, case, level_of
from monosem.explain.failures import ELSEWHERE, MISSES, OUTPUT, UNREADABLE, failure
from monosem.explain.judge import Judge
from monosem.explain.questions import Answer, Question
from monosem.explain.replies import understood
from monosem.explain.score import JUDGED, SHUFFLED, plan, score
from monosem.explain.scorers import Detection, Fuzzing, Intruder
from monosem.explain.unjudged import Similarity
from monosem.explain.windows import ExampleRows, marked, plain
from monosem.explain.written import questions, written
from monosem.features import FeatureStore
from monosem.features.explanations import Explanation, Explanations


@pytest.fixture
def judge(chat: ChatServer, tmp_path: Path) -> Judge:
    return Judge("reader", chat.url, kept=tmp_path / "kept.sqlite")


class Reader:
    """The server's model without the server."""

    name = "reader"

    def answer(self, questions: list[Question], progress: bool = True) -> list[Answer]:
        def said(q: Question) -> str:
            return reader({"messages": [{"content": q.instructions}, {"content": q.text}]})

        return [understood(q, said(q)) for q in questions]


def test_an_endpoint_explains_planted_features_rightly_and_is_scored_near_one(
    planted: Planted, judge: Judge, chat: ChatServer
) -> None:
    made = written(planted.store, list(range(12)), judge, progress=False)
    assert [item.text for item in made] == [f"the word {word}" for word in planted.words]
    assert {item.explainer for item in made} == {"reader"}
    table = score(planted.store, made, ["detection", "intruder"], judge, limit=3, progress=False)
    assert table.row("detection").value.value > 0.9
    assert {row.judge for row in table.rows} == {"reader"}
    assert {found.judge for item in table.explanations for found in item.scores.values()} == {"reader"}
    asked = len(chat.requests)
    again = score(planted.store, made, ["detection", "intruder"], judge, limit=3, progress=False)
    assert (len(chat.requests), str(again)) == (asked, str(table))


def test_right_explanations_are_near_one_and_shuffled_ones_near_chance(planted: Planted) -> None:
    table = score(planted.store, planted.explanations, list(JUDGED), Reader(), progress=False)
    assert table.row("detection").value.value > 0.9
    assert table.row("fuzzing").value.value > 0.9
    assert table.row("intruder").value.value > 0.8
    assert table.row("simulation").value.value > 0.6
    assert table.row("fuzzing", SHUFFLED).value.high < 0.6
    assert table.row("detection", SHUFFLED).value.high < 0.75
    assert abs(table.row("simulation", SHUFFLED).value.value) < 0.2
    for words in ("detection", SHUFFLED, "L5", "Judged: detection by reader", "Failures: none"):
        assert words in str(table)


def test_no_test_example_stands_in_a_prompt_of_the_explainer(planted: Planted) -> None:
    """Searched for: no window that is tested, nor the words around its peak, in what the explainer was shown."""
    asked, rows = questions(planted.store, list(range(12))), ExampleRows(planted.store)
    searched = 0
    for latent, (question, shown) in asked.items():
        item = Explanation(latents=[latent], text="x", explainer="x", seen=rows.of(latent, shown))
        assert len(item.seen) >= len(shown)
        tested = case(item, planted.store[latent], rows)
        prompt = question.text.replace("<<", "").replace(">>", "")
        for example in shown:
            assert plain(example) in prompt, "the search finds what is there"
        for example in [*tested.firings, *tested.silent, *tested.near]:
            around = dataclasses.replace(example, texts=example.texts[max(0, example.peak - 4) : example.peak + 5])
            assert plain(example) not in prompt
            assert plain(around) not in prompt
            searched += 1
    assert searched > 100


def test_all_that_is_tested_is_what_it_is_said_to_be(planted: Planted) -> None:
    rows = ExampleRows(planted.store)
    for item in planted.explanations:
        tested = case(item, planted.store[item.latents[0]], rows)
        assert len(tested.firings) >= 6
        assert len(tested.silent) >= 2
        for example, level in zip(tested.firings, tested.levels.tolist(), strict=True):
            assert level_of(float(example.activations.max()), tested.feature.max or 0) == level
        for example in [*tested.silent, *tested.near]:
            assert not example.activations.any()
        assert tested.weights.sum() == pytest.approx(1)
        spans = [(e.passage, e.start, e.start + len(e.texts)) for e in [*tested.firings]]
        for i, (passage, start, stop) in enumerate(spans):
            for other, begin, end in spans[:i]:
                assert passage != other or stop <= begin or end <= start, "no two windows of a test overlap"


def test_scores_do_not_move_with_the_order_of_examples_or_explanations(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = score(planted.store, planted.explanations, list(JUDGED), Reader(), progress=False)
    read = FeatureStore.features

    def mixed(self: FeatureStore, latents: list[int]) -> list[Any]:
        generator = random.Random(5)

        def of(examples: list[Any]) -> list[Any]:
            return generator.sample(examples, len(examples))

        kinds = ("top", "samples", "near_misses", "silent")
        return [dataclasses.replace(f, **{kind: of(getattr(f, kind)) for kind in kinds}) for f in read(self, latents)]

    monkeypatch.setattr(FeatureStore, "features", mixed)
    items = random.Random(1).sample(list(planted.explanations), 12)
    other = score(
        planted.store, Explanations(planted.store.path, "truth", items), list(JUDGED), Reader(), progress=False
    )
    assert other.to_dict() == table.to_dict()
    assert {e.latents[0]: e.scores for e in other.explanations} == {e.latents[0]: e.scores for e in table.explanations}


class Constant:
    """Always the same answer."""

    name = "constant"

    def __init__(self, *chances: float) -> None:
        self.chances = chances

    def answer(self, questions: list[Question], progress: bool = True) -> list[Answer]:
        return [Answer(chances=self.chances if len(q.choices) == 2 else (0.2,) * 5) for q in questions]


@pytest.mark.parametrize("chances", [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)])
def test_who_always_answers_the_same_is_at_chance(planted: Planted, chances: tuple[float, float]) -> None:
    table = score(
        planted.store, planted.explanations, ["detection", "fuzzing", "intruder"], Constant(*chances), progress=False
    )
    assert table.row("detection").value.value == table.row("fuzzing").value.value == 0.5
    assert table.row("intruder").value.value == pytest.approx(0.2)


def test_what_is_not_answered_is_counted_and_not_taken_for_an_answer(planted: Planted) -> None:
    class Half(Reader):
        def answer(self, questions: list[Question], progress: bool = True) -> list[Answer]:
            found = super().answer(questions)
            return [answer if i % 2 else Answer(trouble="half an answer") for i, answer in enumerate(found)]

    table = score(planted.store, planted.explanations, ["detection"], Half(), progress=False)
    assert table.row("detection").value.value > 0.9
    assert table.row("detection").details["unanswered"] == pytest.approx(0.5, abs=0.05)

    class Mute(Reader):
        def answer(self, questions: list[Question], progress: bool = True) -> list[Answer]:
            return [Answer(trouble="no answer")] * len(questions)

    silent = score(planted.store, planted.explanations, ["detection"], Mute(), progress=False)
    assert silent.row("detection").value.n == 0
    assert not any(item.scores for item in silent.explanations)


def test_the_plan_is_all_that_is_asked(planted: Planted) -> None:
    heard: list[Question] = []

    class Listening(Reader):
        def answer(self, questions: list[Question], progress: bool = True) -> list[Answer]:
            heard.extend(questions)
            return super().answer(questions)

    names = list(JUDGED)
    score(planted.store, planted.explanations, names, Listening(), random=planted.explanations, progress=False)
    planned = plan(planted.store, planted.explanations, names, random=planted.explanations)
    assert sorted(map(repr, planned)) == sorted(map(repr, heard))


def test_a_floor_of_another_store_is_scored_in_the_same_way(planted: Planted) -> None:
    table = score(planted.store, planted.explanations, [_words()], random=planted.explanations, progress=False)
    own, other = table.row("similarity"), table.row("similarity", "a model of random weights")
    assert own.value == other.value
    assert own.judge == "letters"


def _words() -> Similarity:
    """An encoder that knows which common words a sentence has."""

    def letters(sentences: list[str]) -> np.ndarray:
        return np.array([[f"{word} " in f" {text} " for word in WORDS] for text in sentences], float)

    return Similarity(letters, query="")


def test_an_encoder_tells_right_explanations_from_shuffled_ones(planted: Planted) -> None:
    table = score(planted.store, planted.explanations, [_words()], progress=False)
    assert table.row("similarity").value.low > table.row("similarity", SHUFFLED).value.high


def test_bad_input_is_one_clear_line(planted: Planted) -> None:
    with pytest.raises(ConfigError, match=r"no scorer 'detecton'.*Did you mean detection"):
        score(planted.store, planted.explanations, ["detecton"], Reader(), progress=False)
    with pytest.raises(ConfigError, match="detection needs a judge"):
        score(planted.store, planted.explanations, progress=False)
    with pytest.raises(DataError, match=r"no explanation of .* can be tested"):
        score(planted.store, Explanations(planted.store.path, "x", []), judge=Reader(), progress=False)
    wrong = Explanation(latents=[0], text="x", explainer="x", seen=[10**9])
    with pytest.raises(ConfigError, match="no example 1000000000: the explanation is of another harvest"):
        score(planted.store, Explanations(planted.store.path, "x", [wrong]), judge=Reader(), progress=False)


@pytest.fixture
def tested(planted: Planted) -> Callable[[str], Case]:
    def made(text: str, latent: int = 0) -> Case:
        item = Explanation(latents=[latent], text=text, explainer="x")
        return case(item, planted.store[latent], ExampleRows(planted.store))

    return made


def test_how_an_explanation_fails_is_told(tested: Callable[..., Case]) -> None:
    def failed(text: str) -> str | None:
        each = tested(text)
        found = Detection().score(each, Reader().answer(Detection().questions(each)), "reader")
        return failure(each, found)

    assert failed("the word the") is None
    assert failed("the word zebra") == MISSES
    each = tested("the word the")
    always = Detection().score(each, Constant(1.0, 0.0).answer(Detection().questions(each)), "constant")
    assert failure(each, always) == ELSEWHERE
    promoted = [w.text.strip() for w in each.feature.promoted if w.text.strip().isalpha() and w.text.strip() != "the"]
    assert failed(f"words such as {', '.join(promoted[:4])}") == OUTPUT
    for text in ("", "{}", "I'm sorry, I cannot explain it", "the the the the the the the the the", "word " * 80):
        assert failure(tested(text or " "), None) == UNREADABLE


def test_marks_stand_around_what_fires(tested: Callable[..., Case]) -> None:
    each = tested("the word the")
    for example in each.firings:
        assert f"<<{example.texts[example.peak]}" in marked(example)
    texts = [question.text for question in Fuzzing().questions(each)]
    assert all("<<" in text and text.count("<<") == text.count(">>") for text in texts)
    silent = texts[len(each.firings) : len(each.firings) + len(each.silent)]
    assert len({text.partition("Text:")[2].find("<<") for text in silent}) > 1, "not the same place in every text"


def test_an_intruder_may_stand_anywhere(planted: Planted) -> None:
    rows = ExampleRows(planted.store)
    places = [
        place
        for item in planted.explanations
        for _, place, _ in Intruder()._groups(case(item, planted.store[item.latents[0]], rows))
    ]
    assert set(places) == set(range(5))


@pytest.mark.parametrize(("right", "n"), [(0, 4), (3, 9), (12, 12), (40, 100)])
def test_rates_have_the_interval_of_wilson(right: int, n: int) -> None:
    found = measures.rate(np.arange(n) < right)
    known = binomtest(right, n).proportion_ci(method="wilson")
    assert (found.value, found.low, found.high) == pytest.approx((right / n, known.low, known.high), abs=1e-6)


def test_areas_and_correlations_equal_plain_loops() -> None:
    generator = np.random.default_rng(0)
    positive, negative = generator.integers(0, 6, 15).astype(float) + 1, generator.integers(0, 6, 9).astype(float)
    weights = generator.random(15)
    pairs = [
        (w, 1.0 if p > n else 0.5 if p == n else 0.0) for p, w in zip(positive, weights, strict=True) for n in negative
    ]
    expected = sum(w * v for w, v in pairs) / sum(w for w, _ in pairs)
    found = measures.area(positive, negative, weights)
    assert found.value == pytest.approx(expected)
    assert found.low < found.value < found.high
    perfect = measures.area(np.ones(5), np.zeros(5))
    assert (perfect.value, perfect.high) == (1, 1)
    assert 0.5 < perfect.low < 0.8, "five against five prove little"
    predicted = [generator.random(n) for n in (3, 8, 5)]
    true = [p + generator.random(len(p)) for p in predicted]
    r = measures.correlation(predicted, true)
    assert r.value == pytest.approx(np.corrcoef(np.concatenate(predicted), np.concatenate(true))[0, 1])
    assert math.isnan(measures.correlation([np.zeros(4)], [np.arange(4.0)]).value)
