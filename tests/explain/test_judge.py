"""Judge: the real client against a real server that fails in every way a real one does."""

from __future__ import annotations

import math
import socket
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer

from monosem.errors import ConfigError, FileError, JudgeError
from monosem.explain.judge import Judge
from monosem.explain.kept import KeptReplies, Reply
from monosem.explain.questions import Question

WORDS = ["river", "town", "moon", "horse", "stone", "bread", "night", "glass", "paper", "winter"]
YES_NO = ("yes", "no")


def asked(n: int = 10) -> list[Question]:
    """Every other one is to be answered with yes."""
    return [
        Question(
            "Answer with one word: yes or no.",
            f"Description: the word {word}\n\nText: the {word if i % 2 else 'x'}",
            YES_NO,
        )
        for i, word in enumerate(WORDS[:n])
    ]


@pytest.fixture
def judge(chat: ChatServer, tmp_path: Path) -> Callable[..., Judge]:
    def made(**options: Any) -> Judge:
        return Judge("reader", chat.url, kept=tmp_path / "kept.sqlite", **({"retries": 2, "timeout": 5.0} | options))

    return made


def yes(answers: list[Any]) -> list[float | None]:
    return [answer.chances[0] if answer.chances else None for answer in answers]


def test_answers_come_in_the_order_of_the_questions_and_several_are_asked_at_once(
    chat: ChatServer, judge: Callable[..., Judge]
) -> None:
    chat.seconds = 0.05
    asker = judge(parallel=4)
    assert yes(asker.answer(asked(), False)) == [0.0, 1.0] * 5
    assert 2 <= chat.most_at_once <= 4
    assert asker.spent.asked == 10
    assert asker.spent.tokens_in == sum(len(text.split()) + 7 for text in chat.questions)
    assert chat.requests[0]["temperature"] == 0


def test_what_was_asked_once_is_never_asked_again(chat: ChatServer, judge: Callable[..., Judge]) -> None:
    first = judge().answer([*asked(), *asked(3)], False)
    assert len(chat.requests) == 10
    again = judge()
    assert again.answer([*asked(), *asked(3)], False) == first
    assert len(chat.requests) == 10
    assert (again.spent.asked, again.spent.kept) == (0, 10)
    judge(extra={"reasoning_effort": "low"}).answer(asked(1), False)
    assert chat.requests[-1]["reasoning_effort"] == "low"
    assert len(chat.requests) == 11, "other settings are another question"


KILLED = """
import sys
sys.path.insert(0, sys.argv[3])
from test_judge import asked
from monosem.explain.judge import Judge
Judge("reader", sys.argv[1], kept=sys.argv[2], parallel=2).answer(asked())
"""


def test_a_killed_run_goes_on_and_pays_for_nothing_twice(
    chat: ChatServer, judge: Callable[..., Judge], tmp_path: Path, forks: Any
) -> None:
    chat.trouble = lambda request, attempt: time.sleep(60) if len(chat.requests) > 6 else None
    killed = forks("-c", KILLED, chat.url, tmp_path / "kept.sqlite", Path(__file__).parent)
    killed.until(lambda: len(chat.requests) >= 8)
    killed.kill()
    chat.trouble = lambda request, attempt: None
    before = chat.questions[:6]
    assert yes(judge().answer(asked(), False)) == [0.0, 1.0] * 5
    after = chat.questions[8:]
    assert len(after) == 4
    assert not set(before) & set(after)


@pytest.mark.parametrize("trouble", [429, 500, 503, "half", b"<html>", b'{"choices": []}', b"{", b"[1]"])
def test_what_passes_is_tried_again(chat: ChatServer, judge: Callable[..., Judge], trouble: Any) -> None:
    chat.trouble = lambda request, attempt: trouble if attempt == 0 else None
    asker = judge()
    assert yes(asker.answer(asked(2), False)) == [0.0, 1.0]
    assert asker.spent.retries == 2
    assert len(chat.requests) == 4


def test_a_server_that_is_silent_for_too_long_is_asked_again(chat: ChatServer, judge: Callable[..., Judge]) -> None:
    chat.trouble = lambda request, attempt: "slow" if attempt == 0 else None
    assert yes(judge(timeout=0.3).answer(asked(2), False)) == [0.0, 1.0]


