"""Token sets over the wire and on the page: what Python finds, tested once, and refused in a line before."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monosem.analysis import TokenSets, token_sets
from monosem.models import SubjectModel
from monosem.sae import load_sae

API = "/api/d/small/token-sets"


@pytest.fixture(scope="module")
def found(run_folder: Path, bundled: SubjectModel) -> TokenSets:
    return token_sets(load_sae(run_folder / "sae"), bundled, progress=False)


@pytest.fixture(scope="module")
def tested(client: Any) -> dict[str, Any]:
    assert client.get(API)["tested"] is None
    assert client.get("/api/d/small/f/3/token-sets") == {"found": None}
    early = client.ask(f"{API}/features?set=years")
    assert early.status == 409
    assert "ask for that first" in early.json["error"]
    with ThreadPoolExecutor() as beside:
        asked, said = beside.submit(client.send, "POST", API, {}), list[str | None]()
        while not asked.done():
            said.append(client.get(API)["testing"])
    assert any(each is not None for each in said)
    return asked.result()


def test_all_sets_are_those_that_python_finds(client: Any, tested: dict[str, Any], found: TokenSets) -> None:
    assert client.get(API) == tested == client.send("POST", API, {})
    of = tested["tested"]
    assert of["called"] == int((found.enriched != 0).any(1).sum())
    assert {each["name"] for each in of["sets"]} == set(found.names)
    for each in of["sets"]:
        column = found.enriched[:, found.names.index(each["name"])]
        assert (each["promoted"], each["suppressed"]) == (int((column > 0).sum()), int((column < 0).sum()))
        assert each["tokens"] == len(found.tokens[each["name"]])
    assert {each["name"]: each["count"] for each in of["classes"]} == {
        name: found.classes.count(name) for name in found.classes_by_chance
    }
    assert sum(each["share"] for each in of["classes"]) == pytest.approx(1)


def test_features_of_a_set_of_a_class_and_sets_of_a_feature(
    client: Any, tested: dict[str, Any], found: TokenSets
) -> None:
    name = tested["tested"]["sets"][0]["name"]
    for suppressed in (False, True):
        listed = client.get(f"{API}/features", set=name, suppressed=suppressed)
        wanted = found.top(name, 200, suppressed)
        assert [each["latent"] for each in listed["features"]] == [latent for latent, _ in wanted]
        assert listed["total"] == len(wanted)
    listed = client.get(f"{API}/features", **{"class": "none", "limit": 7})
    assert len(listed["features"]) == 7 < listed["total"] == found.classes.count("none")
    rates = [each["rate"] for each in listed["features"]]
    assert rates == sorted(rates, reverse=True)
    latent = int(np.argmax((found.enriched != 0).sum(1)))
    own = client.get(f"/api/d/small/f/{latent}/token-sets")["found"]
    assert own["feature_class"] == found.classes[latent]
    assert [each["set"] for each in own["sets"]] == [each.name for each in found.of(latent)]
    for each, wanted in zip(own["sets"], found.of(latent), strict=True):
        assert each["score"] == pytest.approx(wanted.score, rel=1e-5)


def test_what_there_is_not_is_refused(client: Any, tested: dict[str, Any]) -> None:
    for query, status in (("set=frogs", 400), ("class=frogs", 400), ("", 400), ("class=none&limit=0", 422)):
        assert client.ask(f"{API}/features?{query}").status == status
    assert client.ask("/api/d/small/f/99999/token-sets").status == 404


def test_the_page_shows_them(look: Callable[..., Any], site: Any) -> None:
    tested = site.send("POST", API, {})
    first = tested["tested"]["sets"][0]
    with look(site.base) as visit:
        visit.open("/d/small/token-sets")
        visit.sees("section[aria-label=sets] tr.selected", first["name"])
        rows = visit.page.locator("section[aria-label=sets] tbody tr")
        assert rows.count() == len(tested["tested"]["sets"])
        visit.page.get_by_label("find a set").fill("years")
        visit.sees("section[aria-label=sets] tbody tr", "years")
        assert rows.count() == 1
        visit.shoot("token_sets")
        visit.open("/d/small/token-sets?class=none")
        visit.sees("section[aria-label=features] h2", "none")
        visit.sees("section[aria-label=features] td.feature")
        visit.page.locator("section[aria-label=features] td.feature a").first.click()
        visit.stands_at(r"/d/small/f/\d+")
        visit.sees(".facts-grid", "token sets")
