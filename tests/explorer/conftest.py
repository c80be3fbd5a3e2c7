"""A real run of the command line behind a real HTTP server, and a second dictionary whose truth is known."""

from __future__ import annotations

import copy
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest
import torch
import uvicorn

from monosem.explorer.app import make_app
from monosem.explorer.dictionary import open_dictionaries
from monosem.explorer.page import Page
from monosem.explorer.server import listen
from monosem.features import harvest
from monosem.models import SubjectModel
from monosem.sae import SAE, load_sae

INDEX = (
    '<!doctype html><html><head><base href="/"><meta name="monosem" content="server"></head>'
    '<body><script type="module" src="./assets/page-1.js"></script></body></html>'
)
REPLACED = 16
"""Latents of the second dictionary that are not of the first."""


class Reply(NamedTuple):
    """An answer of the server."""

    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks a server, with plain HTTP."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    def ask(
        self, path: str, method: str = "GET", body: Any = None, headers: dict[str, str] | None = None, **query: Any
    ) -> Reply:
        connection = HTTPConnection(self.host, self.port, timeout=60)
        try:
            given = {"Content-Type": "application/json"} if body is not None else {}
            content = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
            target = path + (f"?{urlencode(query, doseq=True, quote_via=quote)}" if query else "")
            connection.request(method, target, content, {**given, **(headers or {})})
            answer = connection.getresponse()
            return Reply(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()

    def get(self, path: str, **query: Any) -> Any:
        reply = self.ask(path, **query)
        assert reply.status == 200, reply
        return reply.json

    def send(self, method: str, path: str, body: Any) -> Any:
        reply = self.ask(path, method, body)
        assert reply.status == 200, reply
        return reply.json


@contextmanager
def running(paths: Sequence[Path], page: Page) -> Iterator[Client]:
    """A server in a thread, on a port of its own."""
    app = make_app(open_dictionaries(paths), page=page)
    with listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(app, log_level="warning", access_log=False)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield Client("127.0.0.1", listening.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(timeout=20)


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page of two files."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "index.html").write_text(INDEX)
    (folder / "assets").mkdir()
    (folder / "assets/page-1.js").write_text("document.title = 'monosem'\n")
    return Page(folder)


@pytest.fixture(scope="session")
def run_folder(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, to take notes beside."""
    folder = tmp_path_factory.mktemp("explorer") / "small"
    shutil.copytree(small_run, folder)
    return folder


class Second(NamedTuple):
    """A dictionary whose latent i is latent `order[i]` of the first; the last 16 are other, random ones."""

    folder: Path
    order: list[int]


@pytest.fixture(scope="session")
def second(run_folder: Path, bundled: SubjectModel) -> Second:
    sae = load_sae(run_folder)
    order = torch.randperm(sae.n_latents, generator=torch.Generator().manual_seed(1))
    mixed = shuffled(sae, order)
    folder = run_folder.parent / "second"
    mixed.save(folder / "sae")
    harvest(mixed, folder / "features", bundled, tokens=4096, progress=False)
    return Second(folder, order.tolist())


def shuffled(sae: SAE, order: torch.Tensor) -> SAE:
    """An SAE with its latents in another order, the last of them replaced; the very last never fires."""
    mixed = copy.deepcopy(sae)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc"):
            getattr(mixed, name).copy_(getattr(sae, name)[order])
        rows = torch.randn(REPLACED, sae.d_in, generator=generator)
        rows /= rows.norm(dim=1, keepdim=True)
        mixed.W_dec[-REPLACED:] = rows
        mixed.W_enc[-REPLACED:] = rows * mixed.W_enc[:-REPLACED].norm(dim=1).mean()
        mixed.b_enc[-1] = -100.0
    return mixed


@pytest.fixture(scope="session")
def client(run_folder: Path, second: Second, page: Page) -> Iterator[Client]:
    """A server of both dictionaries: `small` and `second`."""
    with running([run_folder, second.folder / "features"], page) as found:
        yield found


@pytest.fixture
def serve(page: Page) -> Callable[..., Any]:
    """Other servers, started by a with statement."""
    return lambda *paths, page=page: running(paths, page)
