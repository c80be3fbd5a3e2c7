"""A static site opened by double click, in a real browser with its policy on: as the server has it, or why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from monosem.errors import FileError
from monosem.explorer import export_site, open_dictionaries
from monosem.explorer.chunks import read_chunk, write_chunk
from monosem.explorer.page import STATIC_POLICY, Page
from monosem.explorer.shapes import NoteChange

Look = Callable[..., AbstractContextManager[Any]]
LABEL = "</script><img src=x onerror=alert(1)> ends"

INLINE = "document.body.append(Object.assign(document.createElement('script'), { text: 'window.ran = 1' }))"


@pytest.fixture(scope="module")
def site(run_folder: Path, second: Any, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In a folder whose name an address must spell in another way."""
    dictionaries = open_dictionaries([run_folder, second.folder / "features"])
    dictionaries["small"].notes.change(5, NoteChange(label=LABEL))
    folder = export_site(dictionaries, tmp_path_factory.mktemp("site") / "my site #1 %41")
    dictionaries["small"].notes.clear(5)
    return folder


def test_it_opens_from_a_file(site: Path, look: Look) -> None:
    index = site / "index.html"
    with look(index.as_uri(), color_scheme="light") as visit:
        page = visit.page
        visit.open("")
        visit.sees("h1", "2 dictionaries")
        page.get_by_role("link", name="small", exact=True).click()
        visit.sees("tr[data-index]")
        page.get_by_label("Map of").wait_for()
        visit.drag("Histogram of features by rate", 0.5, 0.9)
        visit.sees(".chip", "rate")
        visit.shoot("static-overview")
        page.go_back()
        page.go_back()
        visit.sees("h1", "2 dictionaries")
        visit.open("#/d/small/f/5")
        visit.sees("h1", LABEL)
        page.keyboard.press("ArrowRight")
        visit.sees("h1 .number", "f/6")
        page.keyboard.press("c")
        visit.sees(".pair")
        page.keyboard.press("p")
        visit.sees(".error", "monosem explore")
        assert {url for url in visit.asked if not url.startswith(site.as_uri())} == set()
        opened = {url.removeprefix(site.as_uri()) for url in visit.asked if "/f/" in url}
        assert len(opened) < 8, "features are read as they are opened"


@pytest.mark.parametrize("query", ["the", "ends", "7", "constructor"])
def test_it_searches_names_labels_tokens_and_numbers(site: Path, look: Look, query: str) -> None:
    with look(f"{(site / 'index.html').as_uri()}#/d/small/search?q={query}") as visit:
        visit.open("")
        visit.sees("main p", "A static site looks in")
        if query != "constructor":  # which no word of the text is
            visit.sees(".result", LABEL if query == "ends" else None)


def test_it_finds_the_words_that_features_fire_on(site: Path, client: Any, look: Look) -> None:
    for query in ("the", "of the"):
        served = client.get("/api/d/small/search", q=query, kind="word")
        assert len(served["results"]) > 1
        with look(f"{(site / 'index.html').as_uri()}#/d/small/search?q={query.replace(' ', '+')}&kind=word") as visit:
            visit.open("")
            visit.sees(".result")
            links = visit.page.locator(".result").evaluate_all("rows => rows.map(row => row.querySelector('a').href)")
        assert [int(link.rpartition("/")[2]) for link in links] == [row["latent"] for row in served["results"]]


def test_a_passage_reads_as_on_the_server(site: Path, client: Any, serve: Any, run_folder: Path, look: Look) -> None:
    rows = client.get("/api/d/small/features", sort="-rate", limit=1)["rows"]
    latent = rows[0]["latent"]

    def passages(visit: Any, address: str) -> list[str]:
        visit.open(address)
        visit.sees("h1 .number", f"f/{latent}")
        visit.sees(".passage")
        return visit.page.locator(".passage").all_inner_texts()

    with look((site / "index.html").as_uri()) as visit:
        here = passages(visit, f"#/d/small/f/{latent}")
    with serve(run_folder, page=Page()) as server, look(server.base) as visit:
        assert here == passages(visit, f"/d/small/f/{latent}")
    assert len("".join(here)) > 500


def test_the_policy_lets_nothing_else_run(site: Path, look: Look) -> None:
    index = site / "index.html"
    assert STATIC_POLICY in index.read_text()
    assert not re.search(r"<script>|<style|style=|type=.module", index.read_text())
    with look(index.as_uri()) as visit:
        visit.open("")
        visit.sees("h1")
        visit.page.evaluate(INLINE)
        assert visit.page.evaluate("window.ran") is None
        refused = [error for error in visit.errors if "Content Security Policy" in error]
        assert refused
        visit.errors.clear()


def test_a_part_that_is_missing_is_named(site: Path, look: Look, tmp_path: Path) -> None:
    lost = site / "data/d/small/f/2.js"
    kept = lost.read_bytes()
    lost.unlink()
    try:
        with look((site / "index.html").as_uri()) as visit:
            visit.open("#/d/small/f/64")
            visit.sees(".error", "data/d/small/f/2.js is not in this static site")
            visit.errors.clear()  # the browser says so too
    finally:
        lost.write_bytes(kept)


def test_a_chunk_is_read_back_and_a_damaged_one_named(tmp_path: Path) -> None:
    value = {"text": '"</script>\u2028\\', "numbers": [1, 0.5, None], "nested": {"a": []}}
    write_chunk(tmp_path, "d/x/f/0", value)
    assert read_chunk(tmp_path, "d/x/f/0") == value
    file = tmp_path / "data/d/x/f/0.js"
    assert re.fullmatch(rb'monosem_data\("d/x/f/0","[A-Za-z0-9+/=]+"\)\n', file.read_bytes())
    file.write_bytes(file.read_bytes().replace(b"d/x", b"d/y"))
    with pytest.raises(FileError, match="export the site again"):
        read_chunk(tmp_path, "d/x/f/0")
