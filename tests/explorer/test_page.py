"""The page in a real browser, on the real server of a real harvest.

`MONOSEM_SCREENSHOTS=FOLDER` keeps what was seen on the way; `MONOSEM_RUNS=RUN:RUN` looks at two runs of your own (the
screenshots of docs/images are made so) instead of the tests' small ones.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pace import pace

from monosem.explorer import export_feature, export_site, open_dictionaries
from monosem.explorer.page import Page

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the page is not tested")
RUNS = os.environ.get("MONOSEM_RUNS")
WAIT = 60_000
"""Milliseconds; on a busy machine everything takes long."""
FIRST_VIEW = 1000
"""Milliseconds from asking for the page until its histogram, its figures and its table are shown."""
Look = Callable[..., Any]
TEXTS = "She looked at the river and said nothing.", "She looked at the clock and said nothing."

# Notes the time at which the first view is whole.
WATCH = """
const seen = new MutationObserver(() => {
  if (!document.querySelector('svg rect.bar') || !document.querySelector('tr[data-index]')) return
  window.firstView = performance.now()
  seen.disconnect()
})
seen.observe(document, { childList: true, subtree: true })
"""


@pytest.fixture(scope="session")
def page() -> Page:
    """The built page, which `serve` of conftest.py then serves."""
    return Page()


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of the same model, copied: these tests write notes."""
    if RUNS:
        found = [Path(path) for path in RUNS.split(os.pathsep)]
    else:
        found = [request.getfixturevalue("small_run"), request.getfixturevalue("second").folder]
    home = tmp_path_factory.mktemp("page")
    return [Path(shutil.copytree(path, home / path.name)) for path in found]


@pytest.fixture(scope="module")
def run(runs: list[Path]) -> Path:
    return runs[0]


def telling(client: Any, name: str) -> int:
    """A feature to look at: the most notable, or the one that fires most."""
    rows = client.get(f"/api/d/{name}/features", sort="-rate", limit=1)["rows"]
    return (client.get(f"/api/d/{name}")["notable"] or [rows[0]["latent"]])[0]


def test_the_first_view_is_there_within_a_second(look: Look, serve: Any, run: Path) -> None:
    with serve(run) as client, look(client.base, new=True) as visit:
        visit.page.add_init_script(WATCH)
        times: list[float] = []
        while len(times) < 6 and min(times, default=FIRST_VIEW) >= FIRST_VIEW:  # the best: the machine may be busy
            visit.open("/")
            visit.sees_total(client.get(f"/api/d/{run.name}")["n_latents"])
            times.append(visit.page.evaluate("window.firstView"))
        assert min(times) < FIRST_VIEW * pace(time.monotonic), times


def test_overview_loads_brushes_and_opens_a_feature(look: Look, serve: Any, run: Path) -> None:
    api = f"/api/d/{run.name}"
    with serve(run) as client, look(client.base, color_scheme="light") as visit:
        page, n_latents = visit.page, client.get(api)["n_latents"]
        visit.open("/")
        visit.sees_total(n_latents)
        if client.get(api)["notable"]:
            visit.sees(".notable .word")
        visit.sees("canvas")
        visit.shoot("overview")

        # A part of the histogram: what the page counts is what the API counts under the range in the address.
        visit.drag("Histogram of features by rate", 0.5, 0.9)
        visit.stands_at(r"range=rate")
        left = client.get(f"{api}/features?{visit.query}")["total"]
        assert 0 < left < n_latents
        visit.sees_total(left)
        visit.sees(".chip", "rate")

        # Sorted by a column's head; then keys: the second row, its page, the row after it, and back.
        page.get_by_role("button", name="max", exact=True).click()
        visit.stands_at(r"sort=-max")
        visit.sees('th[aria-sort="descending"]', "max")
        rows = client.get(f"{api}/features?{visit.query}")["rows"]
        sync_api.expect(page.locator("tr[data-index='0'] td").first).to_have_text(str(rows[0]["latent"]), timeout=WAIT)
        for key in ("j", "j", "Enter"):
            page.keyboard.press(key)
        visit.stands_at(f"/f/{rows[1]['latent']}$")
        visit.sees("h1 .number", f"f/{rows[1]['latent']}")
        page.keyboard.press("ArrowRight")
        visit.sees("h1 .number", f"f/{rows[2]['latent']}")
        page.go_back()
        page.go_back()
        visit.sees_total(left)

        # One command, one origin: nothing was asked of anyone else.
        assert {url for url in visit.asked if not url.startswith(visit.base)} == set()


