"""Blind ratings: who is asked what, what is kept, what it says together; in a real browser, by keys alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from monosem.explorer.page import Page
from monosem.features import Explanation, Explanations, FeatureStore, Score

LATENTS = (3, 7, 20)


@pytest.fixture(scope="module")
def explained(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run with explanations by two explainers; on latent 20 both say the same."""
    folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("rating") / "rated")
    store = FeatureStore(folder)
    for maker, value in (("rules", 0.9), ("a model", 0.6)):
        items = [
            Explanation(
                latents=[latent],
                text="the same" if latent == 20 else f"{maker[-4:]} on {latent}",
                explainer=maker,
                scores={"detection": Score(value=value, low=value - 0.1, high=value + 0.1, n=50)},
            )
            for latent in LATENTS
        ]
        Explanations(store.path, maker, items).save()
    return folder


@pytest.fixture
def rated(explained: Path) -> Iterator[Path]:
    yield explained
    explained.joinpath("features.ratings.json").unlink(missing_ok=True)


def answer_all(client: Any, rater: str, pick: Callable[[list[str]], int | None]) -> list[dict[str, Any]]:
    """Rate until the end; what was asked."""
    asked = [client.get("/api/d/rated/rating", rater=rater)]
    while asked[-1]["latent"] is not None:
        now = asked[-1]
        given = {"rater": rater, "latent": now["latent"], "choice": pick(now["options"]), "monosemantic": "yes"}
        asked.append(client.send("POST", "/api/d/rated/rating", given))
    return asked


def test_two_raters_are_asked_the_same_blindly_and_counted(rated: Path, serve: Callable[..., Any]) -> None:
    def best(options: list[str]) -> int:
        return next(i for i, text in enumerate(options) if text.startswith(("ules", "the")))

    with serve(rated) as client:
        first = answer_all(client, "ann", best)
        second = answer_all(client, "bob", lambda options: None if "the same" in options else best(options))
        assert [one["latent"] for one in first] == [one["latent"] for one in second]
        assert {one["latent"] for one in first[:-1]} == set(LATENTS)
        assert [one["done"] for one in first] == [0, 1, 2, 3]
        blind = json.dumps(first[:-1])
        assert "rules" not in blind
        assert "a model" not in blind
        assert sorted(len(one["options"]) for one in first[:-1]) == [1, 2, 2]
        found = client.get("/api/d/rated/rating/results")
        refused = client.ask(
            "/api/d/rated/rating", "POST", {"rater": "x", "latent": 3, "choice": 9, "monosemantic": "yes"}
        )
        assert (refused.status, client.ask("/api/d/rated/rating", rater="").status) == (400, 422)
    by = {one["explainer"]: one for one in found["explainers"]}
    assert (by["rules"]["chosen"]["hits"], by["rules"]["chosen"]["n"]) == (5, 6)
    assert (by["a model"]["chosen"]["hits"], by["a model"]["chosen"]["n"]) == (1, 6)
    assert by["rules"]["score"] == pytest.approx(0.9)
    assert found["none"]["hits"] == 1
    choice, kind = found["agreement"]
    assert (choice["same"]["hits"], choice["same"]["n"], kind["same"]["share"]) == (2, 3, 1.0)
    assert choice["same"]["low"] < 2 / 3 < choice["same"]["high"]
    # of six answers: four "rules" alone, one of both, one none
    assert choice["chance"] == pytest.approx((4 / 6) ** 2 + 2 * (1 / 6) ** 2)


def test_an_answer_given_again_takes_the_place_of_the_first(rated: Path, serve: Callable[..., Any]) -> None:
    with serve(rated) as client:
        for choice in (0, None):
            given = {"rater": "ann", "latent": 3, "choice": choice, "monosemantic": "no"}
            client.send("POST", "/api/d/rated/rating", given)
        assert client.get("/api/d/rated/rating/results")["ratings"] == 1
        assert client.get("/api/d/rated/rating", rater="ann")["done"] == 1


def test_by_keys_alone_and_on_where_one_was(rated: Path, look: Callable[..., Any], start: Callable[..., Any]) -> None:
    with start([rated], Page()) as client, look(client.base) as visit:
        page = visit.page
        visit.open("/d/rated/rate")
        page.get_by_label("your name").fill("ann")
        page.keyboard.press("Enter")
        visit.sees("p", "1 of 3")
        page.keyboard.press("Enter")  # nothing is chosen yet
        page.keyboard.press("1")
        page.keyboard.press("y")
        page.keyboard.press("Enter")
        visit.sees("p", "2 of 3")
        from axe_playwright_python.sync_playwright import Axe

        assert Axe().run(page).response["violations"] == []
        visit.shoot("rating")
        page.reload()
        visit.sees("p", "2 of 3")
        for _ in range(2):
            page.keyboard.press("0")
            page.keyboard.press("u")
            page.keyboard.press("Enter")
            page.wait_for_timeout(300)
        visit.sees("table.rated td", "rules")
        visit.shoot("rated")
    kept = json.loads((rated / "features.ratings.json").read_text())
    assert [len(one["choice"]) for one in kept["ratings"]][1:] == [0, 0]


def test_the_command_prints_results(rated: Path, serve: Callable[..., Any], monosem: Callable[..., Any]) -> None:
    nothing = monosem("rate", rated, "--results")
    assert "Nothing is rated yet" in nothing.out
    with serve(rated) as client:
        answer_all(client, "ann", lambda options: 0)
    printed = monosem("rate", rated, "--results").out
    assert "3 ratings by ann" in printed
    assert "features.ratings.json" in printed.replace("\n", "")


def test_without_explanations_it_says_what_to_do(run_folder: Path, tmp_path: Path, monosem: Callable[..., Any]) -> None:
    folder = shutil.copytree(run_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("explanations"))
    done = monosem("rate", folder, "--no-open")
    assert done.code == 2
    assert "monosem explain" in done.err
