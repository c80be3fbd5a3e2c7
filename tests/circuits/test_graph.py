"""A graph: its predictions in the model, influence and pruning against dense oracles, files, what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from family_models import FAMILY_MODELS, VOCABULARY, D, family_module
from safetensors.torch import load_file, save_file

import monosem as ms
from monosem.circuits.graph import influence, rows
from monosem.circuits.graph.influence import VARIES, influence_of
from monosem.circuits.graph.prune import threshold
from monosem.circuits.graph.verify import verify
from monosem.errors import ConfigError, FileError
from monosem.models import SubjectModel
from monosem.sae import SAE

TOKENS = torch.randint(3, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(1))
Make = Callable[..., SAE]


def subject(name: str = "gpt2") -> SubjectModel:
    return SubjectModel(family_module(name), None, name)


def mixed(make: Make, name: str = "gpt2") -> list[SAE]:
    """A skip transcoder, an SAE of attention's heads, one of the stream."""
    width = 16 if name == "gpt2" else FAMILY_MODELS[name].n_heads * FAMILY_MODELS[name].head_width
    stream = "resid_post.1" if FAMILY_MODELS[name].order == "parallel" else "resid_mid.1"
    coder = {"hook": "mlp_in.0", "target_hook": "mlp_out.0"}
    return [
        make(ms.JumpReLUSkipTranscoder, D, 30, **coder),
        make(ms.ReLUSAE, width, 30, hook="attn_z.1", seed=1),
        make(ms.ReLUSAE, D, 30, hook=stream, seed=2),
    ]


@pytest.fixture(scope="module")
def graph(make_dictionary: Make) -> ms.Graph:
    return ms.trace(subject(), mixed(make_dictionary), TOKENS, [7, (3, 5)], progress=False)


EXACT = ("gpt2", "phi", "gpt_neox", "gptj", "bloom", "opt")
"""Families whose norms count in the model's own precision."""


@pytest.mark.parametrize("name", [*EXACT, "llama with biases", "gemma2", "gemma3_text", "qwen3", "mixtral"])
def test_what_edges_predict_is_measured_in_the_model(name: str, make_dictionary: Make) -> None:
    """Doubled, taken away: with everything else held, numbers move as the edges say, in the model's own modules."""
    graph = ms.trace(subject(name), mixed(make_dictionary, name), TOKENS, target=7, progress=False)
    for factor in (2.0, 0.0):
        found = graph.verify(5, factor=factor)
        for kind in ("node", "edge", "group"):
            agreement = found.agreement(kind, "frozen")
            assert agreement.n == 5
            assert agreement.nothing < 5
            assert agreement.worst <= (1e-12 if name in EXACT else 1e-6)
            assert agreement.slope == pytest.approx(1, abs=1e-5)


def test_every_error_and_token_and_a_hundred_features_are_what_their_edges_say(graph: ms.Graph) -> None:
    """All of them, not a sample: each taken away alone, on both targets."""
    from monosem.circuits.frozen.intervened import Intervened

    traced = graph.traced
    assert traced is not None
    model = Intervened(traced.frozen)
    clean = model.run({}, "frozen")
    ends = np.flatnonzero(np.isin(graph.nodes.kind, ("error", "token", "position"))).tolist()
    features = graph.top(100, "feature")
    assert len(features) == 100
    for number in [*ends, *features]:
        moved = traced.sources.changes(traced.columns[number].tolist(), -1.0)
        values = model.run({site: change.sum(0) for site, change in moved.items()}, "frozen")
        for row, goal in enumerate(traced.goals):
            change = (values[goal.site] - clean[goal.site])[goal.positions]
            expected = -graph.edge(number, graph.n_sources + row)
            assert float((change * goal.vectors).sum()) == pytest.approx(expected, abs=1e-12)


