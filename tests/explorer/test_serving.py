"""Any client of the OpenAI protocol can use a model and its features: the real client asks a real server process."""

from __future__ import annotations

import json
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import chdir, closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from forks import Forks

import monosem as ms
from monosem.explorer.alone import Alone
from monosem.explorer.app import make_app
from monosem.explorer.server import Server, listen
from monosem.models import SubjectModel
from monosem.sae import SAE, load_sae
from monosem.sae.identity import dictionary_hash

openai = pytest.importorskip("openai", reason="the extra `judge` is not installed: no client to serve")
PROMPT = "The history of"


DEMO = Path(__file__).parents[1] / "data" / "demo_sae"


@pytest.fixture(scope="module")
def port(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """`monosem serve` in a process of its own, of the demo's SAE, without a feature store."""
    folder = tmp_path_factory.mktemp("serving")
    shutil.copytree(DEMO, folder / "demo")
    with chdir(folder):
        process = forks("monosem", "serve", "demo", "--port", "0")
    address = r"Serving at http://127\.0\.0\.1:(\d+)/v1"
    process.until(lambda: re.search(address, process.said))
    yield int(re.findall(address, process.said)[0])
    process.kill()


@pytest.fixture(scope="module")
def served(port: int) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def sae() -> SAE:
    return load_sae(DEMO)


def complete(served: Any, prompt: Any = PROMPT, **given: Any) -> Any:
    return served.completions.create(model="demo", prompt=prompt, **{"max_tokens": 8, "temperature": 0, **given})


def test_the_runs_that_can_be_asked_are_listed(served: Any, sae: SAE) -> None:
    (model,) = served.models.list().data
    assert (model.id, model.owned_by) == ("demo", "monosem")
    assert model.monosem == {"model": "bundled", "hook": sae.metadata.hook, "sae": dictionary_hash(sae)}
    assert served.models.retrieve("demo").id == "demo"


def test_a_completion_is_the_models_own(served: Any, bundled: SubjectModel) -> None:
    answer = complete(served)
    assert PROMPT + answer.choices[0].text == bundled.generate(PROMPT, 8, temperature=0)
    assert answer.choices[0].finish_reason == "length"
    read = bundled.tokens(PROMPT).shape[1]
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": read,
        "completion_tokens": 8,
        "total_tokens": read + 8,
    }
    ids = bundled.tokens(PROMPT)[0].tolist()
    assert complete(served, ids).choices[0].text == answer.choices[0].text


def test_a_stream_tells_the_same_piece_by_piece_then_usage_then_done(served: Any, port: int) -> None:
    chunks = list(complete(served, stream=True, stream_options={"include_usage": True}))
    *pieces, last = chunks
    assert len(pieces) == 8
    assert [piece.choices[0].finish_reason for piece in pieces] == [None] * 7 + ["length"]
    assert "".join(piece.choices[0].text for piece in pieces) == complete(served).choices[0].text
    assert (last.choices, last.usage.completion_tokens) == ([], 8)

    body = json.dumps({"model": "demo", "prompt": PROMPT, "max_tokens": 2, "stream": True})
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.getheader("content-type", "").startswith("text/event-stream")
        events = answer.read().decode().split("\n\n")
    assert len(events) == 4
    assert events[2:] == ["data: [DONE]", ""]


def test_a_seed_draws_the_same_text_and_each_of_several_the_one_it_draws_alone(served: Any) -> None:
    drawn = {"temperature": 1.0, "max_tokens": 12}
    both = complete(served, seed=5, n=2, **drawn).choices
    assert [choice.index for choice in both] == [0, 1]
    assert both[0].text != both[1].text
    assert [choice.text for choice in both] == [complete(served, seed=5 + i, **drawn).choices[0].text for i in (0, 1)]
    likeliest = complete(served, max_tokens=12).choices[0].text
    assert complete(served, seed=5, top_p=1e-6, **drawn).choices[0].text == likeliest


def test_a_text_ends_before_a_stop_also_where_it_comes_in_pieces(served: Any) -> None:
    whole = complete(served, max_tokens=16).choices[0].text
    stop = whole[9:16]  # parts of several tokens
    answer = complete(served, max_tokens=16, stop=["never said", stop])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (whole[: whole.index(stop)], "stop")
    streamed = complete(served, max_tokens=16, stop=stop, stream=True)
    assert "".join(piece.choices[0].text for piece in streamed) == answer.choices[0].text


