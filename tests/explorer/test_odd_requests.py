"""Whatever is asked: an answer in JSON with the right status, never a failure of the server, and it goes on."""

from __future__ import annotations

import json
import random
import socket
from typing import Any

import pytest

SEED, CASES = 0, 300
ODD = [
    "",
    " ",
    "\0",
    "-1",
    "1e999",
    "nan",
    "inf",
    "99999999999999999999999999",
    "1" * 5_000,
    "..",
    "../../../etc/passwd",
    "%2e%2e%2f",
    "'; drop table features; --",
    "1=1); copy (select 1) to '/tmp/x'; --",
    "<script>",
    "{}",
    "[]",
    "null",
    "true",
    "\ud83d",
    "é",
    "\u202e",
    "*",
    "?",
    "$1",
    "a" * 20_000,
    "(" * 3_000,
    "1,2,3",
    "rate,0,1",
    "-label",
    "small",
    "3",
]
GETS = {
    "/api/d/{}": (),
    "/api/d/{}/features": ("sort", "limit", "offset", "range", "where", "contains", "latents", "list", "starred"),
    "/api/d/{}/histogram": ("column", "bins", "log", "where", "range", "dead"),
    "/api/d/{}/f/{}": (),
    "/api/d/{}/f/{}/matches": (),
    "/api/d/{}/f/{}/python": (),
    "/api/d/{}/image/{}": (),
    "/api/d/{}/previews": ("latents", "words"),
    "/api/d/{}/context": ("text", "context", "latent"),
    "/api/d/{}/f/{}/effects": ("text", "context"),
    "/v1/models/{}": (),
    "/api/d/{}/search": ("q", "kind", "limit"),
    "/api/d/{}/notes/{}": (),
    "/api/compare": ("a", "b", "threshold", "by"),
    "/{}": (),
}
BODIES: list[Any] = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"NaN",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"label": NaN}',
    b'{"label": "\\ud83d"}',
    {"label": 1},
    {"label": "x" * 501},
    {"lists": ["x" * 201]},
    {"lists": ["x"] * 101},
    {"lists": "places"},
    {"comment": "x" * 20_001},
    {"starred": "perhaps"},
    {"latent": 3},
    {"text": "", "top": 5},
    {"text": "The river", "top": 10**9},
    {"text": "The river", "top": float("nan")},
    {"text": ["The"]},
    {"format": "monosem notes", "format_version": 1, "dictionary": "x", "notes": [{}]},
    {"format": "monosem notes", "format_version": 2, "dictionary": "x", "notes": []},
]


def check(reply: Any, case: object) -> None:
    assert reply.status in (200, 400, 403, 404, 405, 409, 413, 422), (case, reply)
    assert b"Traceback" not in reply.body, case
    if reply.headers["content-type"].startswith("application/json"):
        json.loads(reply.body, parse_constant=lambda name: pytest.fail(f"{case}: {name} is no JSON"))
    if reply.status != 200:
        assert reply.json["error"], case


def test_odd_words_at_every_place(client: Any) -> None:
    draw = random.Random(SEED)
    for _ in range(CASES):
        path, names = draw.choice(list(GETS.items()))
        given = [draw.choice(("small", "small", draw.choice(ODD))), draw.choice(("3", draw.choice(ODD)))]
        pieces = iter(given)
        target = "/".join(_quoted(next(pieces)) if part == "{}" else part for part in path.split("/"))
        query = {name: draw.choice(ODD).encode(errors="surrogatepass") for name in names if draw.random() < 0.6}
        check(client.ask(target, **query), (target, query))
    assert client.ask("/api/d/small/f/3").status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"])
def test_every_method_at_every_place(client: Any, method: str) -> None:
    before = client.get("/api/d/small/notes")
    for path in ("/", "/api/dictionaries", "/api/d/small/features", "/api/d/none/notes/1", "/api/d/small/f/3"):
        reply = client.ask(path, method, b"{}" if method in ("POST", "PUT", "PATCH") else None)
        assert reply.status in (404, 405), (method, path, reply)
        assert method == "HEAD" or reply.json["error"]
    assert client.get("/api/d/small/notes") == before


