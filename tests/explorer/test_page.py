"""The page in a real browser, on the real server of a real harvest; screenshots of what it saw on the way."""

from __future__ import annotations

import functools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from monosem.explorer.dictionary import open_dictionaries
from monosem.explorer.export import export_site
from monosem.explorer.page import Page

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the page is not tested")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = os.environ.get("MONOSEM_SCREENSHOTS")
"""A folder to keep the screenshots in; else they go with the test's temporary files."""

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the page is not tested"),
    pytest.mark.skipif(not Page().built, reason="the page is not built (`make page`): it is not tested"),
]
WAIT = 60_000
"""Milliseconds; on a busy machine everything takes long."""


Serve = Callable[..., Any]


class Reader:
    """A browser window; it fails at its end if the console showed an error."""

    def __init__(self, browser: Any, folder: Path, **settings: Any) -> None:
        self.context = browser.new_context(viewport={"width": 1280, "height": 900}, **settings)
        self.context.set_default_timeout(WAIT)
        self.page = self.context.new_page()
        self.folder = folder
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def shoot(self, name: str) -> None:
        path = self.folder / f"{name}.png"
        self.page.screenshot(path=path)
        assert path.stat().st_size > 10_000, f"{name}: an empty page"


@pytest.fixture(scope="session")
def page() -> Page:
    """The built page, which `serve` of conftest.py then serves."""
    return Page()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def shots(tmp_path: Path) -> Path:
    folder = Path(SHOTS) if SHOTS else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def reading(browser: Any, folder: Path, **settings: Any) -> Iterator[Reader]:
    reader = Reader(browser, folder, **settings)
    try:
        yield reader
        assert reader.errors == []
    finally:
        reader.context.close()


@pytest.fixture(scope="module")
def folder(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of its own: this test writes notes."""
    folder = tmp_path_factory.mktemp("page") / "small"
    shutil.copytree(small_run, folder)
    return folder


def total(page: Any) -> int:
    """Features that the overview's table says it holds."""
    ready = "!document.querySelector('main .stale') && /feature/.test(document.querySelector('.total')?.textContent)"
    page.wait_for_function(ready)
    return int(page.locator(".total").inner_text().split()[0].replace(",", ""))


def test_overview_loads_brushes_and_opens_a_feature(browser: Any, serve: Serve, folder: Path, shots: Path) -> None:
    with serve(folder) as client, reading(browser, shots, color_scheme="light") as reader:
        page, base = reader.page, f"http://{client.host}:{client.port}"
        dictionary = client.get("/api/d/small")
        page.goto(base + "/")
        assert total(page) == dictionary["n_latents"]
        reader.shoot("overview")

        # Half of the histogram: what the page counts is what the API counts under the range in the address.
        histogram = page.get_by_label("Histogram of features by rate")
        box = histogram.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 60)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 60, steps=4)
        page.mouse.up()
        page.wait_for_function("location.search.includes('range=rate')")
        page.locator(".chip").wait_for()
        page.wait_for_timeout(300)
        left = total(page)
        assert 0 < left < dictionary["n_latents"]
        assert left == client.get("/api/d/small/features?" + page.evaluate("location.search.slice(1)"))["total"]

        # Keys: select the second row, open it, go on to the row after it.
        rows = client.get("/api/d/small/features?" + page.evaluate("location.search.slice(1)"))["rows"]
        page.keyboard.press("Escape")
        page.locator("body").press("j")
        page.keyboard.press("j")
        page.keyboard.press("Enter")
        page.wait_for_url(f"{base}/d/small/f/{rows[1]['latent']}")
        page.locator("h1 .number", has_text=f"f/{rows[1]['latent']}").wait_for()
        page.keyboard.press("ArrowRight")
        page.locator("h1 .number", has_text=f"f/{rows[2]['latent']}").wait_for()
        page.go_back()
        page.go_back()
        assert total(page) == left

        # One command, one origin: nothing was asked of anyone else.
        assert {url for url in reader.asked if not url.startswith(base)} == set()


