"""Ten tasks of somebody who looks for features, each done in a real browser as they would do it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from monosem.explorer import export_site, open_dictionaries
from monosem.explorer.page import Page

Look = Callable[..., Any]
API = "/api/d/tasks"


@pytest.fixture(scope="session")
def page() -> Page:
    """The built page, which `serve` of conftest.py then serves."""
    return Page()


@pytest.fixture(scope="module")
def run(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run, copied: some tasks write notes."""
    return Path(shutil.copytree(run_folder, tmp_path_factory.mktemp("tasks") / "tasks"))


@pytest.fixture(scope="module")
def client(run: Path, browser: Any, start: Any) -> Iterator[Any]:
    """A server of this run."""
    with start([run], Page()) as found:
        yield found


@pytest.fixture
def visit(look: Look, client: Any) -> Iterator[Any]:
    """A window on the first page; it fails at its end if the browser met an error."""
    with look(client.base) as found:
        found.open("/")
        found.sees("tr[data-index] .name")
        yield found


def search(visit: Any, words: str) -> None:
    """Search by the field at the top."""
    visit.page.keyboard.press("/")
    visit.page.keyboard.type(words)
    visit.page.keyboard.press("Enter")
    settled(visit, f"/search.*q={words}")


def settled(visit: Any, address: str) -> None:
    """Wait until the results are those of the address."""
    visit.stands_at(address)
    visit.sees(".result")
    visit.expect(visit.page.locator("main .stale")).to_have_count(0, timeout=60_000)


def numbers(visit: Any) -> list[int]:
    """The features that the table or the results show, in order."""
    links = visit.page.locator(".result .name a, tr[data-index] .name a").all()
    return [int(str(link.get_attribute("href")).rpartition("/")[2]) for link in links]


def test_find_a_feature_about_war(visit: Any, client: Any) -> None:
    search(visit, "war")
    best = client.get(f"{API}/search", q="war")["results"][0]
    assert numbers(visit)[0] == best["latent"]
    visit.page.locator(".result .name a").first.click()
    visit.stands_at(f"/f/{best['latent']}$")
    visit.sees(".passage")
    whole_words = [re.findall(r"\w+", text.lower()) for text in visit.page.locator(".passage").all_inner_texts()]
    assert any("war" in words for words in whole_words)


def test_what_fires_on_germany(visit: Any, client: Any) -> None:
    # The small dictionary has no feature for it: its passages are found, and one click away is what fires on it.
    search(visit, "Germany")
    visit.sees("h2", "in its passages")
    visit.expect(visit.page.locator(".result .line").first).to_contain_text("Germany", timeout=60_000)
    visit.page.get_by_role("link", name="Which features fire on this text?").click()
    settled(visit, "kind=text")
    best = client.get(f"{API}/search", q="Germany", kind="text")["results"][0]
    visit.sees(f".result a[href$='/f/{best['latent']}']")
    visit.sees(".result .why", "fires most on")
    peak = best["passage"]["texts"][best["passage"]["peak"]].strip()
    assert f"fires most on «{peak}»" in visit.page.locator(".result").first.inner_text().replace("« ", "«")

    # Of a word that it has one for, the evidence is told.
    search(visit, "war")
    word = client.get(f"{API}/search", q="war")["results"][0]["word"]
    shown = visit.sees(".result .why", "«war»").first.inner_text()
    assert f"fires on {word['fires']} of {word['occurrences']} «war», at {word['strength']:.3g}" in shown
    assert f"{100 * word['share']:.3g} % of its firings" in shown


def test_two_prompts_that_differ_in_a_word(visit: Any) -> None:
    page = visit.page
    page.keyboard.press("p")
    page.get_by_label("text", exact=True).fill("She looked at the river.")
    page.get_by_role("button", name="compare two").click()
    page.get_by_label("second text").fill("She looked at the clock.")
    page.keyboard.press("Enter")
    visit.sees("tbody .name a")
    visit.expect(page.get_by_role("button", name="difference")).to_have_attribute("aria-pressed", "true")
    marked = page.locator("p.text .changed").all_inner_texts()
    assert "".join(marked).split() == ["river", "clock"]


