"""The page of a graph: by pointer and keys, search, groups, changes, two side by side, and as one file."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import monosem as ms
from monosem.circuits.graph.single_file import graph_page
from monosem.circuits.graph.view import graph_view
from monosem.explorer.page import Page
from monosem.models import SubjectModel
from monosem.sae import load_sae

Look = Callable[..., Any]
PROMPTS = ("The king of France and the queen of", "The king of England was a great")
HOLDS = "[role=application]"


@pytest.fixture(scope="module")
def run(run_folder: Path, bundled: SubjectModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two graphs."""
    folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("graph page") / "small")
    for name, prompt in zip(("a", "b"), PROMPTS, strict=True):
        ms.trace(bundled, load_sae(folder), prompt, progress=False).save(folder / "graphs" / name)
    return folder


@pytest.fixture(scope="module")
def served(run: Path, browser: Any, start: Callable[..., Any]) -> Iterator[Any]:
    with start([run], Page()) as client:
        yield client


def test_a_prompt_is_traced_on_the_page(served: Any, look: Look) -> None:
    with look(served.base) as visit:
        visit.open("/d/small/graphs")
        visit.sees("tbody tr", PROMPTS[0])
        visit.page.get_by_label("a prompt to trace").fill("The king of")
        visit.page.get_by_label("its next token, if not the likeliest").fill(" the")
        visit.page.get_by_role("button", name="trace").click()
        visit.stands_at(r"/graphs/the-king-of-[0-9a-f]{8}$")
        visit.sees("canvas")
        graph = served.get(f"/api/d/small/graphs/{visit.page.url.rpartition('/')[2]}")
        assert [node["label"] for node in graph["nodes"] if node["kind"] == "target"] == [" the"]
        visit.open("/d/small/graphs")
        visit.page.get_by_label("a prompt to trace").fill("The king of")
        visit.page.get_by_label("its next token, if not the likeliest").fill("no such token")
        visit.page.get_by_role("button", name="trace").click()
        visit.sees("[role=alert]", "is not one token")
        visit.errors.clear()  # the browser reports the answer's status too


def test_keys_and_pointer_reach_every_node(served: Any, look: Look) -> None:
    view = served.get("/api/d/small/graphs/a")
    with look(served.base) as visit:
        page = visit.page
        visit.open("/d/small/graphs/a")
        visit.sees("canvas")
        page.locator(HOLDS).focus()
        page.keyboard.press("ArrowLeft")
        target = next(node for node in view["nodes"] if node["kind"] == "target")
        visit.sees("section[aria-label='selected node'] h2", target["label"].strip())
        strongest = page.locator("section[aria-label='selected node'] td.name button").first
        name = strongest.inner_text()
        strongest.click()
        visit.sees("section[aria-label='selected node'] h2", name)
        page.locator(HOLDS).focus()
        page.keyboard.press(" ")
        visit.expect(page.get_by_role("button", name="pin", exact=True)).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("Escape")
        visit.sees("h2", "Nothing selected")
        page.keyboard.press("s")
        page.keyboard.type("token")
        tokens = sum(node["kind"] == "token" for node in view["nodes"])
        visit.sees("[role=status]", re.compile(rf"^{tokens} found"))
        page.keyboard.press("Enter")
        visit.sees("section[aria-label='selected node'] h2", "“")


def test_an_edge_shows_its_heads(served: Any, look: Look) -> None:
    view = served.get("/api/d/small/graphs/b")
    features = [n for n in view["nodes"] if n["kind"] == "feature" and n["position"] < len(view["words"]) - 1]
    feature = max(features, key=lambda node: node["influence"])
    with look(served.base) as visit:
        visit.open("/d/small/graphs/b")
        visit.page.get_by_label("share of influence").fill("1")
        visit.page.get_by_label("find nodes").fill(str(feature["latent"]))
        visit.page.keyboard.press("Enter")
        made = visit.page.locator("section[aria-label='selected node'] table").last
        made.locator("td.num button").first.click()
        edge = visit.sees("section[aria-label='selected edge']")
        edge.locator("tbody tr, p:has-text('No attention')").first.wait_for()


def test_influence_filters(served: Any, look: Look) -> None:
    view = served.get("/api/d/small/graphs/a")
    with look(served.base) as visit:
        visit.open("/d/small/graphs/a")
        visit.sees("canvas")
        for share in ("0.5", "1"):
            visit.page.get_by_label("share of influence").fill(share)
            shown = sum(n["rank"] <= float(share) or n["kind"] in ("target", "token") for n in view["nodes"])
            visit.sees(".bar", re.compile(rf"\b{shown} of {view['all']['nodes']} nodes"))