def test_lasso_on_the_map_filters_the_table(look: Look, serve: Any, run: Path) -> None:
    api = f"/api/d/{run.name}"
    with serve(run) as client, look(client.base) as visit:
        visit.open("/")
        visit.sees("canvas")
        visit.page.get_by_role("button", name="lasso").click()
        box = visit.page.locator("canvas").bounding_box()
        corners = [(0.2, 0.2), (0.6, 0.2), (0.6, 0.8), (0.2, 0.8)]
        for i, (x, y) in enumerate(corners):
            visit.page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)
            if i == 0:
                visit.page.mouse.down()
        visit.page.mouse.up()
        visit.stands_at(r"latents=")
        total = client.get(f"{api}/features?{visit.query}")["total"]
        assert 0 < total < client.get(api)["n_latents"]
        visit.sees_total(total)


def test_feature_shows_its_evidence_and_numbers_on_hover(look: Look, serve: Any, run: Path) -> None:
    api = f"/api/d/{run.name}"
    with serve(run) as client, look(client.base, color_scheme="light") as visit:
        page = visit.page
        latent = telling(client, run.name)
        feature = client.get(f"{api}/f/{latent}")
        visit.open(f"/d/{run.name}/f/{latent}")
        visit.sees(".passage")
        visit.sees(".interval")
        visit.shoot("feature")
        peak = page.locator(".passage mark.peak").first
        shown = float((peak.get_attribute("aria-description") or "").replace(",", ""))
        assert shown == pytest.approx(feature["max"], rel=0.01)
        peak.hover()
        visit.sees(".tip", "% of its maximum")

        # An expanded passage holds more of the text than the row did, and the model reads the whole context again.
        row = page.locator(".passage").first
        short = row.inner_text()
        row.locator(".value").click()
        visit.sees(".passage.open .where")
        long = page.locator(".passage.open").first.inner_text()
        assert len(long) > len(short)
        page.get_by_role("button", name="whole context").click()
        sync_api.expect(page.locator(".passage.open .more")).to_have_count(0, timeout=WAIT)
        assert len(page.locator(".passage.open").first.inner_text()) > len(long)
        assert peak.get_attribute("aria-description") is not None

        # Its histogram, brushed: passages of the range, and no others.
        visit.drag("Histogram of activations", 0.4, 0.7)
        range_shown = visit.sees(".evidence h2", "firing").inner_text().split(":")[0]
        low, high = (float(word.replace(",", "")) for word in range_shown.split(" – "))
        values = [float(text.replace(",", "")) for text in page.locator(".passage .value").all_inner_texts()]
        assert values
        assert all(low * 0.99 <= value <= high * 1.01 for value in values)


def test_every_view_fits_a_narrow_dark_window(look: Look, serve: Any, runs: list[Path]) -> None:
    with serve(*runs) as client, look(client.base, color_scheme="dark") as visit:
        a, b = (each["name"] for each in client.get("/api/dictionaries")["dictionaries"])
        latent = telling(client, a)
        views = {
            "home": ("/", "td a"),
            "overview": (f"/d/{a}", "tr[data-index]"),
            "feature": (f"/d/{a}/f/{latent}", ".passage"),
            "prompt": (f"/d/{a}/prompt?q=The+river", ".cell[data-i]"),
            "search": (f"/d/{a}/search?q=the", ".result mark"),
            "compare": (f"/compare?a={a}&b={b}", ".pair"),
            "notes": (f"/d/{a}/notes", "main p"),
        }
        for name, (path, sign) in views.items():
            visit.page.set_viewport_size({"width": 1280, "height": 900})
            visit.open(path)
            visit.sees(sign)
            visit.shoot(f"{name}-dark")
            visit.page.set_viewport_size({"width": 420, "height": 900})
            visit.shoot(f"{name}-narrow")
            wide = visit.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
            assert wide <= 0, f"{name} scrolls sideways by {wide} pixels"


