"""The server itself: it ends when it is told to, waits for nobody, and answers quickly beside what takes long."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from forks import Forked, Forks
from pace import pace

from monosem.explorer import connection, open_dictionaries
from monosem.explorer.kept import Kept
from monosem.explorer.names import is_loopback, own_names, reached_at

ENDLESS = "levenshtein(repeat('a' || latent, 99999), repeat('b', 99999)) > 0"
STUCK = """
import time
from monosem.explorer.app import make_app
from monosem.explorer.server import Server, listen

app = make_app({})
with listen("127.0.0.1", 0) as listening:
    server = Server(app, lambda: print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True))
    app.get("/api/stuck")(lambda: time.sleep(600))
    app.router.routes.insert(0, app.router.routes.pop())  # before the routes of all addresses
    server.run(sockets=[listening])
"""
ENDS_WITHIN = 2.0
SLOW_MACHINE = 2.0
"""Seconds that a busy machine may take on top."""


class Started:
    """A server in a process of its own."""

    def __init__(self, process: Forked) -> None:
        self.process = process
        process.until(lambda: re.search(r"http://127\.0\.0\.1:(\d+)\s", self.printed))
        self.port = int(re.findall(r"http://127\.0\.0\.1:(\d+)\s", self.printed)[0])

    @property
    def printed(self) -> str:
        return self.process.out.read_text()

    def connect(self, sent: str = "") -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        made.sendall(sent.encode())
        return made

    def ask(self, path: str) -> socket.socket:
        return self.connect(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def stop(self, how: int) -> tuple[int, float, str]:
        """Exit status, seconds taken, and what was said about it."""
        begun = time.monotonic()
        self.process.send_signal(how)
        status = self.process.wait()
        return status, time.monotonic() - begun, self.process.complained

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def explore(forks: Forks, run_folder: Path) -> Callable[..., Started]:
    """`monosem explore` on the small run, in a process of its own."""
    return lambda *words: Started(forks("monosem", "explore", run_folder, "--port", "0", "--no-open", *words))


def workers() -> set[str]:
    return {
        path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if b"monosem.sql.worker" in _content(path)
    }


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to one process")
def test_ctrl_c_ends_it_whatever_it_does(explore: Callable[..., Started]) -> None:
    """With SQL that does not end, a connection that is kept alive, and halves of requests."""
    before = workers()
    with explore() as server:
        where = re.sub(r"[^\w]", lambda found: f"%{ord(found[0]):02x}", ENDLESS)
        open_ones = [
            server.ask(f"/api/d/small/features?where={where}"),
            server.connect("GET / HTTP/1.1\r\nHost: loc"),
            server.connect(),
            server.connect("POST /api/d/small/prompt HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"),
            server.ask("/api/dictionaries"),
        ]
        assert open_ones[-1].recv(12) == b"HTTP/1.1 200"
        while not workers() - before:
            time.sleep(0.05)
        status, seconds, said = server.stop(signal.SIGINT)
        assert (status, said) == (0, "")
        assert seconds < ENDS_WITHIN + SLOW_MACHINE
        for one in open_ones:
            one.close()
    assert workers() <= before


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to one process")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_thread_that_is_stuck_does_not_keep_it(forks: Forks, how: signal.Signals) -> None:
    with Started(forks("-c", STUCK)) as server:
        stuck = server.ask("/api/stuck")
        time.sleep(0.3)
        status, seconds, said = server.stop(how)
        assert status in ((0,) if how == signal.SIGINT else (128 + how, -how))
        assert said == ""
        assert seconds < ENDS_WITHIN + SLOW_MACHINE
        stuck.close()


LAYING_OUT = """
import sys, torch
from pathlib import Path
from monosem.explorer import server
from monosem.explorer.geometry import neighbourhoods

def many(dictionary):
    return neighbourhoods(torch.nn.functional.normalize(torch.randn(20_000, 64)))

def make_app(*given, make=server.make_app):
    app = make(*given)
    app.state.site.geometry.map = many
    return app

