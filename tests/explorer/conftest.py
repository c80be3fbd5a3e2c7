"""A real run of the command line behind a real HTTP server, and a second dictionary whose truth is known."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote, urlencode, urlsplit

import pytest
import torch

from monosem.explorer.app import make_app
from monosem.explorer.dictionary import open_dictionaries
from monosem.explorer.page import Page
from monosem.explorer.server import Server, listen
from monosem.features import harvest
from monosem.models import BUNDLED, SubjectModel
from monosem.sae import SAE, load_sae

INDEX = (
    '<!doctype html><html><head><base href="/"><meta name="monosem" content="server"></head>'
    '<body><script defer src="./assets/page-1.js"></script></body></html>'
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("MONOSEM_SCREENSHOTS")
WAIT = 60_000
"""Milliseconds; on a busy machine everything takes long."""
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
        connection = HTTPConnection(self.host, self.port, timeout=180)
        try:
            given = {"Content-Type": "application/json"} if body is not None else {}
            content = None if body is None else body if isinstance(body, bytes) else json.dumps(body)
            target = path + (f"?{urlencode(query, doseq=True, quote_via=quote)}" if query else "")
            connection.request(method, target, content, {**given, **(headers or {})})
            answer = connection.getresponse()
            return Reply(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        finally:
            connection.close()

    @property
    def base(self) -> str:
        """The address of the page."""
        return f"http://{self.host}:{self.port}"

    def get(self, path: str, **query: Any) -> Any:
        reply = self.ask(path, **query)
        assert reply.status == 200, reply
        return reply.json

    def send(self, method: str, path: str, body: Any) -> Any:
        reply = self.ask(path, method, body)
        assert reply.status == 200, reply
        return reply.json


class Windows:
    """Browser windows that are used again: to open one takes more processor time than most visits."""

    SIZE: ClassVar = {"width": 1280, "height": 900}

    def __init__(self, browser: Any) -> None:
        self.browser = browser
        self.free: list[Any] = []

    def new(self, **settings: Any) -> Any:
        """One that nobody had before."""
        context = self.browser.new_context(viewport=self.SIZE, **settings)
        context.set_default_timeout(WAIT)
        return context.new_page()

    def take(self, color_scheme: str) -> Any:
        """One that looks as new."""
        page = self.free.pop() if self.free else self.new()
        page.set_viewport_size(self.SIZE)
        page.emulate_media(media="null", color_scheme=color_scheme)
        return page

    def give(self, page: Any) -> None:
        """Let it be used again, without what the last visit left in it."""
        page.unroute_all(behavior="ignoreErrors")
        page.context.clear_permissions()
        for other in page.context.pages:
            if other is not page:
                other.close()
        if page.url != "about:blank":
            page.evaluate("localStorage.clear()")
        page.mouse.move(0, 0)
        page.goto("about:blank")
        self.free.append(page)


class Visit:
    """A browser window on a server: every error that the browser reports, every address that it asks."""

    def __init__(self, page: Any, base: str, folder: Path) -> None:
        from playwright.sync_api import expect

        self.expect, self.page = expect, page
        self.context = page.context
        self.base, self.folder = base, folder
        self.errors: list[str] = []
        self.asked: list[str] = []
        self._listeners: dict[str, Callable[[Any], None]] = {
            "console": lambda said: self.errors.append(said.text) if said.type == "error" else None,
            "pageerror": lambda error: self.errors.append(str(error)),
            "request": lambda request: self.asked.append(request.url),
        }
        for event, listener in self._listeners.items():
            page.on(event, listener)

    def end(self) -> None:
        """Hear no more of the window."""
        for event, listener in self._listeners.items():
            self.page.remove_listener(event, listener)

    def open(self, path: str) -> None:
        """Go to an address of the server."""
        self.page.goto(self.base + path)

    def sees(self, selector: str, text: str | re.Pattern[str] | None = None) -> Any:
        """Wait until it is there, and shows a text."""
        found = self.page.locator(selector).filter(has_text=text) if text is not None else self.page.locator(selector)
        found.first.wait_for()
        return found

    def sees_total(self, n: int) -> None:
        """Wait until the overview's table counts so many features."""
        self.expect(self.page.locator(".total")).to_have_text(f"{n:,} feature{'s' * (n != 1)}", timeout=WAIT)
        self.expect(self.page.locator("main .stale")).to_have_count(0, timeout=WAIT)

    def stands_at(self, pattern: str) -> None:
        """Wait until the address matches."""
        self.expect(self.page).to_have_url(re.compile(pattern), timeout=WAIT)

    @property
    def query(self) -> str:
        """What follows the question mark in the address."""
        return urlsplit(self.page.url).query

    def drag(self, label: str, start: float, end: float) -> None:
        """Brush a histogram between two shares of its width."""
        self.page.get_by_label(label).locator(".bar").first.wait_for(state="attached")
        histogram = self.page.get_by_label(label)
        histogram.scroll_into_view_if_needed()
        box = histogram.bounding_box()
        assert box is not None
        self.page.mouse.move(box["x"] + box["width"] * start, box["y"] + 60)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + box["width"] * end, box["y"] + 60, steps=4)
        self.page.mouse.up()

    def shoot(self, name: str) -> None:
        """Keep what is in sight."""
        self.page.mouse.move(0, 0)
        path = self.folder / f"{name}.png"
        self.page.screenshot(path=path)
        assert path.stat().st_size > 10_000, f"{name}: an empty page"