def test_rare_but_clear_features(visit: Any, client: Any) -> None:
    visit.drag("Histogram of features by rate", 0.02, 0.4)
    visit.stands_at("range=rate")
    wanted = client.get(f"{API}/features?{visit.query}&sort=-clarity")
    visit.sees_total(wanted["total"])
    visit.sees('th[aria-sort="descending"]', "clarity")
    assert numbers(visit)[:10] == [row["latent"] for row in wanted["rows"][:10]]


def test_a_histogram_is_brushed_once_it_is_there(visit: Any) -> None:
    label, waiting = "Histogram of features by rate", list[Any]()
    visit.page.route("**/histogram?*", lambda route: waiting.append(route))
    visit.page.reload()
    box = visit.page.get_by_label(label).bounding_box()
    visit.page.mouse.move(box["x"] + 9, box["y"] + 60)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 90, box["y"] + 60)
    for route in waiting:
        route.continue_()
    visit.page.unroute("**/histogram?*")
    visit.page.mouse.up()
    visit.drag(label, 0.02, 0.4)
    visit.stands_at("range=rate")
    assert "undefined" not in visit.page.url


def test_label_star_list_and_restart(look: Look, serve: Any, run: Path) -> None:
    with serve(run) as client, look(client.base) as visit:
        page = visit.page
        visit.open("/d/tasks/f/9")
        visit.sees(".passage")
        page.keyboard.press("l")
        page.keyboard.type("ends of words")
        page.keyboard.press("Enter")
        visit.sees("h1", "ends of words")
        page.keyboard.press("s")
        visit.sees(".star.on")
        page.get_by_label("lists").fill("to check")
        page.get_by_label("lists").press("Enter")
        visit.sees(".note [role=status]", "saved")
    with serve(run) as client, look(client.base) as visit:
        visit.open("/d/tasks?list=to+check&starred=true")
        visit.sees_total(1)
        visit.sees("tr[data-index] .name", "ends of words")


def test_features_that_promote_not(visit: Any, client: Any) -> None:
    search(visit, "not")
    wanted = client.get(f"{API}/search", q="not", kind="promotes", limit=200)["results"]
    group = visit.page.locator("section").filter(has=visit.page.get_by_role("heading", name="promotes"))
    group.get_by_role("link", name="all").click()
    settled(visit, "kind=promotes")
    visit.sees(f".result a[href$='/f/{wanted[0]['latent']}']")
    assert numbers(visit) == [row["latent"] for row in wanted]

    # A longer list has pages.
    total = client.get(f"{API}/search", q="the", kind="words")["groups"][0]["total"]
    assert total > 100
    visit.page.get_by_label("kind of search").select_option("words in passages")
    visit.page.get_by_label("search for").fill("the")
    visit.page.keyboard.press("Enter")
    visit.sees(".pages", f"1 – 50 of {total}")
    visit.page.get_by_role("button", name="next →").click()
    settled(visit, "offset=50$")
    visit.sees(".pages", f"51 – 100 of {total}")
    rest = client.get(f"{API}/search", q="the", kind="words", offset=50)["results"]
    visit.sees(f"[data-result='0'] a[href$='/f/{rest[0]['latent']}']")


