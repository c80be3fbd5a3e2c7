"""Several dictionaries: one table, one search, and what two of them are said to share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monosem.explorer.page import Page

Look = Callable[..., Any]


@pytest.fixture(scope="session")
def page() -> Page:
    """The built page, which `serve` of conftest.py then serves."""
    return Page()


def test_dictionaries_stand_in_one_table_and_one_search(
    look: Look, serve: Any, run_folder: Path, second: Any, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    with serve(run_folder, second.folder / "features", tmp_path / "gone") as client, look(client.base) as visit:
        page = visit.page
        small, other = client.get("/api/dictionaries")["dictionaries"]
        assert other["figures"] == []  # it was not evaluated
        evaluation = {each["key"]: each["columns"][0] for each in client.get("/api/d/small")["evaluation"]["metrics"]}
        figures = {each["name"]: each for each in small["figures"]}
        assert {name: each["value"] for name, each in figures.items()} == {
            name: evaluation[name]["value"] for name in ("l0", "fvu", "loss_recovered_mean", "loss_recovered_zero")
        }
        visit.open("/")
        row = visit.sees("tbody tr", "small").inner_text()
        fvu = figures["fvu"]
        for shown in ("topk", "bundled", "256", *(f"{fvu[end]:.3g}" for end in ("value", "low", "high"))):
            assert shown in row
        visit.sees("li", "gone")
        visit.sees("li", "monosem")  # what to do

        for column, first in (("FVU", "small"), ("never fired, %", "second")):  # without a figure it comes last
            page.get_by_role("button", name=column).click()
            visit.sees('th[aria-sort="descending"]', column)
            visit.expect(page.locator("tbody tr").first).to_contain_text(first)

        page.keyboard.press("/")
        page.keyboard.type("the")
        page.keyboard.press("Enter")
        visit.stands_at("/search[?]q=the$")
        found = client.get("/api/search", q="the")["dictionaries"]
        visit.expect(page.locator(".result")).to_have_count(sum(len(each["found"]["results"]) for each in found))
        for each in found:
            heading = page.locator("section").filter(has=page.get_by_role("heading", name=each["name"], exact=True))
            best = each["found"]["results"][0]["latent"]
            link = heading.locator(".result .name a").first
            assert str(link.get_attribute("href")).endswith(f"/d/{each['name']}/f/{best}")


def test_comparison_says_on_the_page_when_two_began_alike(
    look: Look, serve: Any, run_folder: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    with serve(run_folder, copy) as client, look(client.base) as visit:
        visit.open("/compare?a=small&b=copy&by=decoder")
        caution = client.get("/api/compare", a="small", b="copy", by="decoder")["caution"]
        assert "the very same weights" in caution
        visit.expect(visit.page.locator(".caution")).to_have_text(caution)
        visit.open("/d/small/f/4")
        visit.sees(".facts-grid p", "the very same weights")