def test_search_finds_by_token_words_and_similarity(look: Look, serve: Any, run: Path) -> None:
    api = f"/api/d/{run.name}"
    with serve(run) as client, look(client.base, color_scheme="light") as visit:
        page = visit.page
        visit.open("/")
        visit.sees("tr[data-index]")
        page.keyboard.press("/")
        page.keyboard.type("the")
        page.keyboard.press("Enter")
        visit.sees(".result mark")
        found = client.get(f"{api}/search", q="the")["results"]
        sync_api.expect(page.locator(".result")).to_have_count(len(found), timeout=WAIT)
        visit.shoot("search")

        for kind, query in (("similar", "3"), ("text", TEXTS[0])):
            page.get_by_label("kind of search").select_option(kind)
            page.get_by_label("search for").fill(query)
            page.keyboard.press("Enter")
            best = client.get(f"{api}/search", q=query, kind=kind)["results"][0]["latent"]
            visit.stands_at(f"kind={kind}")
            sync_api.expect(page.locator(".result a").first).to_have_attribute(
                "href", re.compile(f"/f/{best}$"), timeout=WAIT
            )

        # A number goes to the feature.
        page.keyboard.press("Escape")
        page.keyboard.press("g")
        page.keyboard.type("17")
        page.keyboard.press("Enter")
        visit.sees("h1 .number", "f/17")


def test_prompt_shows_features_and_compares_two(look: Look, serve: Any, run: Path) -> None:
    with serve(run) as client, look(client.base, color_scheme="light") as visit:
        page = visit.page
        visit.open("/")
        visit.sees("tr[data-index]")
        page.keyboard.press("p")
        page.get_by_label("text", exact=True).fill("The cat <b>sat</b> on the mat.")
        page.keyboard.press("Enter")
        visit.sees("tbody .cell[data-i]")
        assert "<b>sat</b>" in page.locator("p.text").inner_text(), "markup in a text is text"
        assert page.locator("p.text b").count() == 0

        # A token in focus: its features and no others.
        read = client.send("POST", f"/api/d/{run.name}/prompt", {"text": "The cat <b>sat</b> on the mat."})
        last = len(read["tokens"]) - 1
        page.locator("p.text [data-u]").last.click()
        visit.sees(".bar h2", f"{len(read['tokens'][last]['features'])} features of")

        page.get_by_label("text", exact=True).fill(TEXTS[0])
        page.get_by_role("button", name="read").click()
        visit.stands_at("q=She")
        visit.sees("p.text", TEXTS[0])
        visit.shoot("prompt")
        page.get_by_role("button", name="compare two").click()
        page.get_by_label("second text").fill(TEXTS[1])
        page.keyboard.press("Enter")
        visit.sees("p.text", TEXTS[1])
        visit.sees("p.text .other mark")
        visit.sees("th .differs .other")
        visit.shoot("prompts")


