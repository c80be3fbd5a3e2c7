"""Prompts run the real model, and say what it says."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from monosem.analysis import logit_weights
from monosem.explorer import subject
from monosem.features import FeatureStore
from monosem.models import SubjectModel
from monosem.sae import load_sae

TEXT = "The old king went down to the river, and"


@pytest.fixture(scope="module")
def found(client: Any) -> Any:
    return client.send("POST", "/api/d/small/prompt", {"text": TEXT, "target": " then"})


def test_a_prompt_gives_the_activations_of_model_and_dictionary(
    found: Any, bundled: SubjectModel, run_folder: Path
) -> None:
    tokens = bundled.tokens(TEXT)
    sae = load_sae(run_folder)
    dense = sae.encode(bundled.capture(tokens, ["resid_post.2"])["resid_post.2"][0]).to_dense().detach()
    assert [token["token"] for token in found["tokens"]] == tokens[0].tolist()
    assert found["tokens"][0]["special"]
    assert found["tokens"][0]["features"] == []
    assert "".join(token["text"] for token in found["tokens"][1:]) == TEXT
    for place, token in enumerate(found["tokens"][1:], start=1):
        on = dense[place].nonzero()[:, 0].tolist()
        assert sorted(latent for latent, _, _ in token["features"]) == on
        values = [value for _, value, _ in token["features"]]
        assert values == sorted(values, reverse=True)
        for latent, value, _ in token["features"]:
            assert value == pytest.approx(float(dense[place, latent]), rel=1e-3)
    assert set(found["features"]) == {str(f[0]) for token in found["tokens"] for f in token["features"]}


def test_the_next_tokens_and_effects_are_the_model_s(found: Any, bundled: SubjectModel, run_folder: Path) -> None:
    chances = bundled(bundled.tokens(TEXT))[0, -1].softmax(-1)
    assert [one["token"] for one in found["next"]] == chances.topk(10).indices.tolist()
    assert found["next"][0]["probability"] == pytest.approx(float(chances.max()), rel=1e-4)
    target = int(bundled.tokens(" then", prepend_bos=False)[0, 0])
    assert found["target"] == {"token": target, "text": " then"}
    weights = logit_weights(load_sae(run_folder), bundled, [int(latent) for latent in found["features"]])
    effects = [feature["effect"] for feature in found["features"].values()]
    assert effects == pytest.approx((weights[:, target] - weights.mean(1)).tolist(), abs=1e-5)


def test_rarity_is_the_share_of_tokens_with_so_strong_a_firing(found: Any, run_folder: Path) -> None:
    store = FeatureStore(run_folder)
    histograms = [feature.histogram for feature in store.features(range(store.n_latents))]
    for token in found["tokens"]:
        for latent, value, rarity in token["features"]:
            edges, counts = histograms[latent].edges, histograms[latent].counts
            least = counts[edges[:-1] >= value].sum()  # bins wholly above
            most = counts[edges[1:] >= value].sum()
            share = 10**-rarity * store.n_tokens
            assert min(0.5, least) * 0.999 <= share <= max(0.5, most) * 1.001, (latent, value)
            if least > 1:
                assert share >= 0.999 * least


def test_fewer_features_a_token_are_the_strongest(client: Any, found: Any) -> None:
    few = client.send("POST", "/api/d/small/prompt", {"text": TEXT, "top": 3})
    assert [t["features"] for t in few["tokens"]] == [t["features"][:3] for t in found["tokens"]]
    assert few["target"] is None
    assert all(feature["effect"] is None for feature in few["features"].values())


def test_strongest_entries_are_those_of_a_plain_sort() -> None:
    from monosem.codes import SparseCodes

    dense = torch.randn(7, 30, generator=torch.Generator().manual_seed(0)).relu()
    dense[3] = 0
    rows, values, latents = subject.strongest(SparseCodes.from_dense(dense), 4)
    wanted = [
        (row, value)
        for row in range(7)
        for value in sorted((v for v in dense[row].tolist() if v > 0), reverse=True)[:4]
    ]
    assert list(zip(rows.tolist(), values.tolist(), strict=True)) == wanted
    assert np.array_equal(dense.numpy()[rows, latents], values)


def test_some_features_alone_are_given_whether_they_fire_or_not(client: Any, found: Any) -> None:
    last = found["tokens"][-1]["features"][-1][0]
    silent = next(latent for latent in range(256) if str(latent) not in found["features"])
    few = client.send("POST", "/api/d/small/prompt", {"text": TEXT, "top": 1, "latents": [last, silent]})
    assert set(few["features"]) == {str(last), str(silent)}
    for token, every in zip(few["tokens"], found["tokens"], strict=True):
        assert token["features"] == [fired for fired in every["features"] if fired[0] == last]
    assert client.ask("/api/d/small/prompt", "POST", {"text": TEXT, "latents": [10**6]}).status == 404


@pytest.mark.parametrize(
    ("typed", "pieces", "meant"),
    [("not a token", 4, ["not", " not"]), (" rivver", 3, [" river"]), ("  then", 2, [" then"]), ("then", 2, [" then"])],
)
def test_a_target_that_is_no_token_is_refused_with_those_that_may_be_meant(
    client: Any, found: Any, bundled: SubjectModel, typed: str, pieces: int, meant: list[str]
) -> None:
    reply = client.send("POST", "/api/d/small/prompt", {"text": TEXT, "target": typed})
    assert len(bundled.tokens(typed, prepend_bos=False)[0]) >= pieces
    assert f"“{typed}” is not a token" in reply["refused"]
    assert reply["target"] is None
    assert set(meant) <= {choice["text"] for choice in reply["choices"]}
    assert reply["tokens"] == found["tokens"], "the prompt is answered all the same"


def test_a_target_is_the_token_of_just_its_text(client: Any, bundled: SubjectModel) -> None:
    for typed, other in (("not", " not"), (" not", "not")):
        reply = client.send("POST", "/api/d/small/prompt", {"text": TEXT, "target": typed})
        assert reply["target"] == {"token": int(bundled.tokens(typed, prepend_bos=False)[0, 0]), "text": typed}
        assert (reply["refused"], other in {choice["text"] for choice in reply["choices"]}) == (None, True)


def test_a_long_text_is_cut_to_the_context_and_says_so(client: Any) -> None:
    found = client.send("POST", "/api/d/small/prompt", {"text": "one two three " * 200, "top": 1})
    assert len(found["tokens"]) == 256
    assert found["truncated"] > 0


def test_characters_of_several_tokens_stay_whole(client: Any) -> None:
    text = "naïve Ελλάδα שלום 🦉"
    found = client.send("POST", "/api/d/small/prompt", {"text": text, "top": 1})
    assert "".join(token["text"] for token in found["tokens"][1:]) == text


@pytest.mark.parametrize(
    ("body", "status"),
    [({"text": ""}, 422), ({}, 422), ({"text": "<|endoftext|>"}, 400), ({"text": "x", "top": 0}, 422), ([1], 422)],
)
def test_a_prompt_without_words_is_refused(client: Any, body: Any, status: int) -> None:
    assert client.ask("/api/d/small/prompt", "POST", body).status == status


def test_a_search_by_text_finds_what_fires_on_it(client: Any, found: Any) -> None:
    rarities = {f[0]: 0.0 for token in found["tokens"] for f in token["features"]}
    for token in found["tokens"]:
        for latent, _, rarity in token["features"]:
            rarities[latent] = max(rarities[latent], rarity)
    results = client.get("/api/d/small/search", q=TEXT, kind="text", limit=200)["results"]
    assert {row["latent"] for row in results} == set(rarities)
    scores = [row["score"] for row in results]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(max(rarities.values()), rel=1e-3)


def test_the_context_of_an_example_holds_it_in_its_place(client: Any) -> None:
    feature = client.get("/api/d/small/f/3")
    for example in feature["top"][:3]:
        whole = client.get("/api/d/small/context", text=example["text"], context=example["context"], latent=3)
        places = list(zip(whole["document"], whole["position"], strict=True))
        peak = places.index((example["document"], example["position"]))
        assert whole["activations"][peak] == pytest.approx(example["activation"], rel=1e-3)
        first = peak - example["peak"]
        window = whole["texts"][first : first + len(example["texts"])]
        assert "".join(window) == "".join(example["texts"])


def test_the_server_answers_while_the_model_loads(
    serve: Any, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, load = threading.Event(), subject.load_model

    def slowly(name: str) -> SubjectModel:
        assert go_on.wait(60)
        return load(name)

    monkeypatch.setattr(subject, "load_model", slowly)
    with serve(run_folder) as client:
        assert client.get("/api/d/small/model")["state"] == "idle"
        assert client.send("POST", "/api/d/small/model", {})["state"] == "loading"
        replies: list[Any] = []
        asking = threading.Thread(
            target=lambda: replies.append(client.ask("/api/d/small/prompt", "POST", {"text": TEXT}))
        )
        asking.start()
        assert client.get("/api/d/small/f/3")["latent"] == 3
        assert client.get("/api/d/small/model")["state"] == "loading"
        assert not replies
        go_on.set()
        asking.join(60)
        assert replies[0].status == 200
        assert client.get("/api/d/small/model")["state"] == "ready"


def test_a_store_without_its_sae_says_why_it_cannot(serve: Any, run_folder: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run_folder / "features", tmp_path / "alone")
    with serve(tmp_path / "alone") as client:
        can = client.get("/api/d/alone")["can"]
        assert "weights are not beside" in can["prompt"]
        assert "weights are not beside" in can["map"]
        assert client.get("/api/d/alone/model")["state"] == "none"
        for reply in (client.ask("/api/d/alone/prompt", "POST", {"text": "x"}), client.ask("/api/d/alone/map")):
            assert (reply.status, "weights are not beside" in reply.json["error"]) == (409, True)
        assert client.get("/api/d/alone/f/3")["latent"] == 3
        assert len(client.get("/api/d/alone/search", q="3", kind="similar")["results"]) == 8


def test_another_sae_in_the_place_of_the_harvested_one_is_refused(
    serve: Any, run_folder: Path, second: Any, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(run_folder / "features", tmp_path / "run/features")
    shutil.copytree(second.folder / "sae", tmp_path / "run/sae")
    with serve(tmp_path / "run") as client:
        reply = client.ask("/api/d/run/prompt", "POST", {"text": "x"})
        assert (reply.status, "not the one that was harvested" in reply.json["error"]) == (409, True)
        assert client.get("/api/d/run/model")["state"] == "failed"
