"""Judge: a language model behind any OpenAI-compatible endpoint, asked in parallel, once, and within a price."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from monosem.arguments import checked
from monosem.errors import ConfigError, JudgeError
from monosem.explain.kept import KeptReplies, Reply
from monosem.explain.questions import Answer, Question
from monosem.explain.replies import understood
from monosem.explain.written import Writes
from monosem.files import one_line
from monosem.work import doing, job

BYTES_A_TOKEN = 3
"""Of English 4 to 5: so many tokens are not exceeded."""
MESSAGE_TOKENS = 8
"""What a message costs beside its words."""
GIVE_UP = 5
"""Questions without an answer, one after the other, after which the endpoint is taken to be of no use."""
KNOCK = 10.0
"""Seconds in which somebody must be there."""
SPOILT = 3
"""Attempts at one question whose reply is no JSON."""
LIKELIEST = 20
KEYS = ("MONOSEM_JUDGE_KEY", "OPENAI_API_KEY")


class Estimate(NamedTuple):
    """What some questions will cost at most, before any is asked."""

    questions: int
    kept: int
    """Of them answered before: they cost nothing."""
    tokens_in: int
    tokens_out: int
    price: float | None
    """None where no prices are known."""

    def __str__(self) -> str:
        price = "" if self.price is None else f", at most {self.price:,.4f}"
        return (
            f"{self.questions - self.kept:,} questions to ask ({self.kept:,} more were answered before): at most "
            f"{self.tokens_in:,} tokens in and {self.tokens_out:,} out{price}"
        )


class Spent:
    """What a judge has cost since it was made, and what went wrong."""

    def __init__(self) -> None:
        self.asked = self.kept = self.retries = self.tokens_in = self.tokens_out = 0
        self.troubles: dict[str, int] = {}
        """How often, by what it was."""

    def __str__(self) -> str:
        troubles = "".join(f", {count:,} x {what}" for what, count in sorted(self.troubles.items()))
        return (
            f"{self.asked:,} asked, {self.kept:,} known, {self.retries:,} tried again, {self.tokens_in:,} tokens in, "
            f"{self.tokens_out:,} out{troubles}"
        )


class Judge(Writes):
    """A model that explains and judges, behind an endpoint: vLLM, llama.cpp, Ollama, or a hosted one.

    Every reply is kept on disk under a hash of all that was sent (model, words, settings): what was answered once is
    not asked again, whatever kills the run. The same model under another address counts as the same; another one under
    the same name would not be noticed. Needs the extra `judge`.
    """

    @checked
    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        prices: tuple[float, float] | None = None,
        max_price: float | None = None,
        parallel: int = 8,
        requests_per_minute: float | None = None,
        retries: int = 6,
        timeout: float = 300.0,
        chances: bool = True,
        thinking: int = 0,
        extra: dict[str, Any] | None = None,
        kept: str | Path | None = None,
    ) -> None:
        """Describe it; nothing is asked yet.

        Args:
            model: its name there.
            base_url: such as "http://localhost:8000/v1"; if not given, that of OpenAI.
            api_key: if not given, MONOSEM_JUDGE_KEY or OPENAI_API_KEY of the environment; a server on this machine
                needs none. It is written nowhere.
            prices: of a million tokens in and of a million out, in whatever currency.
            max_price: nothing is asked that could cost more than this in all, over the life of this object.
            parallel: requests under way at once.
            requests_per_minute: not more than these are begun.
            retries: attempts after the first, with growing pauses, or as long as the server asks for: when it is too
                busy (429), fails (5xx), or is silent for longer than `timeout`.
            timeout: seconds for one reply; a small machine may take minutes for a long one.
            chances: ask for the log-probabilities of the first token, for graded scores; False where an endpoint
                refuses that.
            thinking: tokens that a model may think before it answers; they count as tokens out.
            extra: more fields of every request, such as {"reasoning_effort": "low"}; None leaves a field out that an
                endpoint refuses, as {"max_tokens": None, "max_completion_tokens": 500}.
            kept: the file of replies; if not given, one in the user's cache.

        Raises:
            ConfigError: no key, a limit without prices, or a number out of range.
        """
        self.model, self.base_url = model, base_url
        if max_price is not None and prices is None:
            raise ConfigError("max_price needs prices: prices=(per million tokens in, per million tokens out)")
        for what, number, least in (("parallel", parallel, 1), ("retries", retries, 0), ("thinking", thinking, 0)):
            if number < least:
                raise ConfigError(f"{what}={number}: it must be {least} at least")
        for what, number in (("timeout", timeout), ("requests_per_minute", requests_per_minute)):
            if number is not None and not number > 0:
                raise ConfigError(f"{what}={number}: it must be more than 0")
        self._key = api_key or next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
        local = urlsplit(base_url or "").hostname in ("localhost", "127.0.0.1", "::1")
        if not self._key and not local:
            raise ConfigError(f"the judge at {base_url or 'OpenAI'} needs a key: set {KEYS[0]}, or give api_key=")
        self.prices, self.max_price = prices, max_price
        self.parallel, self.retries, self.timeout = parallel, retries, timeout
        self.chances, self.thinking, self.extra = chances, thinking, dict(extra or {})
        self.replies = KeptReplies(kept)
        self.spent = Spent()
        self._pause = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """Of the model: scores are known by it."""
        return self.model

    def __repr__(self) -> str:
        return f"Judge({self.model!r}, {self.base_url!r})"

    def request(self, question: Question) -> dict[str, Any]:
        """What is sent for a question; its hash is that of the reply."""
        messages = [{"role": "system", "content": question.instructions}, {"role": "user", "content": question.text}]
        sent: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": 0,
            "seed": 0,
            "max_tokens": question.most_tokens + self.thinking,
        }
        if question.choices and self.chances:
            sent |= {"logprobs": True, "top_logprobs": LIKELIEST}
        return {name: value for name, value in (sent | self.extra).items() if value is not None}

    def estimate(self, questions: Sequence[Question]) -> Estimate:
        """What they will cost at most. Tokens are counted as a third of the bytes, which is more than they are."""
        requests = {KeptReplies.key(self.request(q)): q for q in questions}
        kept = self.replies.get(list(requests))
        return self._estimate(len(requests), [q for key, q in requests.items() if key not in kept])

    def _estimate(self, n: int, ask: Sequence[Question]) -> Estimate:
        tokens_in = sum(_tokens(question) for question in ask)
        tokens_out = sum(question.most_tokens + self.thinking for question in ask)
        return Estimate(n, n - len(ask), tokens_in, tokens_out, self._price(tokens_in, tokens_out))

    def _price(self, tokens_in: int, tokens_out: int) -> float | None:
        return None if self.prices is None else (tokens_in * self.prices[0] + tokens_out * self.prices[1]) / 1e6

    @property
    def price(self) -> float | None:
        """What it has cost so far; None where no prices are known."""
        return self._price(self.spent.tokens_in, self.spent.tokens_out)

    def answer(self, questions: Sequence[Question], progress: bool = True) -> list[Answer]:
        """One answer a question, in their order; equal questions are asked once.

        Raises:
            JudgeError: the endpoint is not there, refuses, has answered nothing of use several times in a row, or it
                would cost more than `max_price`. What was answered is kept: the same call goes on from there.
        """
        requests = {KeptReplies.key(self.request(question)): question for question in questions}
        found = self.replies.get(list(requests))
        self.spent.kept += len(found)
        ask = {key: question for key, question in requests.items() if key not in found}
        self._require_price(ask)
        troubles: dict[str, str] = {}
        if ask:
            with job(progress):
                self._ask_all(ask, found, troubles)
        answers: list[Answer] = []
        for question in questions:
            key = KeptReplies.key(self.request(question))
            reply = found.get(key)
            if reply is None:
                answers.append(Answer(trouble=troubles[key]))
            else:
                answers.append(understood(question, reply.text, reply.first, reply.cut))
        for answer in answers:
            if answer.trouble:
                self.spent.troubles[answer.trouble] = self.spent.troubles.get(answer.trouble, 0) + 1
        return answers

    def _require_price(self, ask: dict[str, Question]) -> None:
        estimate = self._estimate(len(ask), list(ask.values()))
        if self.max_price is not None and (self.price or 0) + (estimate.price or 0) > self.max_price:
            before = f", {self.price:,.4f} are spent" if self.price else ""
            raise JudgeError(
                f"{estimate}; the limit is {self.max_price:,.4f}{before}: raise max_price, or ask about fewer features"
            )

    def _ask_all(self, ask: dict[str, Question], found: dict[str, Reply], troubles: dict[str, str]) -> None:
        client = self._client()
        self._knock(client)
        in_a_row, pool = 0, ThreadPoolExecutor(self.parallel, "judge")
        try:
            futures = {pool.submit(self._ask, client, key, question): key for key, question in ask.items()}
            with doing(f"asking {self.model}", len(ask), unit="questions") as stage:
                for future in as_completed(futures):
                    key, reply = futures[future], future.result()
                    stage.advance(1)
                    if isinstance(reply, Reply):
                        found[key], in_a_row = reply, 0
                        continue
                    troubles[key] = reply
                    in_a_row += 1
                    if in_a_row >= GIVE_UP or len(troubles) == len(ask):
                        raise JudgeError(self._kept_so_far(reply, len(ask) - len(troubles), len(ask)))
        finally:
            pool.shutdown(cancel_futures=True)
            client.close()

    def _knock(self, client: Any) -> None:
        """Whether anybody is there, before patience is spent on many questions.

        Raises:
            JudgeError: nobody is.
        """
        import openai

        if self.spent.asked:
            return
        try:
            client.with_options(max_retries=0, timeout=min(self.timeout, KNOCK)).models.with_raw_response.list()
        except openai.APIConnectionError as error:
            client.close()
            raise JudgeError(
                f"the judge {self.model} is not at {self._place} (no connection: "
                f"{self._said(error.__cause__ or error)}): start it, or give another address"
            ) from None
        except openai.APIError:  # it lists no models, or not to everyone; it is there
            return

    def _kept_so_far(self, what: str, done: int, n: int) -> str:
        return (
            f"the judge {self.model} at {self.base_url or 'OpenAI'} gives no answers ({what}). What it has answered is "
            f"kept, {done:,} of {n:,} at most: when it is there again, the same command goes on"
        )

    def _ask(self, client: Any, key: str, question: Question) -> Reply | str:
        """The reply, which is kept at once, or what went wrong with this question.

        Raises:
            JudgeError: no question would fare better.
        """
        import openai

        self._require_room(question)
        words = "no JSON"
        for _ in range(SPOILT):
            self._wait_for_turn()
            try:
                raw = client.chat.completions.with_raw_response.create(**self._arguments(question))
                with self._lock:
                    self.spent.retries += raw.retries_taken
                reply = _read(json.loads(raw.http_response.content))
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise JudgeError(
                    f"the judge at {self._place} refuses the key ({self._said(error)}): give another"
                ) from None
            except openai.NotFoundError as error:
                raise JudgeError(
                    f"the endpoint {self._place} knows no model {self.model!r}, or is none ({self._said(error)}): "
                    "base_url mostly ends in /v1"
                ) from None
            except openai.BadRequestError as error:
                if "logprobs" in str(error):
                    raise JudgeError(
                        f"the judge at {self._place} gives no chances ({self._said(error)}): Judge(chances=False), or "
                        "--words"
                    ) from None
                return self._said(error)
            except openai.APIConnectionError as error:
                return f"no connection: {self._said(error.__cause__ or error)}"
            except openai.APIError as error:
                return self._said(error)
            except (ValueError, RecursionError) as error:
                words = f"no reply of a chat: {one_line(error)}"
                with self._lock:
                    self.spent.retries += 1
                continue
            with self._lock:
                self.spent.asked += 1
                self.spent.tokens_in += reply.tokens_in or _tokens(question)
                self.spent.tokens_out += reply.tokens_out
            self.replies.put(key, self.model, reply)
            return reply
        return words

    def _said(self, error: BaseException) -> str:
        """The words of an error, without the key, which some servers repeat."""
        words = one_line(error)
        words = words.replace(self._key, "***") if self._key else words
        return words if len(words) <= 160 else f"{words[:160]} ..."

    @property
    def _place(self) -> str:
        return self.base_url or "OpenAI"

    def _arguments(self, question: Question) -> dict[str, Any]:
        sent = self.request(question)
        extra = {name: sent.pop(name) for name in self.extra if name in sent}
        return sent | ({"extra_body": extra} if extra else {})

    def _require_room(self, question: Question) -> None:
        most = self._price(_tokens(question), question.most_tokens + self.thinking)
        if self.max_price is not None and (self.price or 0) + (most or 0) > self.max_price:
            raise JudgeError(
                f"the judge {self.model} has cost {self.price:,.4f}, more than was estimated, and the limit is "
                f"{self.max_price:,.4f}: what it has answered is kept; raise max_price and the same command goes on"
            )

    def _wait_for_turn(self) -> None:
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._pause
        time.sleep(turn - now)

    def _client(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise ConfigError("a judge behind an endpoint needs `pip install monosem[judge]`") from error
        key = self._key or "none needed"
        return OpenAI(api_key=key, base_url=self.base_url, max_retries=self.retries, timeout=self.timeout)


def _tokens(question: Question) -> int:
    n_bytes = len(question.instructions.encode()) + len(question.text.encode())
    return math.ceil(n_bytes / BYTES_A_TOKEN) + 2 * MESSAGE_TOKENS


def _read(body: Any) -> Reply:
    """A chat completion.

    Raises:
        ValueError: it is none.
    """
    try:
        choice, usage = body["choices"][0], body.get("usage") or {}
        text = choice["message"].get("content")
        listed = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
        first: dict[str, float] = {}
        for item in listed or []:
            first[item["token"]] = first.get(item["token"], 0.0) + math.exp(min(0.0, float(item["logprob"])))
        if not isinstance(text, str | None):
            raise TypeError
        return Reply(
            text=text,
            first=first or None,
            cut=choice.get("finish_reason") == "length",
            tokens_in=int(usage.get("prompt_tokens") or 0),
            tokens_out=int(usage.get("completion_tokens") or 0),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError("choices, message and content are missing") from error
