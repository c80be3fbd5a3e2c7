"""The playground, ablation under passages and total effects in a real browser: they show what the API gives."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import pytest

import monosem as ms
from monosem.explorer.page import Page
from monosem.features import harvest

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: the page is not tested")
TEXT = "The old king went to the"
PLAY, API = "/d/small/play", "/api/d/small"
Look = Callable[..., Any]


def address(path: str, **query: Any) -> str:
    return f"{path}?{urlencode(query, doseq=True)}"


def complete(site: Any, interventions: list[Any]) -> str:
    request = {"model": "small", "prompt": TEXT, "max_tokens": 12, "temperature": 0, "seed": 0}
    return site.send("POST", "/v1/completions", {**request, "interventions": interventions})["choices"][0]["text"]


def both_written(visit: Any) -> None:
    """Wait until the steered text and the plain one are whole."""
    visit.sees("section[aria-label=Steered] .report")
    for head in ("Plain", "Steered"):
        sync_api.expect(visit.page.locator(f"section[aria-label={head}]")).to_have_attribute("aria-busy", "false")


@pytest.fixture(scope="module")
def often(site: Any) -> Any:
    """A feature that fires often."""
    row = site.get(f"{API}/features", sort="-rate", limit=1)["rows"][0]
    return site.get(f"{API}/f/{row['latent']}")


def test_a_slider_writes_the_steered_text_beside_the_plain_one(look: Look, site: Any, often: Any) -> None:
    latent = often["latent"]
    with look(site.base) as visit:
        page = visit.page
        visit.open(address(PLAY, t=0, n=12))
        field = visit.sees("textarea")
        sync_api.expect(field).to_be_focused()
        field.fill(TEXT)
        field.press("Enter")
        plain = visit.sees("section[aria-label=Plain] .text")
        steered = page.locator("section[aria-label=Steered] .text")
        sync_api.expect(plain).to_have_text(re.compile(".{20}"))
        sync_api.expect(page.locator("section[aria-label=Plain]")).to_have_attribute("aria-busy", "false")
        assert steered.count() == 0, "nothing is changed"

        field.fill(f"{TEXT} not yet")  # what is typed stays, whatever slider is moved
        found = page.get_by_label("add a feature")
        found.fill(str(latent))
        found.press("Enter")
        slider = page.get_by_label(f"how much of f/{latent}")
        visit.sees(".slider", "max seen")
        sync_api.expect(slider).to_have_value("0")
        highest = float(slider.get_attribute("max"))
        assert highest >= often["max"]
        slider.focus()
        page.keyboard.press("End")
        both_written(visit)
        assert field.input_value() == f"{TEXT} not yet"
        amount = float(slider.input_value())
        assert amount == pytest.approx(highest)
        assert parse_qs(visit.query)["f"] == [f"{latent}:add:{amount:g}"]
        edit = {"edit": "Add", "latents": [latent], "amount": amount}
        for where, wanted in ((plain, complete(site, [])), (steered, complete(site, [edit]))):
            told = [TEXT, *wanted.split()]
            assert " ".join(where.inner_text().replace("↵", "").split()) == " ".join(" ".join(told).split())
        assert page.locator("section[aria-label=Steered] mark").count() > 0, "shaded by its activation"

        page.get_by_label(f"what is done with f/{latent}").select_option("ablate")
        visit.stands_at(f"f={latent}%3Aablate")
        sync_api.expect(page.locator("section[aria-label=Steered] .report")).to_have_text(re.compile("^Ablate"))


def test_settings_are_kept_by_their_address_and_in_a_list(look: Look, site: Any, often: Any) -> None:
    setting = address(PLAY, q=TEXT, f=f"{often['latent']}:scale:2.5", where="generated", t=0, seed=3, n=6)
    with look(site.base) as visit:
        page = visit.page
        visit.open(setting)
        both_written(visit)
        shown = page.locator(".texts").first.inner_text()
        page.get_by_role("button", name="save", exact=True).click()
        entry = visit.sees("[aria-label='saved settings'] a", f"f/{often['latent']} scale 2.5")
        visit.open(PLAY)
        entry.click()
        visit.stands_at("seed=3")
        both_written(visit)
        assert page.locator(".texts").first.inner_text() == shown
        assert page.locator("label", has_text="steer").locator("select").input_value() == "generated"
        page.get_by_role("button", name="forget").click()
        sync_api.expect(page.locator("[aria-label='saved settings']")).to_have_count(0)
        page.reload()
        visit.sees("section[aria-label=Steered] .report")
        assert page.locator("[aria-label='saved settings']").count() == 0


def test_who_asks_for_what_is_not_there_is_told(look: Look, site: Any) -> None:
    with look(site.base) as visit:
        visit.open(address(PLAY, q=TEXT, n=6, f="9999:add:1"))
        visit.sees("section[aria-label=Steered] .error", "there is no latent 9999")
        visit.sees(".slider", "9999")
        visit.errors.clear()  # the browser tells of a 404 and a 400


def test_ablating_underlines_what_becomes_less_likely(look: Look, site: Any, often: Any) -> None:
    latent, example = often["latent"], often["top"][0]
    found = site.get(f"{API}/f/{latent}/effects", text=example["text"], context=example["context"])
    place = list(zip(found["document"], found["position"], strict=True))
    peak = place.index((example["document"], example["position"]))
    first = peak - example["peak"]
    changes = found["effects"][first : first + len(example["texts"])]
    with look(site.base) as visit:
        page = visit.page
        visit.open(f"/d/small/f/{latent}")
        visit.sees(".passage mark")
        assert page.locator(".passage .lowers, .passage .raises").count() == 0
        page.get_by_role("button", name="ablate").click()
        passage = page.locator(".passage").first
        passage.locator(".lowers, .raises").first.wait_for()
        noticed = [change for change in changes if abs(change or 0) >= 0.05]
        assert passage.locator(".lowers").count() >= sum(change < 0 for change in noticed) - 1
        lowest = min(changes, key=lambda change: change or 0)
        if lowest < -0.05:
            told = set()
            for mark in passage.locator(".lowers").all():
                mark.hover()
                told.add(visit.sees(".tip").inner_text().partition("ablated: ")[2].split(" ")[0])
            assert f"\u2212{abs(lowest):.3g}" in {each.rstrip("0") if "." in each else each for each in told} | told
        visit.shoot("ablated")


def test_an_ablation_that_cannot_be_had_is_told_once(look: Look, serve: Any, run_folder: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_folder, tmp_path / "moved")
    index = run / "features/index.json"
    index.write_text(index.read_text().replace('"bundled:held_out"', '"gone.txt"'))
    with serve(run, page=Page()) as client:
        row = client.get("/api/d/moved/features", sort="-rate", limit=1)["rows"][0]
        with look(client.base) as visit:
            visit.open(f"/d/moved/f/{row['latent']}")
            visit.sees(".passage mark")
            visit.page.get_by_role("button", name="ablate").click()
            visit.sees(".error[role=alert]")
            assert visit.page.get_by_role("button", name="ablate").get_attribute("aria-pressed") == "false"
            assert visit.page.locator(".error").count() == 1
            assert len([error for error in visit.errors if "4" in error]) == len(visit.errors) == 1
            visit.errors.clear()  # the browser tells of a refusal


def test_features_are_sorted_by_their_total_effect_on_a_next_token(look: Look, site: Any) -> None:
    read = site.send("POST", f"{API}/prompt", {"text": TEXT, "target": " river"})
    mentioned = [int(latent) for latent in read["features"]]
    totals = site.send("POST", f"{API}/total", {"text": TEXT, "target": " river", "latents": mentioned})["totals"]
    with look(site.base) as visit:
        page = visit.page
        visit.open(address("/d/small/prompt", q=TEXT, target=" river"))
        page.get_by_role("button", name="total effect on").click()
        visit.stands_at("order=total")
        visit.sees("thead", "total")
        page.locator("tbody tr").first.wait_for()
        sync_api.expect(page.locator("p", has_text="total: what the model adds")).to_be_visible()
        links = page.locator("tbody td.name a").all()
        shown = [int(str(link.get_attribute("href")).rpartition("/")[2]) for link in links]
        sizes = [abs(totals[str(latent)]) for latent in shown]
        assert len(sizes) > 10
        assert all(a >= b - 2e-3 for a, b in itertools.pairwise(sizes))
        direct = [abs(read["features"][str(latent)]["effect"]) for latent in shown]
        assert direct != sorted(direct, reverse=True), "another order than the direct one"
        visit.shoot("prompt-total")


CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def talker(make_gpt2: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, start: Any) -> Iterator[Any]:
    """A server of a tiny model with a chat template, whose SAE has a store."""
    folder = tmp_path_factory.mktemp("talking") / "talker"
    make_gpt2(positions=512).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    settings = json.loads((folder / "model/tokenizer_config.json").read_text())
    (folder / "model/tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT}))
    sae = ms.TopKSAE(d_in=32, n_latents=64, k=4, transform="none", seed=1).requires_grad_(False)
    sae.metadata.model, sae.metadata.hook = str(folder / "model"), "resid_post.1"
    sae.save(folder / "sae")
    model = ms.load_model(folder / "model")
    harvest(sae, folder / "features", model, tokens=1024, progress=False)
    with start([folder], Page()) as client:
        yield client


def test_each_side_of_a_chat_goes_on_with_its_own_conversation(look: Look, talker: Any) -> None:
    edit = {"edit": "Add", "latents": [3], "amount": 30.0}
    wanted: list[list[str]] = []
    for edits in ([], [edit]):
        said: list[dict[str, str]] = []
        for question in ("Hello", "Go on"):
            said.append({"role": "user", "content": question})
            request = {"model": "talker", "messages": said, "max_tokens": 6, "temperature": 0, "seed": 0}
            answer = talker.send("POST", "/v1/chat/completions", {**request, "interventions": edits})
            said.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
        wanted.append([each["content"] for each in said[1::2]])
    assert wanted[0] != wanted[1]
    with look(talker.base) as visit:
        page = visit.page
        visit.open("/d/talker/play?chat=1&t=0&n=6&f=3:add:30")
        visit.sees("button[aria-pressed=true]", "chat")
        for question in ("Hello", "Go on"):
            page.get_by_label("what you say").fill(question)
            page.keyboard.press("Enter")
            visit.sees(".asked", question)
        for head, texts in zip(("Plain", "Steered"), wanted, strict=True):
            section = page.locator(f"section[aria-label={head}]")
            sync_api.expect(section.locator(".text")).to_have_count(2)
            sync_api.expect(section).to_have_attribute("aria-busy", "false")
            shown = ["".join(each.inner_text().replace("↵", "").split()) for each in section.locator(".text").all()]
            assert [each.replace("■", "") for each in shown] == ["".join(text.split()) for text in texts]
        assert parse_qs(visit.query)["q"] == ["Hello", "Go on"]
        page.get_by_role("button", name="new conversation").click()
        sync_api.expect(page.locator(".asked")).to_have_count(0)
        visit.open("/d/talker/doctor?q=Hello&chat=1&answers=0")
        visit.sees("section[aria-label=Prompt] .text", "user: Hello")
