"""Heads over the wire and on the page: what Python gives, kept beside the store, and what is refused in a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from monosem.circuits import Heads, composition
from monosem.explorer import heads
from monosem.models import SubjectModel

API = "/api/d/small/heads"
TEXT = "The old king went down to the river, and the old king"


@pytest.fixture(scope="module", autouse=True)
def fewer_documents() -> Iterator[None]:
    """What is measured on fewer is kept and shown alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "DOCUMENTS", 12)
        yield


@pytest.fixture(scope="module")
def measured(client: Any) -> dict[str, Any]:
    before = client.get(API)
    assert (before["model"], before["why_not"]) == ("bundled", None)
    return client.send("POST", API, {})


def test_scores_are_measured_once_and_kept(client: Any, measured: dict[str, Any]) -> None:
    scores = {each["name"]: each for each in measured["measured"]["scores"]}
    assert measured["model"] == "bundled"
    assert max(max(row) for row in scores["previous"]["value"]) == scores["previous"]["value"][2][3] > 0.9
    assert scores["previous"]["low"][2][3] <= scores["previous"]["value"][2][3] <= scores["previous"]["high"][2][3]
    assert 0 < scores["induction"]["chance"] < 0.05
    assert client.get(API) == measured
    assert client.send("POST", API, {}) == measured  # nothing is measured twice


def test_one_head_has_examples_other_heads_and_features(
    client: Any, measured: dict[str, Any], bundled: SubjectModel
) -> None:
    head = client.get(f"{API}/3/3")
    between = composition(bundled)
    reads = {(each["layer"], each["head"], each["kind"]): each["score"] for each in head["reads"]}
    assert max(reads, key=lambda each: reads[each]) == (2, 3, "key")
    assert reads[2, 3, "key"] == pytest.approx(float(between.key[15, 11]))
    assert all(score > head["chance"] for score in reads.values())
    assert head["read_by"] == []
    for example in head["examples"]:
        row = example["attention"]
        assert len(row) == example["query"] + 1 <= len(example["texts"])
        assert 0 < example["key"] < example["query"]
        assert row[example["key"]] > 0.1
    sides = {side: head[side] for side in ("queries", "keys", "values", "writes")}
    assert any(sides.values())  # of a dictionary of the stream, either what is read or what is written
    for listed in sides.values():
        assert listed == sorted(listed, key=lambda each: -each["strength"])
        assert all({"latent", "name", "label"} <= each.keys() for each in listed)


def test_a_prompt_s_pattern_is_the_model_s(client: Any, measured: dict[str, Any], bundled: SubjectModel) -> None:
    found = client.send("POST", f"{API}/3/1/prompt", {"text": TEXT})
    pattern = bundled.capture(TEXT, ["attn_pattern.3"])["attn_pattern.3"][0, 1].cpu()
    assert found["query"] == len(pattern) - 1 == len(found["texts"]) - 1
    for i, row in enumerate(found["pattern"]):
        torch.testing.assert_close(torch.tensor(row), pattern[i, : i + 1], rtol=0, atol=1e-4)
    values = [each["logit"] for each in found["promoted"]]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0 > found["suppressed"][0]["logit"]
    earlier = client.send("POST", f"{API}/3/1/prompt", {"text": TEXT, "query": 3})
    assert earlier["query"] == 3
    assert earlier["pattern"] == found["pattern"]


def test_why_it_looks_there_adds_up(client: Any, measured: dict[str, Any]) -> None:
    layers = [client.send("POST", f"{API}/{layer}/1/prompt", {"text": TEXT}) for layer in range(4)]
    looks = [each["look"] for each in layers if each["look"]]
    assert len(looks) == 1  # the dictionary stands before one layer
    look = looks[0]
    assert sum(pair["value"] for pair in look["pairs"]) + look["rest"] == pytest.approx(look["score"])
    for pair in look["pairs"]:
        assert (pair["query"] is None) == (pair["query_is"] != "feature")
    assert [bool(each["written"]) for each in layers] == [not each["look"] and i < 3 for i, each in enumerate(layers)]


def test_what_is_asked_wrongly_is_refused_in_a_line(client: Any, measured: dict[str, Any]) -> None:
    for path, body, code, words in (
        ("9/0/prompt", {"text": TEXT}, 404, "there is no 9.0"),
        ("0/7/prompt", {"text": TEXT}, 404, "there is no 0.7"),
        ("0/0/prompt", {"text": " "}, 400, "empty"),
        ("0/0/prompt", {"text": TEXT, "query": 500}, 400, "has tokens 0 to"),
        ("0/0/prompt", {"text": TEXT, "query": 1, "key": 2}, 400, "no key behind it"),
        ("0/0/prompt", {"text": "word " * 200}, 400, "a pattern is shown"),
        ("0/0/prompt", {"text": TEXT, "other": 1}, 422, "other"),
    ):
        reply = client.ask(f"{API}/{path}", "POST", body)
        assert reply.status == code, reply
        assert words in reply.body.decode()
    assert client.ask(f"{API}/9/9").status == 404


def test_what_the_page_keeps_python_reads(measured: dict[str, Any], run_folder: Path) -> None:
    """One file for both, beside the store."""
    kept = Heads.load(run_folder / "heads.json")
    assert kept.documents == measured["measured"]["documents"]
    assert kept.scores["previous"].value[2, 3] == pytest.approx(
        next(each for each in measured["measured"]["scores"] if each["name"] == "previous")["value"][2][3], rel=1e-4
    )


def test_the_page_sorts_heads_opens_one_and_reads_a_text(look: Callable[..., Any], site: Any) -> None:
    scores = {each["name"]: each["value"] for each in site.send("POST", API, {})["measured"]["scores"]}
    previous = {
        f"{layer}.{head}": value for layer, row in enumerate(scores["previous"]) for head, value in enumerate(row)
    }
    best = max(previous, key=lambda head: previous[head])
    with look(site.base) as visit:
        page = visit.page
        visit.open("/d/small/heads")
        page.get_by_role("region", name="all heads").get_by_role("button", name="previous").click()
        visit.stands_at("by=previous")
        first = page.get_by_role("region", name="all heads").locator("tbody a").first
        visit.expect(first).to_have_text(best)
        first.click()
        visit.sees("h1", f"Head {best}")
        visit.sees(".facts", f"previous {previous[best]:.2f}")
        page.get_by_label("prompt", exact=True).fill(TEXT)
        page.get_by_label("prompt", exact=True).press("Enter")
        visit.sees("section[aria-label='attention on the prompt'] canvas")
        visit.stands_at("q=The")