@pytest.mark.parametrize("body", BODIES, ids=lambda body: str(body)[:30])
def test_odd_bodies(client: Any, body: Any) -> None:
    for method, path in (
        ("PUT", "/api/d/small/notes/9"),
        ("POST", "/api/d/small/notes"),
        ("POST", "/api/d/small/prompt"),
        ("POST", "/api/d/small/total"),
        ("POST", "/api/d/small/diagnose"),
        ("POST", "/api/d/small/avoid"),
        ("POST", "/api/d/small/rewards"),
        ("POST", "/api/d/small/f/3/doses"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
    ):
        reply = client.ask(path, method, body)
        check(reply, (method, path))
    client.ask("/api/d/small/notes/9", "DELETE")


@pytest.mark.parametrize("kind", ["", "text/plain", "application/jsonp", "multipart/form-data; boundary=x"])
def test_other_content_types_are_refused(client: Any, kind: str) -> None:
    reply = client.ask("/api/d/small/notes/9", "PUT", b'{"label": "x"}', {"Content-Type": kind})
    assert (reply.status, "application/json" in reply.json["error"]) == (400, True)


def test_a_body_without_a_length_is_cut_off(client: Any) -> None:
    def pieces() -> Any:
        yield b'{"label": "'
        for _ in range(40):
            yield b"x" * 2**16

    from http.client import HTTPConnection

    connection = HTTPConnection(client.host, client.port, timeout=60)
    connection.request(
        "PUT", "/api/d/small/notes/9", pieces(), {"Content-Type": "application/json"}, encode_chunked=True
    )
    try:
        assert connection.getresponse().status in (400, 413)
    except (ConnectionResetError, BrokenPipeError):
        pass
    finally:
        connection.close()
    assert client.get("/api/d/small/notes/9")["label"] is None


def test_a_body_that_is_refused_is_received_and_the_answer_is_seen(client: Any) -> None:
    """A connection that is closed while somebody still sends loses what was said on it."""
    sent = b"x" * 6 * 2**20
    length = f"Content-Type: application/json\r\nContent-Length: {len(sent)}"
    for path, status in (("/api/d/small/notes/9", 413), ("/api/d/small/f/3", 413), ("/api/d/none/f/3", 413)):
        with socket.create_connection((client.host, client.port), timeout=60) as connection:
            head = f"PUT {path} HTTP/1.1\r\nHost: localhost\r\n{length}\r\nConnection: close\r\n\r\n"
            connection.sendall(head.encode() + sent)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(f"HTTP/1.1 {status}".encode())
        assert b"larger than 1 MiB" in answer


def test_a_table_without_stars_is_sorted_by_them(client: Any) -> None:
    for sort in ("starred", "-starred"):
        page = client.get("/api/d/second/features", sort=sort, limit=3)
        assert [row["latent"] for row in page["rows"]] == [0, 1, 2]


def test_what_is_asked_at_length_is_not_answered_at_length(client: Any) -> None:
    long = "9" * 4_000
    for path in (f"/api/d/small/f/{long}", f"/api/d/small/features?latents={long}x", f"/api/d/small/graphs/{long}"):
        reply = client.ask(path)
        assert reply.status in (400, 404)
        assert 20 < len(reply.json["error"]) < 700
    ends = client.ask("/api/d/small/features", sort="rat" + "e" * 900).json["error"]
    assert ends.startswith("sort=rate")
    assert "there are latent" in ends or "norm" in ends


def test_parameters_that_would_be_ignored_are_refused(client: Any) -> None:
    """A filter that is misspelt would answer with everything."""
    for query, words in (
        ("limt=5", "limt: is no parameter here: there are sort, limit,"),
        ("limt=5", "Did you mean limit?"),
        ("limit=5&limit=6", "limit: is given 2 times"),
        ("where=true&where=false", "where: is given 2 times"),
    ):
        reply = client.ask(f"/api/d/small/features?{query}")
        assert (reply.status, words in reply.json["error"]) == (422, True), reply
    assert "there are none" in client.ask("/api/dictionaries?x=1").json["error"]
    assert client.ask("/api/d/small/features?range=rate,0,1&range=max,0,").status == 200
    assert client.ask("/d/small?whatever=1&whatever=2").status == 200


def test_a_body_that_is_no_json_is_told_so(client: Any) -> None:
    reply = client.ask("/api/d/small/notes/9", "PUT", b'{"label": ')
    assert reply.status == 422
    assert reply.json["error"].startswith("the body is no JSON: ")
    assert "character" in reply.json["error"]


def _quoted(text: str) -> str:
    from urllib.parse import quote

    return quote(text.encode(errors="surrogatepass"), safe="")