def test_log_probabilities_are_the_models(served: Any, bundled: SubjectModel) -> None:
    answer = complete(served, logprobs=2, echo=True, max_tokens=4).choices[0]
    text = bundled.generate(PROMPT, 4, temperature=0)
    assert answer.text == text
    tokens = bundled.tokens(text)
    logs = bundled(tokens)[0].log_softmax(-1)
    wanted = logs[:-1].gather(1, tokens[0, 1:, None])[:, 0].tolist()
    assert answer.logprobs.token_logprobs == [None, *(pytest.approx(value, abs=1e-4) for value in wanted)]
    assert "".join(answer.logprobs.tokens[1:]) == text
    assert max(answer.logprobs.top_logprobs[-1].values()) == pytest.approx(logs[-2].max().item(), abs=1e-4)
    only_read = complete(served, text, logprobs=0, echo=True, max_tokens=0).choices[0]
    assert only_read.logprobs.token_logprobs == [None, *(pytest.approx(value, abs=1e-4) for value in wanted)]


def test_interventions_steer_as_they_do_in_python_and_say_what_they_did(
    served: Any, bundled: SubjectModel, sae: SAE
) -> None:
    edits = [ms.Add(sae, 3, 30.0), ms.Ablate(sae, [5, 6], where=ms.Where(phase="generated"))]
    wanted = ms.generate(bundled, PROMPT, edits=edits, max_new_tokens=8, temperature=0)
    extra = {"interventions": [edit.to_json() for edit in edits]}
    answer = complete(served, extra_body=extra).choices[0]
    assert answer.text == wanted.text != complete(served).choices[0].text
    assert answer.interventions == wanted.said()
    del extra["interventions"][0]["sae"]  # it is the run's own
    assert complete(served, extra_body=extra).choices[0].text == wanted.text


def test_features_are_those_of_every_token_with_the_edits_in_force(
    served: Any, bundled: SubjectModel, sae: SAE
) -> None:
    edit = ms.Add(sae, 3, 30.0)
    wanted = ms.generate(bundled, PROMPT, edits=[edit], features=sae, max_new_tokens=4, temperature=0)
    assert wanted.features is not None
    dense = wanted.features.to_dense()
    extra = {"interventions": [edit.to_json()], "features": {"latents": [3, 7]}}
    answer = complete(served, max_tokens=4, extra_body=extra).choices[0]
    assert [each["position"] for each in answer.features] == list(range(len(dense)))
    for each, row in zip(answer.features, dense, strict=True):
        assert each["features"] == [[latent, pytest.approx(row[latent].item(), rel=1e-5)] for latent in (3, 7)]
    streamed = complete(served, max_tokens=4, stream=True, extra_body={**extra, "features": {"top": 2}})
    told = [each for piece in streamed for each in piece.choices[0].features]
    assert [each["generated"] for each in told] == [False] * (len(dense) - 4) + [True] * 4
    for each, row in zip(told, dense, strict=True):
        values, latents = (part.tolist() for part in row.topk(2))
        best = zip(latents, values, strict=True)
        assert each["features"] == [[latent, pytest.approx(value, rel=1e-5)] for latent, value in best if value > 0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"colour": "red"}, "colour: is no field of this request"),
        ({"tools": [{"type": "function"}]}, "tools is not supported here"),
        ({"interventions": [{"edit": "Add", "latents": [10**6], "amount": 1}]}, "there is no latent 1000000"),
        ({"interventions": [{"edit": "Fold", "latents": [1]}]}, "there is no edit 'Fold'"),
        ({"interventions": [{"edit": "Add", "latents": [1], "amount": "x"}]}, "numbers"),
        ({"interventions": [{"edit": "Add", "latents": [1], "amount": 1, "hook": "nowhere"}]}, "nowhere"),
        ({"interventions": [{"edit": "Add", "latents": [1], "amount": 1, "sae": "0" * 16}]}, "no SAE"),
        ({"interventions": [{"edit": "Add", "latents": [1], "amount": 1, "where": {"code": "1"}}]}, "code"),
        ({"features": {"latents": [10**6]}}, "no feature 1000000"),
        ({"features": {"top": 2, "latents": [1]}}, "one of top"),
        ({"max_tokens": 10_000}, "do not fit the model's context of 256"),
        ({"temperature": -1}, "temperature"),
        ({"prompt": [10**6]}, "there is no token 1000000"),
        ({"prompt": []}, "prompt"),
    ],
)
def test_a_malformed_request_is_a_400_with_one_clear_line(served: Any, given: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(served, extra_body=given)
    message = caught.value.body["message"]
    assert words in message
    assert "\n" not in message


def test_what_is_not_there_is_a_404_and_a_chat_without_template_a_400(served: Any, port: int) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        served.completions.create(model="other", prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="has no chat template"):
        served.chat.completions.create(model="demo", messages=[{"role": "user", "content": "Hello"}])
    with pytest.raises(openai.NotFoundError, match="there is no /v1/files"):
        served.files.list()
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", "/v1/models", headers=headers)
            assert connection.getresponse().status == 403, headers


# A server in this process, to be looked into --------------------------------------------------------------------------


CHAT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('nobody rules here') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def talker(make_gpt2: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Path]]:
    """A server of a model with a chat template, whose SAE has no store: client, application, the SAE's folder."""
    folder = tmp_path_factory.mktemp("talker")
    make_gpt2(positions=512).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    settings = json.loads((folder / "model/tokenizer_config.json").read_text())
    (folder / "model/tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": CHAT}))
    own = ms.TopKSAE(d_in=32, n_latents=64, k=4, transform="none", seed=1)
    own.metadata.model, own.metadata.hook = str(folder / "model"), "resid_post.1"
    own.save(folder / "sae")
    app = make_app({}, alone=[Alone("talker", folder / "sae")])
    with listen("127.0.0.1", 0) as listening:
        server = Server(app)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        while not server.started:
            time.sleep(0.01)
        with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as client:
            yield client, app, folder / "sae"
        server.should_exit = True
        thread.join(timeout=20)


