"""Graphs of a run over HTTP: traced, shown, grouped, changed, exchanged; wrong questions get an answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import monosem as ms
from monosem.explorer.page import Page
from monosem.runs.graph_labels import label_graph

PROMPT = "The king of France and the queen of"
THEIRS = Path(__file__).parents[1] / "circuits/data/circuit_tracer.json"


@pytest.fixture(scope="module")
def run(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of its own, with a file of circuit-tracer's beside a damaged graph."""
    folder = shutil.copytree(run_folder, tmp_path_factory.mktemp("graphs") / "small")
    (folder / "graphs/damaged").mkdir(parents=True)
    (folder / "graphs/damaged/graph.json").write_text("{}")
    shutil.copy(THEIRS, folder / "graphs/theirs.json")
    return folder


@pytest.fixture(scope="module")
def client(run: Path, page: Page, start: Callable[..., Any]) -> Iterator[Any]:
    with start([run], page) as found:
        yield found


@pytest.fixture(scope="module")
def traced(client: Any) -> str:
    return client.send("POST", "/api/d/small/graphs", {"text": PROMPT})["id"]


def test_a_traced_prompt_is_kept_and_listed(client: Any, traced: str, run: Path) -> None:
    listed = client.get("/api/d/small/graphs")
    assert listed["closed"] is None
    assert [each["id"] for each in listed["missing"]] == ["damaged"]
    assert "graphs/damaged" in listed["missing"][0]["words"]
    mine = {each["id"]: each for each in listed["graphs"]}
    assert mine.keys() == {traced, "theirs"}
    graph = ms.Graph.load(run / "graphs" / traced)
    assert mine[traced]["features"] == graph.n_features > 0
    assert mine[traced]["targets"] == [target["label"] for target in graph.targets]


def test_a_view_is_the_graphs(client: Any, traced: str, run: Path) -> None:
    graph, view = ms.Graph.load(run / "graphs" / traced), client.get(f"/api/d/small/graphs/{traced}")
    assert view["words"] == graph.words
    assert view["closed"] is None
    assert view["dictionaries"]["resid_post.2"]["shown"] == "small"
    number = {graph.nodes.id(i): i for i in range(len(graph.nodes))}
    ids = [node["id"] for node in view["nodes"]]
    assert [node["kind"] for node in view["nodes"]] == [str(graph.nodes.kind[number[name]]) for name in ids]
    edges = zip(*(view["edges"][name] for name in ("source", "target", "value")), strict=True)
    for source, target, value in list(edges)[::200]:
        assert value == pytest.approx(graph.edge(number[ids[source]], number[ids[target]]), rel=1e-3)
    ranks = sorted((-node["influence"], node["rank"]) for node in view["nodes"] if node["kind"] != "target")
    assert np.all(np.diff([rank for _, rank in ranks]) >= 0)
    few = client.get(f"/api/d/small/graphs/{traced}", nodes=30)
    assert len(few["nodes"]) == 30
    assert few["all"]["held"] < view["all"]["held"] <= 1
    assert {node["kind"] for node in few["nodes"]} >= {"target", "token", "feature"}


def test_groups_are_found_kept_and_survive_another_trace(client: Any, traced: str, run: Path) -> None:
    address = f"/api/d/small/graphs/{traced}/groups"
    found = client.get(address, alike=0.4)["groups"]
    assert found
    assert all(len(group["nodes"]) > 1 and group["name"] for group in found)
    assert client.get(address, alike=0.4)["groups"] == found
    named = [{**found[0], "name": "royalty"}]
    assert client.send("PUT", address, {"groups": named})["groups"] == named
    assert client.get(f"/api/d/small/graphs/{traced}")["groups"] == named
    assert ms.Graph.load(run / "graphs" / traced).supernodes == named
    assert client.send("POST", "/api/d/small/graphs", {"text": PROMPT})["id"] == traced
    assert client.get(f"/api/d/small/graphs/{traced}")["groups"] == named
    node = found[0]["nodes"][0]
    for groups, words in (
        ([{"name": "a", "nodes": ["x"]}], "does not have"),
        ([{"name": "a", "nodes": [node]}, {"name": "b", "nodes": [node]}], "leave it in one group"),
    ):
        reply = client.ask(address, "PUT", {"groups": groups})
        assert (reply.status, words in reply.json["error"]) == (400, True)


def test_a_change_is_predicted_and_measured(client: Any, traced: str) -> None:
    view = client.get(f"/api/d/small/graphs/{traced}")
    features = sorted((n for n in view["nodes"] if n["kind"] == "feature"), key=lambda n: -n["influence"])
    address = f"/api/d/small/graphs/{traced}/change"
    same = client.send("POST", address, {"changes": [{"nodes": [features[0]["id"]], "factor": 1}]})
    none = client.send("POST", address, {"changes": [{"nodes": [n["id"] for n in features[:3]], "factor": 0}]})
    for target in same["targets"]:
        assert (target["direct"], target["predicted"]) == (0, 0)
        assert target["measured"] == pytest.approx(0, abs=1e-3)
    assert any(abs(target["measured"]) > 0.01 for target in none["targets"])
    by_label = {node["label"]: node["value"] for node in view["nodes"] if node["kind"] == "target"}
    assert [target["before"] for target in none["targets"]] == pytest.approx(
        [by_label[target["label"]] for target in none["targets"]], rel=1e-3
    )


