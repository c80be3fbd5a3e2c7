"""The prompt doctor, doses and rewards in a real browser: they show what the API gives, and take the reader further."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest

from monosem.explorer.page import Page

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the page is not tested")
PROMPT = "The old king went down to the river, and"
API = "/api/d/small"
Look = Callable[..., Any]


def address(view: str, **query: Any) -> str:
    return f"/d/small/{view}?{urlencode(query, doseq=True)}"


def latents(rows: Any) -> list[int]:
    return [int(str(link.get_attribute("href")).rpartition("/")[2]) for link in rows.locator("a").all()]


def test_a_prompt_and_its_answers_are_diagnosed_and_an_edit_is_taken(look: Look, site: Any) -> None:
    request = {"model": "small", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "seed": 0}
    answer = site.send("POST", "/v1/completions", request)["choices"][0]["text"]
    found = site.send("POST", f"{API}/diagnose", {"prompt": PROMPT, "answers": [answer]})
    with look(site.base) as visit:
        page = visit.page
        visit.open(address("doctor", t=0, n=12))
        field = visit.sees("textarea")
        field.fill(PROMPT)
        field.press("Enter")
        visit.sees("section[aria-label=Answer] table")
        assert parse_qs(visit.query)["q"] == [PROMPT]
        for label, part in (("Prompt", found["prompt"]), ("Answer", found["answers"][0])):
            section = page.locator(f"section[aria-label={label}]")
            assert latents(section.locator("tbody")) == [one["latent"] for one in part["unusual"]]
            assert "".join(section.locator(".text").inner_text().split()) == "".join("".join(part["texts"]).split())
        visit.shoot("doctor")

        first = found["prompt"]["unusual"][0]
        row = page.locator("section[aria-label=Prompt] tbody tr").first
        row.locator("td").nth(1).click()
        visit.stands_at(f"f={first['latent']}")
        sync_api.expect(page.locator("section[aria-label=Prompt] mark")).to_have_count(first["fires"])
        row.get_by_role("button", name="avoid").click()
        best = site.send("POST", f"{API}/avoid", {"prompt": PROMPT, "latents": [first["latent"]]})
        table = visit.sees("section[aria-label=avoid] tbody")
        assert table.locator("tr").count() == len(best["candidates"])
        table.get_by_role("button", name="take").first.click()
        sync_api.expect(field).to_have_value(best["candidates"][0]["prompt"])
        assert parse_qs(visit.query)["q"] == [best["candidates"][0]["prompt"]]
        page.go_back()
        sync_api.expect(field).to_have_value(PROMPT)


def test_what_is_wrong_with_a_prompt_is_said(look: Look, site: Any) -> None:
    with look(site.base) as visit:
        visit.open(address("doctor", q="The " * 300))
        visit.sees(".error", "do not fit the model's context of 256")
        visit.errors.clear()  # the browser tells of a 400


def test_doses_are_drawn_with_their_knee_and_one_is_taken(look: Look, site: Any) -> None:
    latent = site.get(f"{API}/features", sort="-rate", limit=1)["rows"][0]["latent"]
    with look(site.base) as visit:
        page = visit.page
        visit.open(address("play", q="The history of", f=f"{latent}:add:0", t=0, n=4))
        visit.sees("button", "dose-response").click()
        visit.stands_at(f"dose={latent}")
        visit.sees("section[aria-label=dose-response] .knee")
        curves = page.locator("section[aria-label=dose-response] svg")
        assert [curve.locator("circle").count() for curve in curves.all()] == [8, 8, 8]
        assert [curve.locator(".mark").count() for curve in curves.all()] == [1, 1, 1]
        rows = page.locator("section[aria-label=dose-response] tbody tr")
        strengths = [float(row.locator("td").first.inner_text()) for row in rows.all()]
        assert strengths == sorted(strengths)
        assert strengths[0] == 0
        visit.shoot("doses")
        rows.nth(2).click()
        slider = page.get_by_label(f"amount of f/{latent}")
        sync_api.expect(slider).not_to_have_value("0")
        assert float(slider.input_value()) == pytest.approx(strengths[2], rel=0.01)
        visit.sees("section[aria-label=Steered] .report", "changed")
        sync_api.expect(page.locator("section[aria-label=dose-response] tr.selected")).to_have_count(1)


@pytest.fixture(scope="module")
def rewarded(run_folder: Path, reward_model: Path, start: Callable[..., Any]) -> Iterator[Any]:
    with start([run_folder], Page(), reward=str(reward_model)) as client:
        yield client


def test_two_rewards_stand_side_by_side_with_what_makes_the_difference(look: Look, rewarded: Any, site: Any) -> None:
    answers = ["She said nothing.", "The history of the United States"]
    found = rewarded.send("POST", f"{API}/rewards", {"prompt": "What is it?", "answers": answers})
    with look(rewarded.base) as visit:
        page = visit.page
        visit.open("/d/small")
        page.get_by_role("link", name="rewards").click()
        for label, text in zip(("prompt", "first answer", "second answer"), ("What is it?", *answers), strict=True):
            page.get_by_label(label, exact=True).fill(text)
        page.get_by_role("button", name="compare").click()
        visit.sees(".sum")
        shown = [each.inner_text().replace("\u2212", "-") for each in page.locator(".reward b").all()]
        assert [float(each) for each in shown] == pytest.approx([one["reward"] for one in found["answers"]], rel=0.01)
        assert latents(page.locator("tbody")) == [feature["latent"] for feature in found["features"]]
        on = found["features"][3]
        page.locator("tbody tr").nth(3).locator("td").nth(1).click()
        visit.stands_at(f"f={on['latent']}")
        sync_api.expect(page.locator(".text mark")).to_have_count(sum(map(len, on["by_token"])))
        visit.shoot("rewards")
    with look(site.base) as visit:
        visit.open("/d/small/rewards")
        visit.sees(".error", "there is no reward model: monosem explore RUN --reward MODEL")
        assert visit.page.get_by_role("link", name="rewards").count() == 0