def test_two_dictionaries_are_compared(look: Look, serve: Any, runs: list[Path]) -> None:
    with serve(*runs) as client, look(client.base, color_scheme="light") as visit:
        page = visit.page
        a, b = (each["name"] for each in client.get("/api/dictionaries")["dictionaries"])
        visit.open("/")
        page.get_by_role("link", name="Compare two of them").click()
        visit.sees(".pair")
        side = client.get("/api/compare", a=a, b=b)["sides"][0]
        for kind, n in side["counts"].items():
            visit.sees(".sides section:first-child tr", re.compile(f"^{kind}{n:,}"))
        page.get_by_role("button", name="matched").first.click()
        visit.stands_at("kind=matched")
        visit.sees(".section h2", f"matched features of {a}")
        visit.sees(".pair")
        visit.shoot("compare")
        page.locator(".pair a").first.click()
        visit.sees("h1 .number")
        visit.sees(".facts-grid h2", "In other dictionaries")


def test_a_note_is_there_after_a_restart_and_in_an_export(
    look: Look, serve: Any, runs: list[Path], tmp_path: Path
) -> None:
    run, label = runs[0], "marks <i>the</i> end"
    with serve(run) as client, look(client.base) as visit:
        page = visit.page
        visit.open(f"/d/{run.name}/f/5")
        visit.sees("h1 .number")
        page.keyboard.press("l")
        page.keyboard.type(label)
        page.keyboard.press("Enter")
        visit.sees("h1", label)
        page.keyboard.press("s")
        visit.sees(".star.on")
        page.get_by_label("lists").fill("ends, to check")
        page.get_by_label("comment").fill("Seen at full stops.")
        page.get_by_label("comment").blur()
        visit.sees(".note [role=status]", "saved")
        note = client.get(f"/api/d/{run.name}/notes/5")
        assert (note["label"], note["starred"], note["lists"]) == (label, True, ["ends", "to check"])

    with serve(run) as client, look(client.base, color_scheme="light") as visit:
        page = visit.page
        visit.open(f"/d/{run.name}/notes")
        visit.sees("td", label)
        visit.shoot("notes")
        with page.expect_download() as download:
            page.get_by_role("button", name="export").click()
        kept = tmp_path / "notes.json"
        download.value.save_as(kept)
        visit.open(f"/d/{run.name}")
        visit.sees("canvas")
        plain = page.locator("canvas").evaluate("canvas => canvas.toDataURL()")
        page.get_by_label("Map by").select_option("list: ends")
        page.get_by_label(", 1 marked").wait_for()
        assert page.locator("canvas").evaluate("canvas => canvas.toDataURL()") != plain
        visit.open(f"/d/{run.name}/notes")
        # Taken away, and taken in again from the file.
        assert client.ask(f"/api/d/{run.name}/notes/5", "DELETE").status == 200
        page.reload()
        visit.sees("main p", "No notes yet")
        page.get_by_label("import notes from a file").set_input_files(kept)
        visit.sees("td", label)

    site = export_site(open_dictionaries(runs), tmp_path / "site")
    with plain_files(site) as base, look(base) as visit:
        page = visit.page
        visit.open("/index.html")
        visit.sees("h1", "2 dictionaries")
        page.get_by_role("link", name=run.name, exact=True).click()
        visit.sees("tr[data-index]")
        visit.drag("Histogram of features by rate", 0.5, 0.9)
        visit.sees(".chip", "rate")
        visit.open(f"/index.html#/d/{run.name}/f/5")
        visit.sees("h1", label)
        page.keyboard.press("ArrowRight")
        visit.sees("h1 .number", "f/6")
        visit.open(f"/index.html#/d/{run.name}/search?q=marks")
        visit.sees(".result", label)
        page.keyboard.press("c")
        visit.sees(".pair")
        page.keyboard.press("p")
        visit.sees(".error", "monosem explore")
        assert {url for url in visit.asked if not url.startswith(base)} == set()


def test_one_feature_in_one_file_asks_for_nothing(look: Look, run: Path, tmp_path: Path) -> None:
    file = export_feature(open_dictionaries([run]), 5, tmp_path / "feature.html")
    with look(file.as_uri(), color_scheme="light") as visit:
        visit.open("")
        visit.sees("h1", "feature 5")
        visit.shoot("one-file")
        assert visit.asked == [file.as_uri()]


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