def test_files_of_a_graph(client: Any, traced: str, tmp_path: Path) -> None:
    reply = client.ask(f"/api/d/small/graphs/{traced}/json")
    assert reply.headers["content-disposition"].startswith("attachment")
    (tmp_path / "graph.json").write_bytes(reply.body)
    assert ms.read_graph(tmp_path / "graph.json").words == client.get(f"/api/d/small/graphs/{traced}")["words"]
    reply = client.ask(f"/api/d/small/graphs/{traced}/html")
    if not Page().built:
        assert (reply.status, "make page" in reply.json["error"]) == (500, True)
        return
    data = reply.body.decode().split('id="graph">')[1].split("</script>")[0]
    assert json.loads(data)["previews"]


def test_a_file_of_others_is_shown_and_stays(client: Any) -> None:
    view = client.get("/api/d/small/graphs/theirs")
    assert view["words"][1:3] == ["Once", " upon"]
    assert "is not on this server" in view["closed"]
    reply = client.ask("/api/d/small/graphs/theirs/groups", "PUT", {"groups": []})
    assert (reply.status, "stays as it is" in reply.json["error"]) == (409, True)
    node = next(node["id"] for node in view["nodes"] if node["kind"] == "feature")
    reply = client.ask("/api/d/small/graphs/theirs/change", "POST", {"changes": [{"nodes": [node], "factor": 0}]})
    assert reply.status == 409


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "nothing", None, 404, "there is no graph"),
        ("GET", "..%2f..%2frun.yaml", None, 404, "there is no"),
        ("GET", "damaged", None, 500, "graphs/damaged"),
        ("GET", "theirs?nodes=0", None, 422, "nodes"),
        ("GET", "theirs/groups?alike=2", None, 422, "alike"),
        ("GET", "theirs/groups?alike=0", None, 400, "alike is above 0"),
        ("POST", "", {"text": ""}, 422, "text"),
        ("POST", "", {"text": "a", "max": 1}, 422, "no field"),
        ("POST", "", {"text": "The king", "target": "two words"}, 400, "is not one token"),
        ("POST", "", {"text": "word " * 3_000}, 400, "shorten it"),
        ("POST", "theirs/change", {"changes": []}, 422, "changes"),
        ("POST", "theirs/change", {"changes": [{"nodes": ["a"], "factor": "1e999"}]}, 422, "factor"),
        ("PUT", "theirs/groups", {"groups": [{"name": "", "nodes": ["a"]}]}, 422, "name"),
        ("PUT", "theirs/groups", {"groups": [{"name": "a", "nodes": [1]}]}, 422, "nodes"),
    ],
)
def test_wrong_questions(client: Any, method: str, path: str, body: Any, status: int, words: str) -> None:
    address = "/api/d/small/graphs" + (f"/{path}" if path else "")
    reply = client.ask(address, method, body)
    assert reply.status == status, reply
    assert words in reply.json["error"]


def test_no_graph_of_a_dictionary_that_is_not_there(client: Any) -> None:
    assert client.ask("/api/d/none/graphs").status == 404


def test_one_feature_has_one_factor(client: Any, traced: str) -> None:
    node = next(n["id"] for n in client.get(f"/api/d/small/graphs/{traced}")["nodes"] if n["kind"] == "feature")
    twice = {"changes": [{"nodes": [node], "factor": 0}, {"nodes": [node], "factor": 2}]}
    reply = client.ask(f"/api/d/small/graphs/{traced}/change", "POST", twice)
    assert (reply.status, "changed twice" in reply.json["error"]) == (400, True)
    for wrong in ("token:embed@1", "nothing"):
        reply = client.ask(
            f"/api/d/small/graphs/{traced}/change", "POST", {"changes": [{"nodes": [wrong], "factor": 0}]}
        )
        assert (reply.status, "has no feature" in reply.json["error"]) == (400, True)


def test_an_edge_goes_through_heads(client: Any, traced: str) -> None:
    view = client.get(f"/api/d/small/graphs/{traced}")
    nodes, last = view["nodes"], len(view["words"]) - 1
    features = [n for n in nodes if n["kind"] == "feature" and n["position"] < last]
    feature = max(features, key=lambda node: node["influence"])
    target = next(node for node in nodes if node["kind"] == "target")
    address = f"/api/d/small/graphs/{traced}/edge"
    heads = client.get(address, source=feature["id"], target=target["id"])["heads"]
    ids = [node["id"] for node in nodes]
    edges = zip(*(view["edges"][name] for name in ("source", "target", "value")), strict=True)
    value = next(v for s, t, v in edges if (ids[s], ids[t]) == (feature["id"], target["id"]))
    assert sum(head["value"] for head in heads) == pytest.approx(value, rel=0.02)  # one layer of attention lies between
    for query, status in (({"source": "x", "target": target["id"]}, 400), ({"source": "x"}, 422)):
        assert client.ask(address, **query).status == status


def test_labels_of_a_run_go_into_its_graph(traced: str, run: Path) -> None:
    graph = ms.Graph.load(run / "graphs" / traced)
    store = ms.FeatureStore(run)
    assert label_graph(graph, [run, run / "graphs"]) == len(graph.labels) > 0
    for (hook, latent), label in list(graph.labels.items())[:20]:
        assert hook == "resid_post.2"
        assert label == store[latent].name or label in str(store.explanations()[latent].text).replace("*", "")
    assert label_graph(graph, [run]) == 0