def test_one_question_that_fails_for_ever_costs_no_other_its_answer(
    chat: ChatServer, judge: Callable[..., Judge]
) -> None:
    chat.trouble = lambda request, attempt: 500 if "moon" in str(request) else None
    asker = judge(retries=1)
    answers = asker.answer(asked(), False)
    assert [i for i, answer in enumerate(answers) if answer.trouble] == [2]
    assert "trouble 500" in (answers[2].trouble or "")
    chat.trouble = lambda request, attempt: None
    assert yes(asker.answer(asked(), False)) == [0.0, 1.0] * 5
    assert sum("moon" in text for text in chat.questions) == 3


def test_an_endpoint_that_dies_is_one_line_and_what_it_said_is_kept(
    chat: ChatServer, judge: Callable[..., Judge]
) -> None:
    chat.trouble = lambda request, attempt: 503 if len(chat.requests) > 4 else None
    with pytest.raises(JudgeError, match=r"gives no answers .*trouble 503.* is kept.*goes on") as failed:
        judge(parallel=1, retries=0).answer(asked(), False)
    assert "\n" not in str(failed.value)
    chat.trouble = lambda request, attempt: None
    asker = judge()
    asker.answer(asked(), False)
    assert asker.spent.kept == 4


@pytest.mark.parametrize(
    ("status", "words"), [(401, "refuses the key"), (403, "refuses the key"), (404, "knows no model")]
)
def test_a_refusal_is_said_at_once(chat: ChatServer, judge: Callable[..., Judge], status: int, words: str) -> None:
    chat.trouble = lambda request, attempt: status
    with pytest.raises(JudgeError, match=words):
        judge(parallel=1).answer(asked(), False)
    assert len(chat.requests) <= 2, "nobody knocks on a closed door ten times"


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = time.monotonic()
    nobody = Judge("m", f"http://127.0.0.1:{port}/v1", kept=tmp_path / "k")
    with pytest.raises(JudgeError, match=r"is not at http.*no connection.*refused.*start it"):
        nobody.answer(asked(), False)
    assert time.monotonic() - start < 5, "nobody waits for what is not there"


@pytest.mark.parametrize(
    ("said", "trouble"),
    [
        ({"choices": [{"message": {"content": None}}]}, "no answer"),
        ({"choices": [{"message": {"content": "perhaps"}}]}, "not among the choices"),
        ({"choices": [{"message": {"content": "<think>the text is"}, "finish_reason": "length"}]}, "half an answer"),
    ],
)
def test_nonsense_is_counted_and_kept_since_it_was_paid_for(
    chat: ChatServer, judge: Callable[..., Judge], said: dict[str, Any], trouble: str
) -> None:
    chat.trouble = lambda request, attempt: said
    asker = judge()
    assert asker.answer(asked(1), False)[0].trouble == trouble
    assert asker.spent.troubles == {trouble: 1}
    asker.answer(asked(1), False)
    assert len(chat.requests) == 1


def test_chances_of_the_first_token_make_answers_graded_and_words_do_where_there_are_none(
    chat: ChatServer, judge: Callable[..., Judge]
) -> None:
    top = [{"token": " Yes", "logprob": math.log(0.6)}, {"token": "no", "logprob": math.log(0.2)}]
    choice = {"message": {"content": "Yes."}, "logprobs": {"content": [{"token": " Yes", "top_logprobs": top}]}}
    chat.trouble = lambda request, attempt: {"choices": [choice]}
    assert judge().answer(asked(1), False)[0].chances == pytest.approx((0.75, 0.25))
    chat.trouble, chat.chances = lambda request, attempt: None, False
    assert judge().answer(asked(2)[1:], False)[0].chances == (1.0, 0.0)
    judge(chances=False).answer(asked(1), False)
    assert "logprobs" not in chat.requests[-1]


def test_what_an_endpoint_refuses_can_be_left_out(chat: ChatServer, judge: Callable[..., Judge]) -> None:
    refusal = b'{"error": {"message": "logprobs are not supported"}}'
    chat.trouble = lambda request, attempt: (400, refusal) if "logprobs" in request else None
    with pytest.raises(JudgeError, match=r"gives no chances \(.*not supported.*chances=False\), or --words"):
        judge().answer(asked(1), False)
    assert yes(judge(chances=False).answer(asked(1), False)) == [0.0]
    judge(chances=False, extra={"max_tokens": None, "max_completion_tokens": 50}).answer(asked(1), False)
    assert "max_tokens" not in chat.requests[-1]
    assert chat.requests[-1]["max_completion_tokens"] == 50