def test_groups_are_found_renamed_and_kept(served: Any, look: Look, run: Path) -> None:
    with look(served.base) as visit:
        page = visit.page
        visit.open("/d/small/graphs/a")
        page.get_by_label("share of influence").fill("1")
        page.get_by_role("button", name="find", exact=True).click()
        first = page.get_by_label("name of the group").first
        first.wait_for()
        first.fill("royalty")
        first.press("Enter")
        visit.sees("section[aria-label='groups'] button", "fold")
        visit.expect(page.get_by_label("name of the group royalty")).to_have_value("royalty")
        visit.expect(page.locator("[role=status]", has_text="Not kept")).to_have_count(0)
        visit.open("/d/small/graphs/a")
        page.get_by_label("name of the group royalty").wait_for()
    assert "royalty" in [group["name"] for group in ms.Graph.load(run / "graphs/a").supernodes]


def test_a_slider_predicts_and_measures(served: Any, look: Look) -> None:
    view = served.get("/api/d/small/graphs/b")
    features = [node for node in view["nodes"] if node["kind"] == "feature"]
    feature = max(features, key=lambda node: node["influence"])
    with look(served.base) as visit:
        page = visit.page
        visit.open("/d/small/graphs/b")
        page.get_by_label("find nodes").fill(str(feature["latent"]))
        page.keyboard.press("Enter")
        page.get_by_role("button", name="change", exact=True).click()
        rows = page.locator("section[aria-label='changes'] tbody tr")
        rows.first.wait_for()
        selected = page.locator("section[aria-label='selected node'] p").first.inner_text()
        position = int(selected.rpartition("#")[2])
        changed = f"resid_post.2/{feature['latent']}@{position}"
        asked = {"changes": [{"nodes": [changed], "factor": 0}]}
        measured = served.send("POST", "/api/d/small/graphs/b/change", asked)["targets"]
        shown = rows.first.locator("td").all_inner_texts()
        assert shown[0].strip() == measured[0]["label"].strip()
        assert float(shown[4].replace("−", "-")) == pytest.approx(measured[0]["measured"], rel=0.01, abs=1e-4)
        before = rows.first.inner_text()
        page.get_by_label("factor of").fill("2")
        visit.expect(rows.first).not_to_have_text(before)


def test_two_prompts_side_by_side(served: Any, look: Look) -> None:
    with look(served.base) as visit:
        visit.open("/d/small/graphs/a")
        visit.page.get_by_label("beside another graph").select_option("b")
        visit.stands_at(r"\?beside=b$")
        visit.expect(visit.page.locator("canvas")).to_have_count(2)
        visit.page.locator("tbody button").first.click()
        visit.sees("tbody tr")


def test_one_file_needs_nothing_else(browser: Any, look: Look, run: Path, tmp_path: Path) -> None:
    """Opened as a file, with a label that would be HTML, and a thousand nodes within a second."""
    graph = ms.Graph.load(run / "graphs/b")
    latent = int(graph.nodes.latent[graph.top(1)[0]])
    graph.labels[("resid_post.2", latent)] = "<img src=x onerror=document.title='run'>"
    through = [{"layer": 3, "head": 1, "value": 0.5, "reads": 1, "writes": 2}]
    graph.heads = {(graph.nodes.id(graph.top(1)[0]), graph.nodes.id(int(row))): through for row in graph.rows}  # type: ignore[assignment]
    path = graph.html(tmp_path / "graph.html")
    with look(path.as_uri()) as visit:
        visit.open("")
        visit.sees("canvas")
        visit.page.get_by_label("find nodes").fill("<img")
        visit.page.keyboard.press("Enter")
        visit.sees("section[aria-label='selected node'] h2", "<img src=x")
        visit.page.locator("section[aria-label='selected node'] table td.num button").last.click()
        visit.sees("section[aria-label='selected edge'] td.mono", "3.1")
        assert visit.page.title() != "run"
        assert {address.partition(":")[0] for address in visit.asked} == {"file"}
        assert len(visit.asked) == 1


def test_a_thousand_nodes_are_shown_within_a_second(browser: Any, look: Look, run: Path, tmp_path: Path) -> None:
    view = graph_view(ms.Graph.load(run / "graphs/b"))
    feature = next(i for i, node in enumerate(view["nodes"]) if node["kind"] == "feature")
    known, edges = len(view["nodes"]), view["edges"]
    target = next(i for i, node in enumerate(view["nodes"]) if node["kind"] == "target")
    for i in range(1000 - known):
        own = {"id": f"resid_post.2/{i}@{i % 7}", "position": i % 7, "influence": 1e-4, "rank": 0.5}
        view["nodes"].append({**view["nodes"][feature], **own})
        edges["source"].append(known + i)
        edges["target"].append(target)
        edges["value"].append(0.01)
    (tmp_path / "large.html").write_text(graph_page(json.loads(json.dumps(view))))
    with look((tmp_path / "large.html").as_uri()) as visit:
        visit.open("")
        visit.sees("canvas")
        visit.page.get_by_label("share of influence").fill("1")
        visit.sees(".bar", re.compile("1,000 of"))
        drawn = visit.page.evaluate(
            """async () => {
                const start = performance.now()
                const field = document.querySelector('input[type=search]')
                field.value = 'zzz'; field.dispatchEvent(new Event('input', { bubbles: true }))
                await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))
                return performance.now() - start
            }"""
        )
        assert drawn < 1_000
