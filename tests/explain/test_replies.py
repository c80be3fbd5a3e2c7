"""Replies: what models say around, before and instead of an answer."""

from __future__ import annotations

import pytest

from monosem.explain.questions import Question
from monosem.explain.replies import understood

YES_NO = Question("", "", ("yes", "no"))
THREE = Question("", "", tokens=("a", "b", "c"))
LINE = Question("", "")


@pytest.mark.parametrize(
    ("reply", "chance"),
    [
        ("yes", 1),
        ("Yes.", 1),
        ("**No**", 0),
        ("Answer: no", 0),
        ('{"answer": "yes"}', 1),
        ("```json\n\"yes\"\n```", 1),
        ("No, although yes would be possible", 0),
        ("<think>yes or no? yes</think>\n\nno", 0),
        ("The answer is yes", 1),
    ],
)  # fmt: skip
def test_a_choice_is_found_among_words(reply: str, chance: int) -> None:
    assert understood(YES_NO, reply).chances == (chance, 1 - chance)


@pytest.mark.parametrize(
    ("reply", "cut", "trouble"),
    [
        (None, False, "no answer"),
        ("", True, "half an answer"),
        ("  \n", False, "no answer"),
        ("maybe", False, "not among the choices"),
        ("it is yes and no", False, "several of the choices"),
        ("<think>yes, it", False, "half an answer"),
        ("yesterday", False, "not among the choices"),
    ],
)
def test_what_is_no_choice_is_said(reply: str | None, cut: bool, trouble: str) -> None:
    assert understood(YES_NO, reply, cut=cut).trouble == trouble


def test_chances_of_first_tokens_are_summed_over_spellings() -> None:
    found = understood(YES_NO, "Yes", {"Yes": 0.3, " yes": 0.3, "NO": 0.2, "Hm": 0.2})
    assert found.chances == pytest.approx((0.75, 0.25))
    assert understood(YES_NO, "<think>", {"<think>": 1.0}).trouble == "half an answer"
    assert understood(YES_NO, "Well, no", {"Well": 0.999, "no": 0.0001}).chances == (0, 1), "words, not the first token"


@pytest.mark.parametrize(
    "reply",
    [
        "[0, 5, 10]",
        "Here it is:\n```json\n[0, 5.0, 10]\n```",
        '[["a", 0], ["b", 5], ["c", 10]]',
        '[{"token": "a", "activation": 0}, {"token": "b", "activation": 5}, {"token": "c", "activation": 12}]',
        "[-3, 5, 10",
    ],
)
def test_numbers_are_read_from_lists_and_kept_in_range(reply: str) -> None:
    assert understood(THREE, reply).numbers == (0, 5, 10)


@pytest.mark.parametrize(
    ("reply", "trouble"),
    [
        ("[0, 5", "half an answer"),
        ("[0, 5]", "half an answer"),
        ("[0, 5, 10, 0]", "too many numbers"),
        ("[0, NaN, 1]", "not a list of numbers"),
        ("[0, true, 1]", "not a list of numbers"),
        ('[0, "five", 1]', "not a list of numbers"),
        ("0 5 10", "not a list of numbers"),
        ("[" * 100_000, "not a list of numbers"),
        ("[[[0, 1", "half an answer"),
    ],
)
def test_half_lists_and_nonsense_are_told_apart(reply: str, trouble: str) -> None:
    assert understood(THREE, reply).trouble == trouble


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        ("the word river", "the word river"),
        ('"the word river"', "the word river"),
        ("Explanation: the  word river\n\nMore words", "the word river"),
        ("**Explanation:**\nthe word river", "the word river"),
        ('{"explanation": "the word river"}', "the word river"),
        ("<think>hm</think>the word river", "the word river"),
    ],
)
def test_a_line_is_one_plain_line(reply: str, line: str) -> None:
    assert understood(LINE, reply).line == line


@pytest.mark.parametrize(
    ("reply", "trouble"), [("the word", "half an answer"), ('{"explanation": "the', "half an answer")]
)
def test_a_line_that_was_cut_is_half_an_answer(reply: str, trouble: str) -> None:
    assert understood(LINE, reply, cut=True).trouble == trouble
