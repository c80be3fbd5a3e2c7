"""The prompt doctor, doses and rewards over the wire: what Python gives, and what is refused in a line."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import monosem as ms
from monosem.explorer.dictionary import open_dictionaries
from monosem.models import BUNDLED, SubjectModel
from monosem.sae import SAE, load_sae

API = "/api/d/small"
PROMPT, ANSWERS = "The old king went down to the river, and", [" then he slept.", " it was the first of the two."]


@pytest.fixture(scope="module")
def sae(run_folder: Path) -> SAE:
    return load_sae(run_folder)


@pytest.fixture(scope="module")
def rates(run_folder: Path) -> torch.Tensor:
    return torch.tensor(ms.FeatureStore(run_folder).columns(["rate"]).column("rate").to_pylist()).nan_to_num()


def test_a_diagnosis_is_that_of_python_each_text_counted_from_its_first_token(
    client: Any, bundled: SubjectModel, sae: SAE, rates: torch.Tensor
) -> None:
    found = client.send("POST", f"{API}/diagnose", {"prompt": PROMPT, "answers": ANSWERS, "top": 5})
    wanted = ms.diagnose(bundled, sae, PROMPT, answers=ANSWERS, baseline=rates, top=5)
    assert "".join(found["prompt"]["texts"][1:]) == PROMPT
    assert ["".join(answer["texts"]) for answer in found["answers"]] == ANSWERS
    n = len(found["prompt"]["texts"])
    parts = zip([found["prompt"], *found["answers"]], [wanted.prompt, *wanted.answers], [0, n, n], strict=True)
    for told, python, first in parts:
        assert [one["latent"] for one in told["unusual"]] == [one.latent for one in python]
        for one, other in zip(told["unusual"], python, strict=True):
            assert (one["fires"], one["read"]) == (other.fires, other.tokens)
            assert one["surprise"] == pytest.approx(other.surprise, rel=1e-3)
            assert told["texts"][one["peak"]] == other.word
            assert [place + first for place, _ in one["by_token"]] == [place for place, _ in other.by_token]
            assert found["features"][str(one["latent"])]["latent"] == one["latent"]


def test_what_triggers_a_feature_and_what_helps_is_that_of_python(client: Any, bundled: SubjectModel, sae: SAE) -> None:
    latent = client.send("POST", f"{API}/diagnose", {"prompt": PROMPT})["prompt"]["unusual"][0]["latent"]
    given = {"prompt": PROMPT, "latents": [latent], "words": 2, "alternatives": 2}
    found = client.send("POST", f"{API}/avoid", given)
    wanted = ms.avoid(bundled, sae, PROMPT, latent, words=2, alternatives=2, progress=False)
    assert "".join(word["text"] for word in found["words"]) == PROMPT
    shares = {word["text"]: word["share"] for word in found["words"] if word["share"] is not None}
    assert shares == {trigger.word: pytest.approx(trigger.share, abs=1e-4) for trigger in wanted.triggers}
    assert [one["prompt"] for one in found["candidates"]] == [one.prompt for one in wanted.candidates]
    assert found["candidates"][0]["lowered"] == pytest.approx(wanted.candidates[0].lowered, abs=1e-3)
    silent = next(
        i for i in range(256) if i not in sae.encode(bundled.capture(PROMPT, ["resid_post.2"])["resid_post.2"]).indices
    )
    nothing = client.send("POST", f"{API}/avoid", {"prompt": PROMPT, "latents": [silent]})
    assert (nothing["activation"], nothing["candidates"]) == (0, [])
    assert "".join(word["text"] for word in nothing["words"]) == PROMPT


def lines(client: Any, latent: int, given: dict[str, Any]) -> list[Any]:
    reply = client.ask(f"{API}/f/{latent}/doses", "POST", given)
    assert reply.status == 200, reply
    return [json.loads(line) for line in reply.body.splitlines()]


def test_doses_come_one_by_one_and_are_those_of_python(client: Any, bundled: SubjectModel, sae: SAE) -> None:
    latent = client.get(f"{API}/features", sort="-rate", limit=1)["rows"][0]["latent"]
    prompts = ["The history of", "He said that"]
    given = {"prompts": prompts, "words": ["the"], "strengths": [2, 300], "max_tokens": 8, "seed": 3}
    head, *told = lines(client, latent, given)
    assert head == {"words": ["the"], "strengths": [0, 2, 300]}
    wanted = ms.dose_response(
        bundled,
        ms.steering_vector(sae, latent),
        prompts,
        ["the"],
        strengths=[2, 300],
        max_new_tokens=8,
        seed=3,
        progress=False,
    )
    assert [one["dose"]["text"] for one in told] == [dose.text for dose in wanted.doses]
    for one, dose in zip(told, wanted.doses, strict=True):
        assert one["dose"]["effect"] == pytest.approx(dose.effect, rel=1e-2, abs=1e-5)
        assert one["dose"]["perplexity"] == pytest.approx(dose.perplexity, rel=1e-2)
        assert one["dose"]["fluent"] == wanted.fluent(dose)
    assert told[-1]["knee"] == wanted.knee.strength
    promoted = [weight["text"] for weight in client.get(f"{API}/f/{latent}")["promoted"] if weight["text"].strip()]
    assert lines(client, latent, {"prompts": prompts, "strengths": [], "max_tokens": 5})[0]["words"] == promoted[:5]


def test_who_hangs_up_ends_the_doses(client: Any) -> None:
    latent = client.get(f"{API}/features", sort="-rate", limit=1)["rows"][0]["latent"]
    body = json.dumps(
        {"prompts": ["The"] * 2, "words": ["the"], "max_tokens": 60, "strengths": [1.0 * i for i in range(1, 33)]}
    )
    head = (
        f"POST {API}/f/{latent}/doses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    )
    with socket.create_connection((client.host, client.port), timeout=60) as made:
        made.sendall(f"{head}{len(body)}\r\n\r\n{body}".encode())
        assert b"strengths" in made.recv(4096) + made.recv(4096)
    start = time.monotonic()
    client.send("POST", f"{API}/diagnose", {"prompt": PROMPT})
    assert time.monotonic() - start < 30, "it waits for one dose at most, not for all 33"


@pytest.mark.parametrize(
    ("path", "given", "status", "words"),
    [
        ("diagnose", {}, 422, "prompt: Field required"),
        ("diagnose", {"prompt": " \n"}, 400, "empty"),
        ("diagnose", {"prompt": "The", "chat": True}, 400, "has no chat template"),
        ("diagnose", {"prompt": "The " * 400}, 400, "do not fit the model's context of 256"),
        ("diagnose", {"prompt": "The", "colour": "red"}, 422, "colour: is no field of this request"),
        ("avoid", {"prompt": "The", "latents": [10**6]}, 404, "1000000"),
        ("avoid", {"prompt": "The", "latents": []}, 422, "latents"),
        ("f/1000000/doses", {"prompts": ["The"]}, 404, "1000000"),
        ("f/3/doses", {"prompts": []}, 422, "prompts"),
        ("f/3/doses", {"prompts": ["The"], "words": [" "]}, 400, "words"),
        ("f/3/doses", {"prompts": ["The"], "strengths": [-1]}, 422, "strengths"),
        ("f/3/doses", {"prompts": ["The " * 300]}, 400, "do not fit"),
        ("rewards", {"prompt": "Hello", "answers": ["a", "b"]}, 409, "there is no reward model"),
        ("rewards", {"prompt": "Hello", "answers": ["a"]}, 422, "answers"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_line(
    client: Any, path: str, given: dict[str, Any], status: int, words: str
) -> None:
    reply = client.ask(f"{API}/{path}", "POST", given)
    assert reply.status == status, reply
    assert words in reply.json["error"]
    assert "\n" not in reply.json["error"]


# A reward model beside -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rewarded(reward_model: Path, run_folder: Path, start: Callable[..., Any], page: Any) -> Iterator[Any]:
    with start([run_folder], page, reward=str(reward_model)) as found:
        yield found


def test_rewards_are_the_models_and_the_parts_of_their_features_add_up(
    rewarded: Any, reward_model: Path, tokenizer: Any
) -> None:
    from transformers import AutoModelForSequenceClassification

    assert rewarded.get("/api/dictionaries")["dictionaries"][0]["can"]["rewards"] is None
    answers = ["She said nothing.", "The history of the United States"]
    given = {"prompt": "What is it? ", "answers": answers, "top": 500}
    found = rewarded.send("POST", f"{API}/rewards", given)
    module = AutoModelForSequenceClassification.from_pretrained(reward_model).eval()
    texts = [
        [tokenizer.bos_token_id, *tokenizer(given["prompt"])["input_ids"]],
        *(tokenizer(a)["input_ids"] for a in answers),
    ]
    for side, answer in enumerate(found["answers"]):
        ids = torch.tensor([texts[0] + texts[1 + side]])
        assert answer["first"] == len(texts[0])
        assert "".join(answer["texts"][answer["first"] :]) == answers[side]
        assert answer["reward"] == pytest.approx(float(module(ids).logits.detach()), rel=1e-3, abs=1e-4)
        whole = sum(feature["parts"][side] for feature in found["features"])
        assert len(found["features"]) == found["total"]
        assert whole == pytest.approx(answer["features"], rel=0.05, abs=0.02)
    for feature in found["features"]:
        for side in (0, 1):
            parts = [part for _, _, part in feature["by_token"][side]]
            assert sum(parts) == pytest.approx(feature["parts"][side], rel=1e-3, abs=1e-4)
    sizes = [abs(b - a) for a, b in (feature["parts"] for feature in found["features"])]
    assert sizes == sorted(sizes, reverse=True)
    few = rewarded.send("POST", f"{API}/rewards", {**given, "top": 3})
    assert few["features"] == found["features"][:3]


def test_a_model_that_gives_no_reward_is_refused(run_folder: Path, start: Callable[..., Any], page: Any) -> None:
    with start([run_folder], page, reward=str(BUNDLED)) as client:
        reply = client.ask(f"{API}/rewards", "POST", {"answers": ["a", "b"]})
        assert reply.status == 409
        assert "is no reward model" in reply.json["error"]
    (opened,) = open_dictionaries([run_folder]).values()
    assert opened.reward_name is None
