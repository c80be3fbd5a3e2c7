"""The prompt page in a real browser: next tokens that are none, the address, two prompts side by side."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the page is not tested")
TEXTS = "She looked at the river and said nothing.", "She looked at the old clock and said nothing."
PROMPT = "/d/small/prompt"


def address(**query: str) -> str:
    return f"{PROMPT}?{urlencode(query)}"


def test_a_next_token_that_is_none_is_refused_beside_its_field(look: Callable[..., Any], site: Any) -> None:
    with look(site.base) as visit:
        visit.open(address(q=TEXTS[0]))
        visit.sees("tbody .cell[data-i]")
        field = visit.page.get_by_label("next token")
        field.fill("not a token")
        field.press("Enter")
        visit.sees("#target-words", "“not a token” is not a token of the model")
        sync_api.expect(field).to_have_attribute("aria-invalid", "true")
        assert visit.page.get_by_role("button", name="effect on").count() == 0, "no other token in its place"
        told = visit.page.locator("#target-words").bounding_box()
        beside = field.bounding_box()
        assert abs(told["y"] - beside["y"]) < 60
        visit.shoot("prompt-refused")

        visit.page.locator("#target-words button", has_text="« not»").click()
        visit.sees("[aria-pressed=true]", "effect on « not»")
        assert parse_qs(visit.query)["target"] == [" not"]
        sync_api.expect(field).to_have_attribute("aria-invalid", "false")
        visit.sees("#target-words", "«not»")


def test_what_was_chosen_is_in_the_address_and_there_again(look: Callable[..., Any], site: Any) -> None:
    with look(site.base) as visit:
        page = visit.page
        visit.open(address(q=TEXTS[0], r=TEXTS[1], target=" not"))
        visit.sees("th .differs .other")
        page.get_by_role("button", name="rarity", exact=True).click()
        page.locator("th button.cell[aria-label*='river']").click()
        visit.sees(".bar h2", "« river» → « old»")
        page.locator("tbody tr").nth(1).locator("td").last.click()
        chosen = parse_qs(visit.query)
        assert (chosen["order"], chosen["r"], chosen["target"]) == (["rarity"], [TEXTS[1]], [" not"])
        assert page.locator("th button.cell").nth(int(chosen["token"][0])).get_attribute("aria-pressed") == "true"

        def shown() -> list[Any]:
            visit.sees("tr.selected")
            page.mouse.move(0, 0)
            return [
                page.locator("tbody .name").all_inner_texts(),
                page.locator("tr.selected .name").inner_text(),
                page.locator("p.words").inner_text(),
                page.locator("p.text .selected").all_inner_texts(),
                page.locator(".sorts [aria-pressed=true]").inner_text(),
            ]

        before = shown()
        assert before[3] == [" river", " old"]
        page.reload()
        assert shown() == before


def test_two_prompts_are_aligned_and_their_features_sorted_by_difference(look: Callable[..., Any], site: Any) -> None:
    first, second = (site.send("POST", "/api/d/small/prompt", {"text": text, "top": 128}) for text in TEXTS)
    with look(site.base) as visit:
        page = visit.page
        visit.open(address(q=TEXTS[0], r=TEXTS[1]))
        visit.sees("th .differs .other")
        assert page.locator("p.text").nth(0).locator(".changed").all_inner_texts() == [" river"]
        assert "".join(page.locator("p.text").nth(1).locator(".changed").all_inner_texts()) == " old clock"
        visit.sees(".sorts [aria-pressed=true]", "difference")

        # The largest difference at an aligned token, counted again: the texts differ in " river" and " old clock".
        texts = [[token["text"] for token in prompt["tokens"]] for prompt in (first, second)]
        at, more = texts[0].index(" river"), len(texts[1]) - len(texts[0])

        def value(prompt: Any, place: int | None, latent: int) -> float:
            return (
                0.0 if place is None else next((v for f, v, _ in prompt["tokens"][place]["features"] if f == latent), 0)
            )

        pairs = [(i, i) for i in range(at + 1)]
        pairs += [(None, at + 1 + i) for i in range(more)] + [(i, i + more) for i in range(at + 1, len(texts[0]))]
        differences: dict[int, float] = {}
        for latent in {int(f) for prompt in (first, second) for f in prompt["features"]}:
            most = (first["features"].get(str(latent)) or second["features"][str(latent)])["max"]
            found = [(value(first, a, latent), value(second, b, latent)) for a, b in pairs]
            most = max(most, *(v for pair in found for v in pair))
            differences[latent] = max(((b - a) / most for a, b in found), key=abs)
        rows = page.locator("tbody tr")
        shown = [
            (
                int(str(row.locator(".name a").get_attribute("href")).rpartition("/")[2]),
                row.locator("td").nth(2).inner_text(),
            )
            for row in rows.all()[:12]
        ]
        sizes = sorted((abs(d) for d in differences.values()), reverse=True)
        for (latent, words), size in zip(shown, sizes, strict=False):
            said = float(words.replace("\u2212", "-")) / 100
            assert said == pytest.approx(differences[latent], rel=0.01)
            assert abs(said) == pytest.approx(size, rel=0.01), "strongest difference first"

        # Hover says what the row says, in the same unit.
        row = rows.first
        cells = row.locator("td .cell")
        for i in range(cells.count()):
            cells.nth(i).hover()
            if f"difference {shown[0][1]} % of its maximum" in visit.sees(".tip").inner_text():
                break
        else:
            pytest.fail("no cell has the row's difference")
        visit.shoot("prompts-aligned")


def test_a_text_s_shading_says_what_it_is(look: Callable[..., Any], site: Any) -> None:
    read = site.send("POST", "/api/d/small/prompt", {"text": TEXTS[0]})
    last = max(read["tokens"][-1]["features"], key=lambda fired: fired[2])
    with look(site.base) as visit:
        page = visit.page
        visit.open(address(q=TEXTS[0]))
        visit.sees("tbody .cell[data-i]")
        page.locator("p.text [data-u]").last.hover()
        visit.sees(".tip", f"rarity {last[2]:.3g}")
        assert "of its maximum" not in page.locator(".tip").inner_text()
        page.locator("tbody tr").first.locator("td").last.click()
        visit.sees("p.words", "shaded by the activation of")
        page.locator("p.text mark").first.hover()
        visit.sees(".tip", "activation")