def test_the_whole_graph_predicts_what_dictionaries_answer(make_dictionary: Make) -> None:
    """Changed so little that no feature goes on or off, everything follows by the graph's paths, exactly."""
    graph = ms.trace(subject(), mixed(make_dictionary), TOKENS, target=7, progress=False)
    found = graph.verify(8, factor=1 + 1e-6)
    tests = [test for test in found.tests if test.kind == "node"]
    assert any(abs(test.total - test.direct) > 0.05 * abs(test.total) for test in tests)
    for test in tests:
        assert test.iterative == pytest.approx(test.total, rel=1e-4, abs=1e-12)


def test_an_intervention_that_does_nothing_does_not_count(graph: ms.Graph) -> None:
    import copy

    still = copy.copy(graph)
    kinds = np.isin(graph.nodes.kind[: graph.n_sources], VARIES)
    last = (graph.nodes.kind == "error") & (graph.nodes.position == 0) & (graph.nodes.hook == "mlp_out.1")
    number = int(np.flatnonzero(last)[0])  # of the last layer at the first position: nothing of it is read at the end
    still.influence = np.zeros_like(graph.influence)
    still.influence[number] = 1.0
    assert kinds[number]
    agreement = verify(still, 1).agreement("node", "frozen")
    assert (agreement.n, agreement.nothing) == (1, 1)
    assert np.isnan(agreement.slope)


# Influence and pruning ------------------------------------------------------------------------------------------------


