"""The exchange format: ours comes back as it was and keeps to the published schema; bad files of others are refused."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from monosem.circuits.graph.exchange_format import paired, unpaired
from monosem.circuits.graph.exchange_read import read_exchanged
from monosem.circuits.graph.exchange_write import exchanged, write_exchanged
from monosem.circuits.graph.graph import Graph
from monosem.circuits.graph.supernodes import check_supernodes, find_supernodes
from monosem.circuits.graph.trace import trace
from monosem.circuits.graph.view import graph_view
from monosem.errors import ConfigError, FileError
from monosem.models import SubjectModel
from monosem.sae import load_sae

DATA = Path(__file__).parent / "data"
THEIRS = DATA / "circuit_tracer.json"
"""Made by circuit-tracer 0.5.0 (`attribute` and `create_graph_files`, with thresholds of 0.9 and 0.97) on a random
TransformerLens model of 2 layers with random transcoders of 40 latents and the bundled model's tokenizer."""
SCHEMA: dict[str, Any] = {
    # What Neuronpedia's graph-schema.json (draft-07, version 1.0.0) requires, field by field.
    "metadata": ({"slug": str, "scan": str, "prompt_tokens": list, "prompt": str}, {"node_threshold": (int, float)}),
    "qParams": ({}, {"pinnedIds": list, "supernodes": list, "linkType": str, "clickedId": str, "sg_pos": str}),
    "nodes": (
        {
            "node_id": str,
            "feature": (int, type(None)),
            "layer": (str, int),
            "ctx_idx": int,
            "feature_type": str,
            "jsNodeId": str,
            "clerp": str,
        },
        {"influence": (int, float, type(None)), "activation": (int, float, type(None))},
    ),
    "links": ({"source": str, "target": str, "weight": (int, float)}, {}),
}


def keeps_to_schema(file: dict[str, Any]) -> None:
    """Every part has the fields and types that the schema names."""
    for part, (required, optional) in SCHEMA.items():
        for item in file[part] if isinstance(file[part], list) else [file[part]]:
            assert required.keys() <= item.keys(), part
            for name, kind in {**required, **optional}.items():
                assert name not in item or isinstance(item[name], kind), (part, name, item[name])
    assert all(isinstance(word, str) for word in file["metadata"]["prompt_tokens"])
    assert all(isinstance(node, str) for node in file["qParams"]["pinnedIds"])


@pytest.fixture(scope="module")
def graph(bundled: SubjectModel) -> Graph:
    sae = load_sae(Path(__file__).parents[1] / "data/demo_sae")
    found = trace(bundled, {"resid_post.2": sae}, "The king of France and the queen of France", progress=False)
    found.supernodes = find_supernodes(found)
    feature = found.top(1)[0]
    found.labels = {("resid_post.2", int(found.nodes.latent[feature])): "</script><b>countries</b>"}
    return found


def same(a: Graph, b: Graph) -> None:
    for name in vars(a.nodes):
        np.testing.assert_array_equal(getattr(a.nodes, name), getattr(b.nodes, name), name)
    for name in ("values", "columns", "offsets", "row_total"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), name)
    for name in (
        "prompt",
        "tokens",
        "words",
        "model",
        "fingerprint",
        "dictionaries",
        "targets",
        "supernodes",
        "labels",
    ):
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_allclose(a.influence, b.influence, rtol=1e-12)


def test_ours_comes_back_as_it_was(graph: Graph, tmp_path: Path) -> None:
    path = write_exchanged(graph, tmp_path / "graph.json")
    keeps_to_schema(json.loads(path.read_text()))
    again = read_exchanged(path)
    same(graph, again)
    assert write_exchanged(again, tmp_path / "more/graph.json").read_bytes() == path.read_bytes()


def test_names_of_nodes_are_theirs_and_each_its_own(graph: Graph) -> None:
    nodes = exchanged(graph)["nodes"]
    assert len({node["node_id"] for node in nodes}) == len(nodes)
    feature = next(node for node in nodes if node["feature_type"] == "cross layer transcoder")
    layer, latent, position = map(int, feature["node_id"].split("_"))
    assert (str(layer), position) == (feature["layer"], feature["ctx_idx"])
    assert feature["feature"] == paired(layer, latent)
    assert unpaired(feature["feature"]) == (layer, latent)


def test_what_circuit_tracer_wrote_is_read() -> None:
    file, graph = json.loads(THEIRS.read_text()), read_exchanged(THEIRS)
    keeps_to_schema(file)
    kinds = [node["feature_type"] for node in file["nodes"]]
    assert graph.n_features == kinds.count("cross layer transcoder")
    assert len(graph.targets) == kinds.count("logit")
    assert graph.words == file["metadata"]["prompt_tokens"]
    assert [round(target["probability"] or 0, 6) for target in graph.targets] == [
        round(node["token_prob"], 6) for node in file["nodes"] if node["feature_type"] == "logit"
    ]
    assert len(graph.values) == len(file["links"])
    wanted: dict[str, float] = defaultdict(float)
    for link in file["links"]:
        wanted[link["target"]] += link["weight"]
    names = {(n["layer"], n["ctx_idx"], n["feature"]): n["node_id"] for n in file["nodes"] if n["feature"] >= 0}
    for row, node in enumerate(graph.rows.tolist()[: graph.n_features]):
        layer, latent = int(graph.nodes.layer[node]), int(graph.nodes.latent[node])
        name = names[str(layer), int(graph.nodes.position[node]), paired(layer, latent)]
        assert graph.row_total[row] == pytest.approx(wanted[name], abs=1e-6)
    assert graph_view(graph)["prompt"] == file["metadata"]["prompt"]