def test_feature_shows_numbers_on_hover(browser: Any, serve: Serve, folder: Path, shots: Path) -> None:
    with serve(folder) as client, reading(browser, shots, color_scheme="dark") as reader:
        page, base = reader.page, f"http://{client.host}:{client.port}"
        latent = client.get("/api/d/small/features", sort="-rate", limit=1)["rows"][0]["latent"]
        feature = client.get(f"/api/d/small/f/{latent}")
        page.goto(f"{base}/d/small/f/{latent}")
        page.locator(".passage").first.wait_for()
        reader.shoot("feature-dark")
        marks = page.locator(".passage mark.peak").first
        assert float(marks.get_attribute("aria-description").replace(",", "")) == pytest.approx(
            feature["max"], rel=0.01
        )
        marks.hover()
        assert "% of its maximum" in page.locator(".tip").inner_text()
        # An expanded passage holds more of the text than the row did.
        row = page.locator(".passage").first
        short = len(row.inner_text())
        row.locator(".value").click()
        page.locator(".passage.open .where").wait_for()
        assert len(page.locator(".passage.open").first.inner_text()) > short
        page.set_viewport_size({"width": 420, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "it scrolls sideways"
        reader.shoot("feature-narrow")


def test_search_and_prompt_find_features(browser: Any, serve: Serve, folder: Path, shots: Path) -> None:
    with serve(folder) as client, reading(browser, shots, color_scheme="light") as reader:
        page, base = reader.page, f"http://{client.host}:{client.port}"
        page.goto(f"{base}/d/small")
        total(page)
        page.keyboard.press("/")
        page.keyboard.type("the")
        page.keyboard.press("Enter")
        page.locator(".result mark").first.wait_for()
        assert page.locator(".result").count() == len(client.get("/api/d/small/search", q="the")["results"])

        page.keyboard.press("p")
        page.get_by_label("text", exact=True).fill("The cat <b>sat</b> on the mat.")
        page.keyboard.press("Enter")
        page.locator("tbody .cell[data-i]").first.wait_for()
        assert "<b>sat</b>" in page.locator("p.text").inner_text(), "markup in a text is text"
        assert page.locator("p.text b").count() == 0
        reader.shoot("prompt")
        # The address alone gives the same again.
        page.reload()
        page.locator("tbody .cell[data-i]").first.wait_for()


def test_note_is_there_after_a_restart_and_in_an_export(
    browser: Any, serve: Serve, folder: Path, shots: Path, tmp_path: Path
) -> None:
    label = "marks <i>the</i> end"
    with serve(folder) as client, reading(browser, shots) as reader:
        page = reader.page
        page.goto(f"http://{client.host}:{client.port}/d/small/f/5")
        page.locator("h1 .number").wait_for()
        page.keyboard.press("l")
        page.keyboard.type(label)
        page.keyboard.press("Enter")
        page.locator("h1", has_text=label).wait_for()
        page.keyboard.press("s")
        page.locator(".star.on").wait_for()
        assert client.get("/api/d/small/notes/5")["label"] == label

    with serve(folder) as client, reading(browser, shots) as reader:
        page = reader.page
        page.goto(f"http://{client.host}:{client.port}/d/small/notes")
        page.locator("td", has_text=label).wait_for()
        with page.expect_download() as download:
            page.get_by_role("button", name="export").click()
        assert label in Path(download.value.path()).read_text()

    site = export_site(open_dictionaries([folder]), tmp_path / "site")
    with plain_files(site) as base, reading(browser, shots) as reader:
        page = reader.page
        page.goto(f"{base}/index.html")
        assert total(page) > 0
        page.goto(f"{base}/index.html#/d/small/f/5")
        page.locator("h1", has_text=label).wait_for()
        page.keyboard.press("ArrowRight")
        page.locator("h1 .number", has_text="f/6").wait_for()
        page.goto(f"{base}/index.html#/d/small/search?q=marks")
        page.locator(".result", has_text=label).wait_for()


@contextmanager
def plain_files(folder: Path) -> Iterator[str]:
    """A file server that knows nothing of the page."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