def test_a_chat_goes_through_the_models_template(talker: tuple[Any, Any, Path]) -> None:
    client, _, folder = talker
    own = load_sae(folder)
    model = ms.load_model(str(own.metadata.model))
    said = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go"},
    ]
    edit = ms.Add(own, 3, 2.0)
    wanted = ms.generate(model, said, edits=[edit], max_new_tokens=8, temperature=0)
    given = {"model": "talker", "messages": said, "temperature": 0, "extra_body": {"interventions": [edit.to_json()]}}
    answer = client.chat.completions.create(**given, max_completion_tokens=8, logprobs=True, top_logprobs=1)
    assert answer.choices[0].message.content == wanted.text
    assert answer.usage.prompt_tokens == len(wanted.prompt_tokens)
    assert len(answer.choices[0].logprobs.content) == 8
    parts = list(client.chat.completions.create(**given, max_tokens=8, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content for part in parts) == wanted.text
    with pytest.raises(openai.BadRequestError, match="nobody rules here"):
        client.chat.completions.create(model="talker", messages=[{"role": "system", "content": "Rule"}])


def test_who_hangs_up_ends_the_generation(talker: tuple[Any, Any, Path]) -> None:
    client, app, _ = talker
    answering, most = app.state.answering, 400
    body = json.dumps({"model": "talker", "prompt": "a", "max_tokens": most, "stream": True}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    for stream in (True, False):
        before = answering.steps
        sent = body if stream else body.replace(b', "stream": true', b"")
        with socket.create_connection(("127.0.0.1", client.base_url.port), timeout=60) as made:
            made.sendall(f"{head}{len(sent)}\r\n\r\n".encode() + sent)
            while answering.steps < before + 3:
                time.sleep(0.005)
        while answering.now:
            time.sleep(0.005)
        assert answering.steps - before < most / 2, stream


def test_texts_asked_for_at_the_same_time_take_turns(talker: tuple[Any, Any, Path]) -> None:
    client, _, _ = talker
    given = {"model": "talker", "prompt": "a", "max_tokens": 100, "stream": True, "temperature": 0}
    first, second = client.completions.create(**given), client.completions.create(**given)
    assert next(first).choices[0].finish_reason is None
    assert next(second).choices[0].finish_reason is None, "it waits for the whole of the first"
    texts = ["".join(piece.choices[0].text for piece in stream) for stream in (first, second)]
    assert texts[0] == texts[1] != ""
