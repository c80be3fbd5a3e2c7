"""The feature page in a real browser: previews, a text of one's own, labels, copies, contexts, paper."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monosem.explorer.page import Page

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the page is not tested")
TEXT = "The old king went down to the river, and then he slept."
Look = Callable[..., Any]


@pytest.fixture(scope="module")
def feature(site: Any) -> Any:
    """One that fires often, with neighbours and passages."""
    row = site.get("/api/d/small/features", sort="-rate", limit=1)["rows"][0]
    return site.get(f"/api/d/small/f/{row['latent']}")


@pytest.fixture(scope="module")
def path(feature: Any) -> str:
    return f"/d/small/f/{feature['latent']}"


def number(words: str) -> float:
    return float(words.replace(",", "").replace("\u2212", "-"))


def test_a_link_to_a_feature_shows_its_passages_to_pointer_and_keyboard(look: Look, site: Any, path: str) -> None:
    pages = {path: ".facts-grid a", "/d/small": "tr[data-index] a", "/d/small/prompt?q=The+river": "td.name a"}
    with look(site.base) as visit:
        page = visit.page
        for address, links in pages.items():
            visit.open(address)
            link = visit.sees(links).first
            latent = str(link.get_attribute("href")).rpartition("/")[2]
            (preview,) = site.get("/api/d/small/previews", latents=latent)
            for reach, leave in ((link.hover, lambda: page.mouse.move(2, 2)), (link.focus, link.blur)):
                reach()
                visit.sees(".tip.feature .line")
                assert page.locator(".tip.feature .line").count() == len(preview["passages"])
                assert latent in page.locator(".tip .called").inner_text()
                assert link.get_attribute("aria-describedby") == page.locator(".tip").get_attribute("id")
                leave()
                sync_api.expect(page.locator(".tip")).to_have_count(0)


def test_a_text_of_one_s_own_is_shaded_by_the_feature(look: Look, site: Any, feature: Any, path: str) -> None:
    latent = feature["latent"]
    read = site.send("POST", "/api/d/small/prompt", {"text": TEXT, "latents": [latent]})
    values = [fired[0][1] if (fired := token["features"]) else 0 for token in read["tokens"]]
    assert max(values) > 0
    with look(site.base) as visit:
        page = visit.page
        visit.open(path)
        field = visit.sees(".own input")
        field.fill(TEXT)
        field.press("Enter")
        words = visit.sees(".own [role=status]", "strongest").inner_text()
        assert number(words.split()[1].rstrip(",")) == pytest.approx(max(values), rel=0.01)
        assert f"(token {values.index(max(values))})" in words
        assert f"on at {sum(v > 0 for v in values)} of" in words
        marks = page.locator(".own mark")
        shown = [number(mark.get_attribute("aria-description")) for mark in marks.all()]
        assert shown == pytest.approx([v for v in values if v > 0], rel=0.01)
        visit.shoot("own-text")
        page.reload()
        sync_api.expect(marks).to_have_count(len(shown))
        field.blur()
        page.keyboard.press("ArrowRight")
        visit.stands_at("text=The")
        visit.sees(".own [role=status]")


def test_a_name_s_piece_is_underlined_and_no_name_is_a_number(
    look: Look, serve: Any, run_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_folder / "features", tmp_path / "named")
    (file,) = (tmp_path / "named/features").glob("*.parquet")
    table = pq.read_table(file)
    for column, first in (("name", ["naïve Lut·her", None]), ("name_piece", [[10, 13], None])):
        values = pa.array([*first, *table[column].to_pylist()[2:]], table.schema.field(column).type)
        table = table.set_column(table.schema.get_field_index(column), table.schema.field(column), values)
    pq.write_table(table, file)
    index = json.loads((tmp_path / "named/index.json").read_text())
    index["tables"]["features"]["parts"][0]["bytes"] = file.stat().st_size
    (tmp_path / "named/index.json").write_text(json.dumps(index))
    with serve(tmp_path / "named", page=Page()) as client, look(client.base) as visit:
        visit.open("/d/named/f/0")
        assert visit.sees("h1 u").inner_text() == "her"
        visit.open("/d/named?latents=0,1&sort=latent")
        visit.sees_total(2)
        assert visit.page.locator("td.name").all_inner_texts() == ["naïve Lut·her", "f/1"]
        assert visit.page.locator("td.name u").all_inner_texts() == ["her"]


def test_a_store_without_its_model_says_why_no_text_can_be_tried(
    look: Look, serve: Any, run_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_folder / "features", tmp_path / "alone")
    with serve(tmp_path / "alone", page=Page()) as client, look(client.base) as visit:
        visit.open("/d/alone/f/3")
        visit.sees(".own", "weights are not beside")
        assert visit.page.locator(".own input").count() == 0
        visit.sees(".facts-grid", "no histogram of logit weights")


def test_a_label_is_written_beside_the_passages(look: Look, site: Any, feature: Any, path: str) -> None:
    api = f"/api/d/small/notes/{feature['latent']}"
    with look(site.base) as visit:
        page = visit.page
        visit.open(path)
        visit.sees(".passage")
        page.mouse.wheel(0, 500)
        page.wait_for_function("window.scrollY > 300")
        link = page.locator(".passage .value").nth(3)
        link.focus()
        where = page.evaluate("window.scrollY")
        page.keyboard.press("l")
        field = page.get_by_label("label", exact=False).locator("visible=true").first
        sync_api.expect(page.locator(".note.raised")).to_be_visible()
        assert page.evaluate("document.activeElement.tagName") == "INPUT"
        page.keyboard.type("thrown away")
        sync_api.expect(field).to_be_in_viewport()
        sync_api.expect(link).to_be_in_viewport()
        assert page.evaluate("window.scrollY") == where, "nothing scrolls"
        visit.shoot("labelling")
        page.keyboard.press("Escape")
        sync_api.expect(page.locator(".note.raised")).to_have_count(0)
        sync_api.expect(link).to_be_focused()

        page.keyboard.press("l")
        page.keyboard.type("kept")
        page.keyboard.press("Enter")
        visit.sees("h1", "kept")
        sync_api.expect(page.locator(".note.raised")).to_have_count(0)
        sync_api.expect(link).to_be_focused()
        assert page.evaluate("window.scrollY") == where
        assert site.get(api)["label"] == "kept"
        assert site.ask(api, "DELETE").status == 200


def test_a_passage_widens_in_its_place(look: Look, site: Any, path: str) -> None:
    with look(site.base) as visit:
        page = visit.page
        visit.open(path)
        row = visit.sees(".passage").nth(1)
        short = row.inner_text()
        row.hover()
        row.get_by_role("button", name="more of this passage").click()
        visit.sees(".passage.open .where")
        assert len(page.locator(".passage.open .text p").first.inner_text()) >= len(short.split("\n")[-1])
        row.get_by_role("button", name="whole context").click()
        sync_api.expect(row.get_by_role("button", name="whole context")).to_have_count(0)
        visit.stands_at(f"{path}$")
        row.get_by_role("button", name="less").click()
        sync_api.expect(page.locator(".passage.open")).to_have_count(0)


def test_a_feature_is_taken_along_as_link_data_code_and_file(
    look: Look, site: Any, feature: Any, path: str, tmp_path: Path
) -> None:
    with look(site.base, permissions=["clipboard-read", "clipboard-write"]) as visit:
        page = visit.page
        visit.open(path)
        visit.sees(".passage")

        def copied(kind: str) -> str:
            page.get_by_role("button", name=f"copy {kind}").click()
            visit.sees(".status", f"{kind} copied")
            return page.evaluate("navigator.clipboard.readText()")

        assert copied("link") == site.base + path
        assert json.loads(copied("JSON"))["latent"] == feature["latent"]
        assert f"store[{feature['latent']}]" in copied("Python")
        with page.expect_download() as download:
            page.get_by_role("link", name="HTML file").click()
        file = tmp_path / "feature.html"
        download.value.save_as(file)
        assert re.search(r"\.html$", download.value.suggested_filename)
        assert f"feature {feature['latent']}" in file.read_text()


def test_the_histogram_of_logit_weights_counts_the_vocabulary(
    look: Look, site: Any, feature: Any, path: str, bundled: Any
) -> None:
    found = site.get(f"/api/d/small/f/{feature['latent']}/logits")
    edges, counts = found["edges"], found["counts"]
    assert sum(counts) == len(bundled.tokenizer.get_vocab())
    assert edges[-1] == pytest.approx(feature["promoted"][0]["weight"], rel=1e-3)
    assert edges[0] == pytest.approx(feature["suppressed"][0]["weight"], rel=1e-3)
    spread = sum(n * ((a + b) / 2) ** 2 for n, a, b in zip(counts, edges, edges[1:], strict=False)) / sum(counts)
    assert spread**0.5 == pytest.approx(feature["logits"]["deviation"], rel=0.02)
    with look(site.base) as visit:
        visit.open(path)
        visit.sees(".facts-grid").get_by_role("button", name="histogram of logit weights").click()
        visit.sees("[aria-label^='Histogram of logit weights'] rect.bar")
        bars = visit.page.locator("[aria-label^='Histogram of logit weights'] rect.bar")
        assert bars.count() == len(counts)


def test_paper_keeps_shading_whole_passages_and_histograms(look: Look, site: Any, path: str) -> None:
    with look(site.base, color_scheme="dark") as visit:
        page = visit.page
        visit.open(path)
        mark = visit.sees(".passage mark").first
        page.set_viewport_size({"width": 700, "height": 1000})
        page.emulate_media(media="print")
        assert mark.evaluate("e => getComputedStyle(e).printColorAdjust") == "exact"
        assert mark.evaluate("e => getComputedStyle(e).backgroundColor") != "rgba(0, 0, 0, 0)"
        ink = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink')")
        assert ink.strip() == "#1d1c1a", "dark on white, also from a dark window"
        for gone in ("header", ".actions", ".own", ".note"):
            assert not page.locator(gone).first.is_visible(), gone
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
        box, whole = page.locator("svg[aria-label^='Histogram of activations']").first, page.locator("article").first
        assert box.bounding_box()["width"] <= whole.bounding_box()["width"] + 1
        bars = [bar.bounding_box() for bar in page.locator("svg[aria-label^='Histogram of activations'] .bar").all()]
        assert all(bar["x"] + bar["width"] <= 700 for bar in bars)
        cut = "e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).overflow === 'hidden'"
        for side in page.locator(".passage .left, .passage .right").all()[:20]:
            assert side.evaluate("e => getComputedStyle(e).display") == "inline" or not side.evaluate(cut)
        visit.shoot("paper")
        assert len(page.pdf(format="A4")) > 10_000