server.make_app = make_app
server.serve([Path(sys.argv[1])], port=0, ready=lambda found: print(found[0], flush=True))
"""
"""A server of a small store that lays out a large map."""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to one process")
def test_a_map_in_the_making_keeps_nobody_waiting(forks: Forks, run_folder: Path, client_at: Any) -> None:
    with Started(forks("-c", LAYING_OUT, run_folder)) as server:
        client = client_at(server.port)
        client.get("/api/d/small/f/0")
        maps = [server.ask("/api/d/small/map") for _ in range(3)]
        time.sleep(0.5)
        begun = time.monotonic()
        for latent in range(1, 21):
            client.get(f"/api/d/small/f/{latent}")
            client.get(f"/api/d/small/previews?latents={latent}")
        assert (time.monotonic() - begun) / 40 < 0.5
        for one in maps:
            one.setblocking(False)
            with pytest.raises(BlockingIOError):  # they are being made still
                one.recv(1)
        status, seconds, said = server.stop(signal.SIGINT)
        for one in maps:
            one.close()
        assert (status, said) == (0, "")
        assert seconds < ENDS_WITHIN + SLOW_MACHINE


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to one process")
def test_a_model_that_is_being_loaded_does_not_keep_it(explore: Callable[..., Started], client_at: Any) -> None:
    with explore() as server:
        client = client_at(server.port)
        assert client.send("POST", "/api/d/small/model", {})["state"] == "loading"
        status, seconds, said = server.stop(signal.SIGINT)
        assert (status, said) == (0, "")
        assert seconds < ENDS_WITHIN + SLOW_MACHINE


def test_fifty_readers_are_answered(explore: Callable[..., Started], client_at: Any) -> None:
    """By a process of its own. The bound is one that a busy machine keeps; benchmarks/explorer.py measures."""
    with explore() as server, ThreadPoolExecutor(50) as readers:
        client, stop = client_at(server.port), time.monotonic() + 3

        def read(reader: int) -> list[float]:
            spent: list[float] = []
            while time.monotonic() < stop:
                begun = time.monotonic()
                search = (reader + len(spent)) % 10 == 0
                path = "search?q=the" if search else f"f/{(31 * reader + len(spent)) % 256}"
                client.get(f"/api/d/small/{path}")
                spent.append(time.monotonic() - begun)
            return spent

        every = sorted(seconds for of_reader in readers.map(read, range(50)) for seconds in of_reader)
    slower = pace(time.monotonic)
    assert len(every) >= 100 / slower
    assert every[int(0.99 * len(every))] < 3 * slower


def test_an_answer_that_is_kept_knows_the_notes(serve: Any, run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    with serve(tmp_path / "run") as client:
        paths = ["/api/d/run/f/3", "/api/d/run/features?limit=5", "/api/d/run/search?q=3"]
        before = [client.ask(path).body for path in paths]
        assert [client.ask(path).body for path in paths] == before
        client.send("PUT", "/api/d/run/notes/3", {"label": "kept apart"})
        assert all("kept apart" in client.ask(path).body.decode() for path in paths)
        assert client.ask("/api/d/run/notes/3", "DELETE").status == 200
        assert [client.ask(path).body for path in paths] == before


def test_only_so_many_bytes_are_kept(run_folder: Path) -> None:
    (dictionary,) = open_dictionaries([run_folder]).values()
    kept, made = Kept(100), list[int]()

    def ask(question: int, size: int = 40) -> bytes | None:
        return kept.get(dictionary, question, lambda: made.append(question) or b"x" * size)

    for question in (1, 2, 1, 3, 1, 2):
        assert ask(question) == b"x" * 40
    assert made == [1, 2, 3, 2]
    ask(4, 200)
    ask(4, 200)
    assert made[-2:] == [4, 4]
    assert kept.get(dictionary, 5, lambda: None) is None


# Who keeps it waiting -------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch, serve: Any, run_folder: Path) -> Iterator[Any]:
    monkeypatch.setattr(connection, "PATIENCE", 0.5)
    with serve(run_folder) as client:
        yield client


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "GET",
        "GET / HTTP/1.1\r\nHost: localhost\r\nX-More: ",
        "POST /api/d/small/prompt HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: 99\r\n\r\n{",
        "GET /api/dictionaries HTTP/1.1\r\nHost: localhost\r\n\r\nGET",
    ],
)
def test_half_a_request_is_cut_off(impatient: Any, sent: str) -> None:
    with socket.create_connection((impatient.host, impatient.port), timeout=30) as half:
        half.sendall(sent.encode())
        begun = time.monotonic()
        try:
            while half.recv(65536):
                pass
        except ConnectionResetError:
            pass
        assert time.monotonic() - begun < 20
    assert impatient.ask("/api/dictionaries").status == 200


def test_a_request_that_drips_is_cut_off_too(impatient: Any) -> None:
    begun = time.monotonic()
    with socket.create_connection((impatient.host, impatient.port), timeout=30) as slow:
        try:
            for letter in "GET / HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 1_000:
                slow.sendall(letter.encode())
                time.sleep(0.05)
        except OSError:  # as it should
            pass
    assert time.monotonic() - begun < 20


def test_only_so_many_connections_are_held(monkeypatch: pytest.MonkeyPatch, impatient: Any) -> None:
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 3)
    held = [socket.create_connection((impatient.host, impatient.port), timeout=30) for _ in range(6)]
    time.sleep(0.2)
    for one in held:
        one.close()
    time.sleep(0.2)
    assert impatient.ask("/api/dictionaries").status == 200


@pytest.mark.parametrize(
    "sent",
    [
        "nonsense\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        "GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused_in_json(client: Any, sent: str) -> None:
    with socket.create_connection((client.host, client.port), timeout=30) as asking:
        asking.sendall(sent.encode())
        answer = asking.recv(65536)
        while b"}" not in answer:  # head and body may come apart
            answer += asking.recv(65536)
    assert re.match(rb"HTTP/1.1 4\d\d ", answer)
    assert b'{"error": "' in answer
    assert b"content-security-policy" in answer


# Long work beside quick -----------------------------------------------------------------------------------------------


def test_features_are_answered_while_conditions_do_not_end(client: Any) -> None:
    """Each of these fills its own lane, and one more waits."""
    with ThreadPoolExecutor(5) as others:
        endless = [others.submit(client.ask, "/api/d/small/features", where=ENDLESS) for _ in range(3)]
        time.sleep(0.3)
        begun = time.monotonic()
        assert client.ask("/api/d/small/f/3").status == 200
        assert client.ask("/api/d/small/features", sort="-rate").status == 200
        assert client.ask("/api/d/small/search", q="the").status == 200
        assert not any(one.done() for one in endless) or time.monotonic() - begun > 5
        for one in endless:
            reply = one.result()
            assert (reply.status, "was ended" in reply.json["error"]) == (400, True)


# Names ----------------------------------------------------------------------------------------------------------------


def test_a_server_of_the_network_knows_its_own_names() -> None:
    names = own_names("0.0.0.0", ["Proxy.example"])
    short = socket.gethostname().partition(".")[0].lower()
    assert {short, f"{short}.local", socket.gethostname().lower(), "proxy.example"} <= set(names)
    assert own_names("127.0.0.1") == own_names("::1") == own_names("localhost") == ()
    assert own_names("localhost", ["lab.example."]) == ("lab.example",)
    assert not is_loopback("0.0.0.0")
    addresses = reached_at("0.0.0.0", 8321)
    assert addresses[0] == "http://127.0.0.1:8321"
    assert f"http://{socket.gethostname()}:8321" in addresses
    assert reached_at("::", 1)[0] == "http://[::1]:1"
    assert reached_at("192.0.2.7", 1) == ["http://192.0.2.7:1"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to one process")
def test_a_server_of_the_network_says_what_is_open_and_answers_to_its_name(explore: Callable[..., Started]) -> None:
    with explore("--host", "0.0.0.0", "--allow-host", "lab.example") as server:
        name = socket.gethostname()

        def status(host: str) -> bytes:
            with server.connect(f"GET /api/dictionaries HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n") as one:
                return one.recv(12)

        for host in (name, f"{name}:{server.port}", name.upper(), f"{name}.local", "lab.example", "192.168.1.20"):
            assert status(host) == b"HTTP/1.1 200", host
        for host in ("evil.example", f"{name}.evil.example", "lab.example.evil"):
            assert status(host) == b"HTTP/1.1 403", host
        server.process.until(lambda: "without a password" in server.printed)
        warning = next(line for line in server.printed.splitlines() if "without a password" in line)
        assert f"http://{name}:{server.port}" in warning
