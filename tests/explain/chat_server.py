"""A real server of the chat protocol on this machine, with a model that reads for words, and all that goes wrong."""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

Reply = str | dict[str, Any]


def reader(request: dict[str, Any]) -> str:
    """A judge that does what it is told: it finds the described word, counts the commonest mark, and gives numbers."""
    system, user = (message["content"] for message in request["messages"])
    described = re.search(r"Description: the word (.*)", user)
    word = described[1].strip().strip('"').casefold() if described else ""
    marks = re.findall(r"<<(.*?)>>", user)
    if "<<" in system and "yes or no" in system:
        return "yes" if marks and all(mark.strip().casefold() == word for mark in marks) else "no"
    if "yes or no" in system:
        return "yes" if word in re.findall(r"\w+|[^\w\s]", user.partition("\n\nText: ")[2].casefold()) else "no"
    if "intruder" in system:
        lines = [re.findall(r"<<(.*?)>>", line) for line in user.splitlines()]
        common = _commonest(mark.strip().casefold() for line in lines for mark in line)
        return str(
            next((i for i, line in enumerate(lines, 1) if common not in map(str.casefold, map(str.strip, line))), 1)
        )
    if "JSON list" in system:
        tokens = re.findall(r"^\d+: (.*)$", user, re.MULTILINE)
        return json.dumps([10 * (token.strip("'\" ").casefold() == word) for token in tokens])
    return f"the word {_commonest(mark.strip().casefold() for mark in marks)}"


def _commonest(words: Iterator[str]) -> str:
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return max(counts, key=lambda word: counts[word], default="")


class ChatServer(ThreadingHTTPServer):
    """`trouble(request, attempt)` may do something to an attempt at a question: see `Handler`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model: Callable[[dict[str, Any]], str] = reader
        self.trouble: Callable[[dict[str, Any], int], Any] = lambda request, attempt: None
        self.chances = True
        self.seconds = 0.0
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.begun: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def questions(self) -> list[str]:
        """What was asked, each as it came."""
        return [request["messages"][1]["content"] for request in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has gone: nothing to say."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._send(404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            attempt = sum(request == body for request in server.requests)
            server.requests.append(body)
            server.headers.append({name.casefold(): value for name, value in self.headers.items()})
            server.begun.append(time.monotonic())
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            time.sleep(server.seconds)
            self._reply(body, server.trouble(body, attempt))
        finally:
            with server.lock:
                server.at_once -= 1

    def _reply(self, body: dict[str, Any], trouble: Any) -> None:
        """What goes wrong: a status, with a body or without; "slow", "half" a body, other bytes, or other fields."""
        if self.path != "/v1/chat/completions":
            self._send(404, b'{"error": {"message": "no such place"}}')
        elif isinstance(trouble, int):
            self._send(trouble, b'{"error": {"message": "trouble %d"}}' % trouble, {"retry-after-ms": "1"})
        elif isinstance(trouble, tuple):
            self._send(*trouble)
        elif isinstance(trouble, bytes):
            self._send(200, trouble)
        else:
            whole = json.dumps(self._completion(body) | (trouble if isinstance(trouble, dict) else {})).encode()
            if trouble == "slow":
                time.sleep(1.0)
            if trouble == "half":
                self._send(200, whole[: len(whole) // 2], {"content-length": str(len(whole))})
                self.close_connection = True
            else:
                self._send(200, whole)

    def _completion(self, body: dict[str, Any]) -> dict[str, Any]:
        text = self.server.model(body)
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
        }
        if body.get("logprobs") and self.server.chances:
            top = [{"token": text, "logprob": math.log(0.9)}, {"token": "Hm", "logprob": math.log(0.05)}]
            choice["logprobs"] = {"content": [{"token": text, "logprob": math.log(0.9), "top_logprobs": top}]}
        words = sum(len(message["content"].split()) for message in body["messages"])
        usage = {"prompt_tokens": words, "completion_tokens": len(text.split()), "total_tokens": words + 1}
        about = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"]}
        return about | {"choices": [choice], "usage": usage}

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        sent = {"content-type": "application/json", "content-length": str(len(content))} | (headers or {})
        self.send_response(status)
        for name, value in sent.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving() -> Iterator[ChatServer]:
    server = ChatServer()
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def chat() -> Iterator[ChatServer]:
    with serving() as server:
        yield server
