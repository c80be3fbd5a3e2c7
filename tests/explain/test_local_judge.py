"""LocalJudge and Surprisal say what the model says, asked one question at a time by the plainest of means."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from planted import Planted
from torch import nn

from monosem.errors import ConfigError
from monosem.explain.cases import case
from monosem.explain.local import LocalJudge
from monosem.explain.measures import area
from monosem.explain.questions import Question
from monosem.explain.score import score
from monosem.explain.unjudged import NOTHING, Surprisal
from monosem.explain.windows import ExampleRows, plain
from monosem.models import SubjectModel


@pytest.fixture(scope="module")
def model(make_gpt2: Any, tokenizer: Any) -> SubjectModel:
    return SubjectModel(make_gpt2(positions=512), tokenizer, "random")


def _first_tokens(model: SubjectModel, word: str) -> list[int]:
    spelled = [f"{space}{w}" for w in (word, word.title(), word.upper()) for space in ("", " ")]
    return sorted({int(model.tokens(text, prepend_bos=False)[0, 0]) for text in spelled})


def test_chances_are_those_of_the_next_token(model: SubjectModel) -> None:
    texts = ["a short text", "another text, which is quite a lot longer than the first one", "a third"]
    asked = [Question("Say it.", text, ("yes", "no")) for text in texts]
    answers = LocalJudge(model).answer([*asked, asked[0]], progress=False)
    assert answers[3] == answers[0]
    for text, answer in zip(texts, answers, strict=False):
        chances = model(model.tokens(f"Say it.\n\n{text}\n\nAnswer:"))[0, -1].double().softmax(-1)
        yes, no = (float(chances[_first_tokens(model, word)].sum()) for word in ("yes", "no"))
        assert answer.chances == pytest.approx((yes / (yes + no), no / (yes + no)), rel=1e-4)


def test_a_simulation_reads_the_digits_at_every_token(model: SubjectModel) -> None:
    question = Question("Give a JSON list.", "Description: x\n\nTokens:\n1: ' a'", tokens=(" a", " bc", "d"))
    numbers = LocalJudge(model).answer([question], progress=False)[0].numbers
    head = "Give a list.\n\nDescription: x\n\nToken and activation, tab between:\n\nAnswer:"
    ids = model.tokens(head)[0].tolist()
    judge = LocalJudge(model)
    for token, number in zip(("a", "bc", "d"), numbers, strict=True):
        ids += model.tokens(f"{token}\t", prepend_bos=False)[0].tolist()
        chances = model(torch.tensor([ids]))[0, -1].double().softmax(-1)
        digits = torch.stack([chances[judge._with_space[str(i)]].sum() for i in range(10)])
        assert number == pytest.approx(float((digits / digits.sum() * torch.arange(10)).sum() * 10 / 9), rel=1e-4)
        ids += model.tokens("unknown\n", prepend_bos=False)[0].tolist()


def test_what_does_not_fit_the_context_is_said(tiny: SubjectModel) -> None:
    judge = LocalJudge(tiny)
    long, short = Question("x", "word " * 100, ("yes", "no")), Question("x", "word", ("yes", "no"))
    answers = judge.answer([long, short, Question("x", "word " * 100), Question("x", "y", tokens=("z",) * 60)], False)
    assert [answer.trouble for answer in answers] == ["too long for the model", None] + ["too long for the model"] * 2
    assert sum(answers[1].chances) == pytest.approx(1)


def test_a_model_that_writes_no_text_is_no_judge(tiny_module: nn.Module) -> None:
    with pytest.raises(ConfigError, match="writes no text"):
        LocalJudge(SubjectModel(copy.deepcopy(tiny_module), None, "mute"))


def test_a_judge_of_random_weights_is_near_chance(planted: Planted, model: SubjectModel) -> None:
    judge = LocalJudge(model)
    table = score(planted.store, planted.explanations, ["detection"], judge, limit=2, progress=False)
    assert table.row("detection").value.value == pytest.approx(0.5, abs=0.3)
    assert {row.judge for row in table.rows} == {"random"}
    assert LocalJudge(model).answer([Question("Say it.", "x", length=3)], False)[0].trouble in (None, "half an answer")


def test_surprisal_is_the_gain_in_cross_entropy(planted: Planted, model: SubjectModel) -> None:
    item = planted.explanations[0]
    tested = case(item, planted.store[0], ExampleRows(planted.store))

    def loss(before: str, text: str) -> float:
        begin = model.tokens(f"The following text is about: {before}\n\n")
        ids = torch.cat([begin, model.tokens(text, prepend_bos=False)], 1)
        chances = model(ids)[0].double().log_softmax(-1)
        places = range(begin.shape[1], ids.shape[1])
        return -sum(float(chances[i - 1, ids[0, i]]) for i in places) / len(places)

    def gain(text: str) -> float:
        return loss(NOTHING, text) - loss(item.text, text)

    fires, silent = (
        torch.tensor([gain(plain(example)) for example in part]).numpy() for part in (tested.firings, tested.silent)
    )
    found = Surprisal(model).score(tested, [], None)
    assert found is not None
    assert found.value == pytest.approx(area(fires, silent, tested.weights).value)
    assert found.judge == "random"