@contextmanager
def running(paths: Sequence[Path], page: Page, reward: str | None = None) -> Iterator[Client]:
    """A server in a thread, on a port of its own."""
    app = make_app(open_dictionaries(paths, reward), page=page)
    with listen("127.0.0.1", 0) as listening:
        server = Server(app)
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
def second(small_run: Path, bundled: SubjectModel, made_once: Callable[..., Path], run_folder: Path) -> Second:
    sae = load_sae(small_run)
    order = torch.randperm(sae.n_latents, generator=torch.Generator().manual_seed(1))

    def make(folder: Path) -> None:
        mixed = shuffled(sae, order)
        mixed.save(folder / "sae")
        harvest(mixed, folder / "features", bundled, tokens=4096, progress=False)

    return Second(shutil.copytree(made_once("second", make), run_folder.parent / "second"), order.tolist())


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
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with a random head that gives a text one number."""
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    folder = tmp_path_factory.mktemp("reward") / "model"
    config = AutoConfig.from_pretrained(BUNDLED, num_labels=1)
    logging.set_verbosity_error()  # which would tell of the head's new weights
    module = AutoModelForSequenceClassification.from_pretrained(BUNDLED, config=config)
    with torch.no_grad():
        module.score.weight.copy_(torch.randn(module.score.weight.shape, generator=torch.Generator().manual_seed(5)))
    module.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUNDLED).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def client(run_folder: Path, second: Second, page: Page) -> Iterator[Client]:
    """A server of both dictionaries: `small` and `second`."""
    with running([run_folder, second.folder / "features"], page) as found:
        yield found


@pytest.fixture(scope="session")
def client_at() -> Callable[[int], Client]:
    """Asks the server at a port of this machine."""
    return lambda port: Client("127.0.0.1", port)


@pytest.fixture(scope="session")
def start() -> Callable[..., Any]:
    """`running`, for modules with servers of their own."""
    return running


@pytest.fixture
def serve(page: Page) -> Callable[..., Any]:
    """Other servers, started by a with statement."""
    return lambda *paths, page=page: running(paths, page)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, where the page can be tested."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the page is not tested")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: the page is not tested")
    if not Page().built:
        pytest.skip("the page is not built (`make page`): it is not tested")
    sync_api.expect.set_options(timeout=WAIT)
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def site(browser: Any, run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server of the small run, to take notes in, with the built page."""
    copy = shutil.copytree(run_folder, tmp_path_factory.mktemp("site") / "small")
    with running([copy], Page()) as client:
        yield client


@pytest.fixture(scope="session")
def look(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Opens a window on an address; it fails at its end if the browser met an error.

    With settings of a context it is a new one; so it is where `new` says that something will be left in it (a script of
    every page, a slower processor).
    """
    folder = Path(SHOTS) if SHOTS else tmp_path_factory.mktemp("seen")
    folder.mkdir(parents=True, exist_ok=True)
    windows = Windows(browser)

    @contextmanager
    def opened(base: str, color_scheme: str = "light", new: bool = False, **settings: Any) -> Iterator[Visit]:
        own = new or bool(settings)
        page = windows.new(color_scheme=color_scheme, **settings) if own else windows.take(color_scheme)
        visit = Visit(page, base, folder)
        try:
            yield visit
            assert visit.errors == []
        except BaseException:
            own = True  # as the test has left it, who knows how
            raise
        finally:
            visit.end()
            if own:
                page.context.close()
            else:
                windows.give(page)

    return opened
