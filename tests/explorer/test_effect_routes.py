"""What features do, over the wire: ablation under a passage, total effects on a next token, and what is refused."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import monosem as ms
from monosem.models import SubjectModel
from monosem.sae import load_sae

TEXT = "The old king went down to the river, and"
API = "/api/d/small"


@pytest.fixture(scope="module")
def feature(client: Any) -> Any:
    """One that fires often."""
    row = client.get(f"{API}/features", sort="-rate", limit=1)["rows"][0]
    return client.get(f"{API}/f/{row['latent']}")


@pytest.fixture(scope="module")
def place(feature: Any) -> dict[str, Any]:
    """The context of its strongest passage."""
    return {"text": feature["top"][0]["text"], "context": feature["top"][0]["context"]}


def test_ablation_changes_what_comes_after_a_firing_by_what_effects_says(
    client: Any, feature: Any, place: dict[str, Any], bundled: SubjectModel, run_folder: Path
) -> None:
    latent = feature["latent"]
    found = client.get(f"{API}/f/{latent}/effects", **place)
    whole = client.get(f"{API}/context", latent=latent, **place)
    assert (found["document"], found["position"]) == (whole["document"], whole["position"])
    first = next(i for i, value in enumerate(whole["activations"]) if value > 0)
    assert found["effects"][0] is None
    assert all(change == 0 for change in found["effects"][1 : first + 1]), "what comes before cannot change"
    assert any(found["effects"][first + 1 :])
    tokens = bundled.tokens("".join(whole["texts"][1:]))
    assert tokens.shape[1] == len(whole["texts"]), "the same cut"
    exact = ms.effects(bundled, load_sae(run_folder), tokens, latent).change[0, 1:].tolist()
    assert found["effects"][1:] == pytest.approx(exact, abs=2e-3)


def test_a_total_effect_is_the_logit_with_the_feature_less_the_logit_without_it(
    client: Any, bundled: SubjectModel, run_folder: Path
) -> None:
    read = client.send("POST", f"{API}/prompt", {"text": TEXT, "target": " then"})
    on = [latent for latent, _, _ in read["tokens"][-1]["features"][:2]]
    silent = next(latent for latent in range(256) if str(latent) not in read["features"])
    found = client.send("POST", f"{API}/total", {"text": TEXT, "target": " then", "latents": [*on, silent]})
    assert found["target"] == read["target"]
    assert found["totals"][str(silent)] == pytest.approx(0, abs=1e-5)
    sae, token = load_sae(run_folder), found["target"]["token"]

    def told() -> float:
        logits = bundled(TEXT)[0, -1]
        return float(logits[token] - logits.mean())

    plain = told()
    for latent in on:
        with bundled.edit([ms.Ablate(sae, latent)]):
            assert found["totals"][str(latent)] == pytest.approx(plain - told(), abs=2e-3)


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({}, 422, "text: Field required"),
        ({"text": TEXT, "target": " then", "latents": []}, 422, "latents"),
        ({"text": TEXT, "target": " then", "latents": [1] * 257}, 422, "latents"),
        ({"text": TEXT, "target": " then", "latents": [10**6]}, 404, "1000000"),
        ({"text": TEXT, "target": " then", "latents": [-1]}, 404, "-1"),
        ({"text": TEXT, "target": "not a token", "latents": [1]}, 400, "“not a token” is not a token of the model"),
        ({"text": "\0", "target": " then", "latents": [1]}, 400, "empty"),
        ({"text": "", "target": " then", "latents": [1]}, 422, "text"),
        ({"text": TEXT, "target": " then", "latents": [1], "code": "1"}, 422, "code: is no field of this request"),
    ],
)
def test_a_total_effect_that_cannot_be_had_is_refused_in_a_line(
    client: Any, given: dict[str, Any], status: int, words: str
) -> None:
    reply = client.ask(f"{API}/total", "POST", given)
    assert reply.status == status
    assert words in reply.json["error"]
    assert "\n" not in reply.json["error"]


def test_an_ablation_that_cannot_be_had_is_refused_in_a_line(
    client: Any, feature: Any, place: dict[str, Any], serve: Callable[..., Any], run_folder: Path, tmp_path: Path
) -> None:
    address = f"{API}/f/{feature['latent']}/effects"
    for path, query, status in (
        (address, {"text": "nowhere", "context": 0}, 400),
        (address, {**place, "context": 10**6}, 400),
        (address, {**place, "context": -1}, 422),
        (address, {"text": place["text"]}, 422),
        (f"{API}/f/1000000/effects", place, 404),
        ("/api/d/none/f/1/effects", place, 404),
    ):
        reply = client.ask(path, **query)
        assert (reply.status, "\n" in reply.json["error"]) == (status, False), (path, query, reply)
    shutil.copytree(run_folder / "features", tmp_path / "alone")
    with serve(tmp_path / "alone") as other:
        reply = other.ask("/api/d/alone/f/1/effects", **place)
        assert reply.status == 409
        assert "weights are not beside" in reply.json["error"]


def test_an_edit_that_did_nothing_says_so_over_the_wire(client: Any) -> None:
    read = client.send("POST", f"{API}/prompt", {"text": TEXT, "top": 128})
    silent = next(latent for latent in range(256) if str(latent) not in read["features"])
    edits = [
        {"edit": "Ablate", "latents": [silent], "where": {"phase": "prompt"}},
        {"edit": "Add", "latents": [3], "amount": 2.0, "where": {"tokens": "?"}},
        {"edit": "Add", "latents": [3], "amount": 2.0},
    ]
    request = {"model": "small", "prompt": TEXT, "max_tokens": 4, "temperature": 0, "interventions": edits}
    never, nowhere, did = client.send("POST", "/v1/completions", request)["choices"][0]["interventions"]
    assert f"changed nothing: latent {silent} was never on there" in never
    assert "no position" in nowhere
    assert "changed" in did
    assert "nothing" not in did
    stream = client.ask("/v1/completions", "POST", {**request, "stream": True}).body.decode().split("\n\n")
    told = [json.loads(event.removeprefix("data: "))["choices"][0].get("interventions") for event in stream[:-2]]
    assert told == [None] * (len(told) - 1) + [[never, nowhere, did]], "with the last piece alone"


def test_who_hangs_up_is_forgotten_before_the_next_token_and_others_are_answered(client: Any) -> None:
    body = json.dumps({"model": "small", "prompt": "The", "max_tokens": 200, "stream": True, "temperature": 0}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    for _ in range(33):  # one more than are answered at a time
        with socket.create_connection((client.host, client.port), timeout=60) as made:
            made.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
            assert made.recv(4096).startswith(b"HTTP/1.1 200")
    until, short = time.monotonic() + 60, {"model": "small", "prompt": "The", "max_tokens": 1}
    while (reply := client.ask("/v1/completions", "POST", short)).status == 503 and time.monotonic() < until:
        time.sleep(0.05)
    assert reply.status == 200, reply