def test_nothing_is_asked_above_the_limit_and_the_estimate_is_above_what_is_spent(
    chat: ChatServer, judge: Callable[..., Judge]
) -> None:
    asker = judge(prices=(1000.0, 2000.0), max_price=100.0)
    estimate = asker.estimate(asked())
    assert estimate.kept == 0
    assert estimate.price == pytest.approx((estimate.tokens_in * 1000 + estimate.tokens_out * 2000) / 1e6)
    assert not chat.requests
    with pytest.raises(
        JudgeError, match=r"10 questions .*at most .* tokens in .* the limit is 0.1000: raise max_price"
    ):
        judge(prices=(1000.0, 2000.0), max_price=0.1).answer(asked(), False)
    assert not chat.requests
    asker.answer(asked(), False)
    spent = asker.price
    assert spent is not None
    assert 0 < spent < (estimate.price or 0)
    assert asker.estimate(asked()).price == 0


def test_a_server_that_counts_more_tokens_than_estimated_is_stopped_at_the_limit(
    chat: ChatServer, judge: Callable[..., Judge]
) -> None:
    chat.trouble = lambda request, attempt: {"usage": {"prompt_tokens": 400, "completion_tokens": 1}}
    asker = judge(prices=(1000.0, 0.0), max_price=1.0, parallel=1)
    with pytest.raises(JudgeError, match="more than was estimated"):
        asker.answer(asked(), False)
    assert len(chat.requests) == 3
    assert (asker.price or 0) <= 1.0 + 0.4


def test_requests_are_begun_no_faster_than_told(chat: ChatServer, judge: Callable[..., Judge]) -> None:
    start = time.monotonic()
    judge(requests_per_minute=60 / 0.1).answer(asked(5), False)
    assert time.monotonic() - start >= 4 * 0.1


def test_a_key_comes_from_the_environment_or_the_argument_and_is_written_nowhere(
    chat: ChatServer, judge: Callable[..., Judge], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MONOSEM_JUDGE_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="needs a key: set MONOSEM_JUDGE_KEY"):
        Judge("m", "https://example.org/v1")
    monkeypatch.setenv("MONOSEM_JUDGE_KEY", "secret-1234")
    asker = judge()
    asker.answer(asked(1), False)
    assert chat.headers[-1]["authorization"] == "Bearer secret-1234"
    judge(api_key="secret-5678").answer(asked(2), False)
    assert chat.headers[-1]["authorization"] == "Bearer secret-5678"
    assert "secret" not in repr(asker)
    chat.trouble = lambda request, attempt: b'{"error": "secret-1234 is wrong"}'
    with pytest.raises(JudgeError) as failed:
        judge(extra={"n": 2}).answer(asked(1), False)
    assert "secret" not in str(failed.value)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"secret" not in path.read_bytes()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_price": 1.0}, "max_price needs prices"),
        ({"parallel": 0}, "parallel=0"),
        ({"retries": -1}, "retries=-1"),
        ({"timeout": 0.0}, "timeout=0"),
        ({"requests_per_minute": math.nan}, "requests_per_minute"),
    ],
)
def test_settings_out_of_range_are_refused(judge: Callable[..., Judge], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        judge(**options)


def test_without_the_client_the_remedy_is_named(judge: Callable[..., Judge], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install monosem\[judge\]"):
        judge().answer(asked(1), False)


def test_several_may_keep_replies_in_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "kept.sqlite"

    def write(who: int) -> None:
        for i in range(20):
            KeptReplies(path).put(f"{who} {i}", "m", Reply(text=f"{who} {i}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    found = KeptReplies(path).get([f"{who} {i}" for who in range(4) for i in range(20)])
    assert {key: reply.text for key, reply in found.items()} == {key: key for key in found}
    assert len(found) == 80


def test_a_damaged_file_of_replies_is_one_line(judge: Callable[..., Judge], tmp_path: Path) -> None:
    (tmp_path / "kept.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(FileError, match=r"kept.sqlite cannot be used .*move the file away"):
        judge().answer(asked(1), False)