def test_ten_highest_kurtosis_by_sql(visit: Any, client: Any) -> None:
    page, refused = visit.page, list[str]()
    page.on("response", lambda answer: refused.append(answer.url) if answer.status == 400 else None)
    page.get_by_role("button", name="SQL").click()
    field = page.get_by_label("SQL condition")
    field.click()
    page.keyboard.type("logit_kur")
    visit.sees("[role=option]", "logit_kurtosis")
    page.keyboard.press("Tab")
    page.keyboard.type("> 3 and mena > 0")
    visit.expect(field).to_have_value("logit_kurtosis > 3 and mena > 0")
    page.keyboard.press("Enter")
    visit.sees("[role=alert]", "mena")
    box, said = field.bounding_box(), page.locator(".sql [role=alert]").bounding_box()
    assert 0 <= said["y"] - box["y"] - box["height"] < 40, "the error stands right under the field"

    field.fill("rate > 0")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("order by logit_kurtosis desc limit 10")
    page.keyboard.press("Enter")
    visit.stands_at("limit=10")
    visit.expect(page.locator("tr[data-index]")).to_have_count(10, timeout=60_000)
    wanted = client.get(f"{API}/features", where="rate > 0", sort="-logit_kurtosis", limit=10)["rows"]
    assert numbers(visit) == [row["latent"] for row in wanted]
    visit.sees('th[aria-sort="descending"]', "kurtosis")
    page.reload()  # all of it is in the address
    visit.sees("tr[data-index] .name")
    visit.expect(page.get_by_label("SQL condition")).to_have_value("rate > 0")
    assert numbers(visit) == [row["latent"] for row in wanted]
    assert refused
    assert all("mena" in url for url in refused), "nothing else was refused"
    assert all("400" in error for error in visit.errors)  # the browser reports each such answer, some of them late
    visit.errors.clear()


def test_share_a_feature_and_a_site(visit: Any, look: Look, run: Path, tmp_path: Path) -> None:
    page = visit.page
    visit.open("/d/tasks/f/9")
    visit.sees(".passage")
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="copy link").click()
    visit.sees("[role=status]", "link copied")
    assert page.evaluate("navigator.clipboard.readText()") == f"{visit.base}/d/tasks/f/9"
    with page.expect_download() as download:
        page.get_by_role("link", name="HTML").click()
    file = tmp_path / "feature.html"
    download.value.save_as(file)
    with look(file.as_uri()) as other:
        other.open("")
        other.sees("h1", "feature 9")
    site = export_site(open_dictionaries([run]), tmp_path / "site")
    with look((site / "index.html").as_uri()) as other:  # a double click
        other.open("#/d/tasks/f/9")
        other.sees(".passage")
        other.page.keyboard.press("o")
        other.sees("tr[data-index] .name")


def test_keyboard_alone(visit: Any, client: Any) -> None:
    press = visit.page.keyboard.press
    search(visit, "the")
    press("Escape")
    for key in ("j", "j", "Enter"):
        press(key)
    second = client.get(f"{API}/search", q="the")["results"][1]["latent"]
    visit.stands_at(f"/f/{second}$")
    visit.sees(".passage")
    press("k")
    visit.sees("h1 .number", f"f/{client.get(f'{API}/search', q='the')['results'][0]['latent']}")
    press("o")
    visit.sees("tr[data-index] .name")
    press("?")
    visit.sees("dialog h1")
    press("Escape")
    press("p")
    visit.expect(visit.page.get_by_label("text", exact=True)).to_be_focused()
    visit.page.keyboard.type("The river")
    press("Enter")
    visit.sees("tbody .name a")
    visit.stands_at("q=The")
    press("Escape")  # out of the field
    # Every link of the table is reached by Tab, and seen to be.
    press("o")
    visit.sees("tr[data-index] .name")
    visit.page.locator("tr[data-index='0'] .name a").focus()
    press("Tab")
    assert visit.page.evaluate("document.activeElement.closest('tr')?.dataset.index") == "1"
    assert visit.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_400_pixels_and_dark(look: Look, client: Any) -> None:
    with look(client.base, color_scheme="dark") as visit:
        page = visit.page
        page.set_viewport_size({"width": 400, "height": 800})
        visit.open("/")
        visit.sees("tr[data-index] .name")
        search(visit, "the")
        page.locator(".result .name a").first.click()
        visit.sees(".passage")
        page.get_by_role("button", name="next feature").click()
        visit.sees(".passage")
        page.get_by_role("link", name="prompt").click()
        page.get_by_label("text", exact=True).fill("The river")
        page.get_by_role("button", name="read").click()
        visit.sees("tbody .name a")
        ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert max(map(int, re.findall(r"\d+", ground))) < 60
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
