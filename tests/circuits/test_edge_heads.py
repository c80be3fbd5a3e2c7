"""Heads of an edge: what passes a layer's heads is what the edge loses without them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from monosem.circuits.frozen.steps import Mix
from monosem.circuits.graph.changes import goals_of_graph, traced_again
from monosem.circuits.graph.edge_heads import _column, _cotangent, _passing, edge_heads
from monosem.circuits.graph.graph import Graph
from monosem.circuits.graph.sources import Sources
from monosem.circuits.graph.trace import trace
from monosem.circuits.graph.traced import Traced
from monosem.circuits.graph.view import graph_view
from monosem.errors import ConfigError
from monosem.models import SubjectModel
from monosem.sae import SAE, load_sae


@pytest.fixture(scope="module")
def sae() -> SAE:
    return load_sae(Path(__file__).parents[1] / "data/demo_sae").float()


@pytest.fixture(scope="module")
def graph(bundled: SubjectModel, sae: SAE) -> Graph:
    return trace(bundled, {"resid_post.2": sae}, "The king of France and the queen of France", progress=False)


def pairs(graph: Graph) -> list[tuple[int, int]]:
    """Edges into a target and into a feature: from a feature at an earlier token, from a token."""
    nodes = graph.nodes
    last = int(nodes.position.max())
    early = next(i for i in graph.top(200) if nodes.position[i] < last)
    late = next(i for i in graph.top(200) if nodes.position[i] == last)
    token = next(i for i in range(graph.n_sources) if nodes.kind[i] == "token" and nodes.position[i] == last - 1)
    return [(early, graph.n_sources), (token, late)]


@pytest.mark.parametrize("which", range(2))
def test_a_layers_heads_add_up_to_what_the_edge_loses_without_them(
    which: int, graph: Graph, bundled: SubjectModel, sae: SAE
) -> None:
    source, target = pairs(graph)[which]
    frozen = traced_again(graph, bundled, {"resid_post.2": sae})
    traced = Traced(bundled, frozen, Sources(frozen), goals_of_graph(graph, frozen), [])
    changes = traced.sources.changes([_column(graph, traced, source)])
    site, cotangent = _cotangent(graph, traced, target)
    n = cotangent.shape[1]

    def edge() -> float:
        moved = frozen.push(changes).get(site)
        return 0.0 if moved is None else float((moved[:, :n] * cotangent).sum())

    whole = edge()
    assert whole == pytest.approx(graph.edge(source, target), rel=1e-3, abs=1e-4)
    passing = dict(_passing(frozen, frozen.push(changes), site, cotangent))
    assert passing
    for layer, paths in passing.items():
        mix = next(s for one in frozen.sites for s in one.steps if isinstance(s, Mix) and one.name == f"attn_z.{layer}")
        pattern = mix.pattern
        for head in range(mix.heads):
            mix.pattern = replace(pattern, held=pattern.square(pattern.length).clone())
            mix.pattern.held[head] = 0  # type: ignore[index]
            assert whole - edge() == pytest.approx(float(paths[head].sum()), rel=1e-3, abs=2e-4)
        mix.pattern = replace(pattern, held=torch.zeros_like(pattern.square(pattern.length)))
        assert whole - edge() == pytest.approx(float(paths.sum()), rel=1e-3, abs=2e-4)
        mix.pattern = pattern


def test_heads_are_listed_by_strength_with_their_tokens(graph: Graph, bundled: SubjectModel, sae: SAE) -> None:
    source, target = pairs(graph)[0]
    ids = graph.nodes.ids()
    found = edge_heads(graph, bundled, {"resid_post.2": sae}, ids[source], ids[target])
    sizes = [abs(head["value"]) for head in found]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0
    by_layer: dict[int, float] = defaultdict(float)
    for head in found:
        by_layer[head["layer"]] += head["value"]
        assert int(graph.nodes.position[source]) <= head["reads"] <= head["writes"]
    # The SAE stands behind layer 2, so that all of the edge goes through the heads of the last layer.
    assert by_layer.keys() == {3}
    assert by_layer[3] == pytest.approx(graph.edge(source, target), rel=1e-2)


def test_what_is_kept_is_what_is_asked_for_and_goes_with_the_graph(
    graph: Graph, bundled: SubjectModel, sae: SAE, tmp_path: Path
) -> None:
    graph.keep_heads(5)
    assert len(graph.heads) == 5
    (source, target), kept = next(iter(graph.heads.items()))
    asked = edge_heads(graph, bundled, {"resid_post.2": sae}, source, target)
    assert [(head["layer"], head["head"]) for head in kept] == [(head["layer"], head["head"]) for head in asked]
    assert [head["value"] for head in kept] == pytest.approx([head["value"] for head in asked], rel=1e-3)
    again = Graph.load(graph.save(tmp_path / "g"))
    assert again.heads == graph.heads
    assert len(graph_view(again)["heads"]) == 5
    with pytest.raises(ConfigError, match="the pass of this graph is not there"):
        again.keep_heads()


def test_nodes_that_have_no_heads_are_said(graph: Graph, bundled: SubjectModel, sae: SAE) -> None:
    feature, target = graph.nodes.id(graph.top(1)[0]), graph.nodes.id(graph.n_sources)
    for source, goal in (("remainder", target), (feature, "token:embed@1"), ("nothing", target)):
        with pytest.raises(ConfigError, match="of the graph"):
            edge_heads(graph, bundled, {"resid_post.2": sae}, source, goal)