def dense_influence(square: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The power series over the square matrix of all nodes, targets among them."""
    total, term = np.zeros(len(square)), weights
    for _ in range(len(square)):
        term = square.T @ term
        total += term
    return total


def square_of(graph: ms.Graph) -> np.ndarray:
    """Rows of all nodes, normalised over what can vary."""
    dense = np.abs(graph.matrix().toarray())
    varies = np.isin(graph.nodes.kind[: graph.n_sources], VARIES)
    dense = dense / dense[:, varies].sum(1, keepdims=True)
    square = np.zeros((len(graph.nodes), len(graph.nodes)))
    square[np.ix_(graph.rows, np.arange(graph.n_sources))] = dense
    return square


def test_influence_is_the_power_series_of_the_square_matrix(graph: ms.Graph) -> None:
    weights = np.zeros(len(graph.nodes))
    weights[graph.n_sources :] = graph.weights
    expected = dense_influence(square_of(graph), weights)[: graph.n_sources]
    assert np.abs(graph.influence - expected).max() <= 1e-13
    ends = np.isin(graph.nodes.kind[: graph.n_sources], ("error", "token", "position"))
    assert graph.influence[ends].sum() == pytest.approx(len(graph.targets))  # all of it ends somewhere


def test_nodes_in_any_order_have_the_same_influence(graph: ms.Graph) -> None:
    """As in a graph from elsewhere, where the matrix is not triangular."""
    matrix, n_features = graph.matrix(), graph.n_features
    order = np.random.default_rng(0).permutation(n_features)
    rows = np.concatenate([order, np.arange(n_features, len(graph.rows))])
    columns = np.concatenate([order, np.arange(n_features, graph.n_sources)])
    shuffled = influence_of(matrix[rows][:, columns], graph.nodes.kind[columns], n_features, graph.weights)
    assert np.abs(shuffled - graph.influence[columns]).max() <= 1e-12


@pytest.mark.parametrize("share", [0.3, 0.8, 0.98, 1.0])
def test_the_threshold_found_by_histograms_is_that_of_sorting(share: float) -> None:
    scores = np.random.default_rng(0).lognormal(0, 3, 200_000)
    order = np.sort(scores)[::-1]
    expected = order[np.searchsorted(np.cumsum(order), share * scores.sum() * (1 - 1e-12))]
    assert threshold(scores, share) == pytest.approx(expected, rel=1e-9)
    assert threshold(np.ones(70_000), share) == 1


@pytest.mark.parametrize(("nodes", "edges"), [(0.6, 0.9), (0.8, 0.98), (1.0, 1.0)])
def test_pruning_keeps_what_a_dense_loop_keeps(graph: ms.Graph, nodes: float, edges: float) -> None:
    small = graph.pruned(nodes, edges)
    assert small.audit().largest_error <= 1e-12
    n, f = graph.n_sources, graph.n_features
    kinds = graph.nodes.kind[:n]
    varies, droppable = np.isin(kinds, VARIES), np.isin(kinds, ("feature", "error"))
    order = np.sort(graph.influence[varies])[::-1]
    limit = order[min(np.searchsorted(np.cumsum(order) / order.sum(), nodes * (1 - 1e-12)), len(order) - 1)]
    kept = ~droppable | (graph.influence >= limit)
    dense = np.abs(graph.matrix().toarray()) * kept[None, :]
    dense[:f] *= kept[:f, None]
    normal = dense / np.maximum(dense[:, varies].sum(1, keepdims=True), 1e-30)
    weights = np.concatenate([np.zeros(n), graph.weights])
    square = np.zeros((len(graph.nodes), len(graph.nodes)))
    square[np.ix_(graph.rows, np.arange(n))] = normal
    influence = dense_influence(square, weights)
    scores = normal * (influence + weights)[graph.rows][:, None] * varies[None, :]
    order = np.sort(scores[scores > 0])[::-1]
    least = order[min(np.searchsorted(np.cumsum(order) / order.sum(), edges * (1 - 1e-12)), len(order) - 1)]
    strong = (scores >= least) & (scores > 0)
    while True:
        strong = strong & kept[None, :]
        strong[:f] &= kept[:f, None]
        leads, comes = strong.any(0), np.concatenate([strong[:f].any(1), np.ones(n - f, dtype=bool)])
        new = kept & (~droppable | leads) & comes
        if (new == kept).all():
            break
        kept = new
    assert small.nodes.ids()[: small.n_sources] == [graph.nodes.id(i) for i in np.flatnonzero(kept)]
    if nodes < 1:
        assert small.n_features < graph.n_features


def test_a_pruned_graph_is_tested_with_its_errors_as_they_are_now(graph: ms.Graph) -> None:
    """What an error has taken over of dropped features goes when it goes."""
    small = graph.pruned(0.6, 1.0)
    assert small.n_features < graph.n_features
    moved = [i for i in small.top(99, "error") if len(small.traced.columns[i]) > 1]
    assert moved
    assert small.verify(4).agreement("node", "frozen").worst <= 1e-12


def test_fewer_features_leave_a_remainder_and_rows_still_add_up(make_dictionary: Make, graph: ms.Graph) -> None:
    few = ms.trace(subject(), mixed(make_dictionary), TOKENS, [7, (3, 5)], max_features=15, progress=False)
    assert few.n_features == 15
    assert few.audit().largest_error <= 1e-12
    assert np.abs(few.audit().shares["remainder"]).max() > 0
    for number in few.top(15):
        name = few.nodes.id(number)
        there = graph.nodes.ids().index(name)
        for target in range(2):
            assert few.edge(number, few.n_sources + target) == graph.edge(there, graph.n_sources + target)
    sparse = ms.trace(subject(), mixed(make_dictionary), TOKENS, [7, (3, 5)], edges=0.7, progress=False)
    assert sparse.audit().largest_error <= 1e-12
    assert len(sparse.values) < 0.8 * len(graph.values)


def test_of_many_edges_the_largest_of_each_row_are_kept(
    make_dictionary: Make, graph: ms.Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the others are in the remainder, as if all had been worked on at once."""
    monkeypatch.setattr(rows, "ROOM", 0)
    monkeypatch.setattr(rows, "LEAST", 6)
    monkeypatch.setattr(influence, "BLOCK", 40)
    few = ms.trace(subject(), mixed(make_dictionary), TOKENS, [7, (3, 5)], progress=False)
    assert few.audit().largest_error <= 1e-12
    whole, at = graph.matrix().toarray(), {name: number for number, name in enumerate(graph.nodes.ids())}
    cut = few.matrix().toarray()
    columns = [at[name] for name in few.nodes.ids()[: few.n_sources]]
    remainder = few.nodes.kind[: few.n_sources] == "remainder"
    full = 0
    for row, number in enumerate(few.rows):
        expected = whole[int(np.flatnonzero(graph.rows == at[few.nodes.id(int(number))])[0])]
        of_features = np.sort(np.abs(expected[: graph.n_features]))[::-1]
        kept = np.flatnonzero(cut[row, : few.n_features])
        assert len(kept) <= 6
        full += len(kept) == 6
        np.testing.assert_allclose(cut[row, kept], expected[columns][kept], rtol=1e-10, atol=1e-13)
        np.testing.assert_allclose(np.sort(np.abs(cut[row, kept]))[::-1], of_features[: len(kept)], rtol=1e-10)
        rest = ~remainder & (np.arange(few.n_sources) >= few.n_features)
        np.testing.assert_allclose(cut[row, rest], expected[columns][rest], rtol=1e-10, atol=1e-13)
    assert full > 10
    monkeypatch.undo()
    again = influence.influence_of(few.matrix(), few.nodes.kind[: few.n_sources], few.n_features, few.weights)
    np.testing.assert_allclose(few.influence, again, rtol=1e-12)


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_saved_graph_is_the_same(graph: ms.Graph, tmp_path: Path, make_dictionary: Make) -> None:
    graph.labels[("mlp_out.0", 3)] = "a label"
    graph.supernodes.append({"name": "pair", "nodes": graph.nodes.ids()[:2]})
    again = ms.Graph.load(graph.save(tmp_path / "graph"))
    assert again.nodes.ids() == graph.nodes.ids()
    assert (again.matrix() != graph.matrix()).nnz == 0
    for name in ("tokens", "words", "prompt", "targets", "dictionaries", "labels", "supernodes", "settings"):
        assert getattr(again, name) == getattr(graph, name)
    assert np.array_equal(again.influence, graph.influence)
    assert str(again) == str(graph)
    with pytest.raises(ConfigError, match="trace the prompt again"):
        again.verify(2)
    first = (tmp_path / "graph" / "graph.json").read_bytes()
    assert (again.save(tmp_path / "again") / "graph.json").read_bytes() == first
    retraced = ms.trace(subject(), mixed(make_dictionary), TOKENS, [7, (3, 5)], progress=False)
    assert retraced.nodes.ids() == graph.nodes.ids()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("columns", [10_000]),
        ("columns", [-1]),
        ("kind", [9]),
        ("position", [99]),
        ("hook", [1000]),
        ("offsets", [1]),
        ("values", [float("nan")]),
    ],
)
def test_a_damaged_graph_is_refused(graph: ms.Graph, tmp_path: Path, name: str, value: list[float]) -> None:
    folder = graph.save(tmp_path / "graph")
    arrays = load_file(folder / "graph.safetensors")
    arrays[name][: len(value)] = torch.tensor(value).to(arrays[name].dtype)
    save_file(arrays, folder / "graph.safetensors")
    with pytest.raises(FileError):
        ms.Graph.load(folder)


def test_a_graph_of_a_wrong_kind_is_refused(graph: ms.Graph, tmp_path: Path) -> None:
    folder = graph.save(tmp_path / "graph")
    about = json.loads((folder / "graph.json").read_text())
    (folder / "graph.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(FileError, match="format 99"):
        ms.Graph.load(folder)
    (folder / "graph.json").write_text(json.dumps({**about, "words": [1]}))
    with pytest.raises(FileError, match="words"):
        ms.Graph.load(folder)
    (folder / "graph.safetensors").unlink()
    with pytest.raises(FileError):
        ms.Graph.load(folder)


def test_what_has_no_sources_and_a_folder_that_is_a_file_are_told_in_a_line(graph: ms.Graph, tmp_path: Path) -> None:
    token = graph.top(1, "token")[0]
    for asked in (lambda: graph.edge(0, token), lambda: graph.sources_of(10**9)):
        with pytest.raises(ms.MonosemError, match="has no sources"):
            asked()
    with pytest.raises(ms.MonosemError, match=r"kind must be one of .*Did you mean token"):
        graph.top(1, "tokens")  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(ms.MonosemError, match=r"file.*cannot be written"):
        graph.save(tmp_path / "file")