def test_a_name_of_two_nodes_is_told_apart() -> None:
    """circuit-tracer calls the error of layer 1 at a token as it calls feature 1 of layer 0 there."""
    file = json.loads(THEIRS.read_text())
    twice = [
        name for name in {n["node_id"] for n in file["nodes"]} if sum(n["node_id"] == name for n in file["nodes"]) > 1
    ]
    assert len(twice) == 1  # the file has such a name
    layer, position = map(int, twice[0].split("_")[1:])
    graph = read_exchanged(THEIRS)
    sent = [link for link in file["links"] if link["source"] == twice[0]]
    at = [
        i
        for i in range(graph.n_sources)
        if graph.nodes.id(i) in (f"mlp_out.0/{layer}@{position}", f"error:mlp_out.{layer}@{position}")
    ]
    assert len(at) == 2
    columns = graph.matrix()[:, at].toarray()
    assert np.count_nonzero(columns) == len(sent)
    assert columns.sum() == pytest.approx(sum(link["weight"] for link in sent), abs=1e-6)


def test_theirs_goes_out_and_comes_back(tmp_path: Path) -> None:
    graph = read_exchanged(THEIRS)
    path = write_exchanged(graph, tmp_path / "tiny.json")
    keeps_to_schema(json.loads(path.read_text()))
    same(graph, read_exchanged(path))
    graph.save(tmp_path / "saved")
    same(graph, Graph.load(tmp_path / "saved"))


def first_token(file: dict[str, Any]) -> str:
    return next(node["node_id"] for node in file["nodes"] if node["feature_type"] == "embedding")


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no nodes": (lambda f: f.pop("nodes"), "field 'nodes'"),
    "a text for a number": (lambda f: f["links"][0].update(weight="1"), "weight"),
    "not finite": (lambda f: f["links"][0].update(weight=None), "weight"),
    "a link from nowhere": (lambda f: f["links"][0].update(source="9_9_9"), "is no node of the file"),
    "a link twice": (lambda f: f["links"].append(dict(f["links"][-1])), "two links lead from"),
    "outside the prompt": (lambda f: f["nodes"][0].update(ctx_idx=99), "the prompt has 6"),
    "an unknown type": (lambda f: f["nodes"][0].update(feature_type="<script>"), "unknown type"),
    "a layer that is none": (lambda f: f["nodes"][0].update(layer="x"), "no number"),
    "one name for all": (lambda f: [n.update(node_id="a") for n in f["nodes"]], "are called"),
    "something given to a token": (
        lambda f: f["links"][0].update(target=first_token(f)),
        "is no feature or output",
    ),
    "no outputs": (
        lambda f: f.update(nodes=[n for n in f["nodes"] if n["feature_type"] != "logit"], links=[]),
        "has no outputs",
    ),
    "a list": (lambda f: f.update(metadata=[]), "metadata"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_is_refused_in_a_line(what: str, tmp_path: Path) -> None:
    change, words = BAD[what]
    file = copy.deepcopy(json.loads(THEIRS.read_text()))
    change(file)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(file))
    with pytest.raises(FileError) as refused:
        read_exchanged(path)
    assert words in str(refused.value)
    assert "bad.json" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\x80\x04K\x01.", b"[" * 10_000, b"\xff\xfe"])
def test_what_is_no_json_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(FileError, match="export the graph anew"):
        read_exchanged(tmp_path / "bad.json")


def test_groups_are_the_same_in_whatever_order_nodes_stand(graph: Graph) -> None:
    groups = find_supernodes(graph)
    assert groups
    assert [group["nodes"] for group in groups] == [group["nodes"] for group in graph.supernodes]
    rng = np.random.default_rng(0)
    n = graph.n_features
    order = np.concatenate([rng.permutation(n), np.arange(n, len(graph.nodes))])
    place = np.argsort(order)
    rows = np.concatenate([order[:n], np.arange(n, n + len(graph.targets))])
    matrix = graph.matrix()[rows].tocsc()[:, order[: graph.n_sources]].tocsr()
    mixed = copy.copy(graph)
    mixed.nodes = graph.nodes.take(order)
    mixed.values, mixed.columns, mixed.offsets = matrix.data, matrix.indices, matrix.indptr
    mixed.influence = graph.influence[order[: graph.n_sources]]
    assert place[order[0]] == 0
    assert [sorted(group["nodes"]) for group in find_supernodes(mixed)] == [sorted(g["nodes"]) for g in groups]


def test_groups_are_named_by_labels_and_checked(graph: Graph) -> None:
    ids = graph.nodes.ids()
    latents = {node: (str(graph.nodes.hook[i]), int(graph.nodes.latent[i])) for i, node in enumerate(ids)}
    first = find_supernodes(graph)[0]
    named = find_supernodes(graph, labels={latents[node]: "France" for node in first["nodes"]})
    assert named[0] == {"name": "France", "nodes": first["nodes"]}
    node = first["nodes"][0]
    for groups, words in (
        ([{"name": "a", "nodes": ["nothing"]}], "does not have"),
        ([{"name": "a", "nodes": []}], "is empty"),
        ([{"name": "a", "nodes": [node]}, {"name": "a", "nodes": [ids[-1]]}], "two groups are called"),
        ([{"name": "a", "nodes": [node]}, {"name": "b", "nodes": [node]}], "leave it in one group"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_supernodes(graph, groups)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="alike is above 0"):
        find_supernodes(graph, alike=2)
