"""Changes of features: what is predicted is what paths add up to; what is measured is what edits of the model do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import monosem as ms
from monosem.circuits.graph.changes import change_features, predict
from monosem.circuits.graph.core import GraphCore, Nodes, TargetInfo
from monosem.circuits.graph.graph import Graph
from monosem.circuits.graph.trace import trace
from monosem.errors import ConfigError, MismatchError
from monosem.models import SubjectModel
from monosem.sae import SAE, load_sae

PROMPT = "The king of France and the queen of"


@pytest.fixture(scope="module")
def sae() -> SAE:
    return load_sae(Path(__file__).parents[1] / "data/demo_sae").float()


@pytest.fixture(scope="module")
def graph(bundled: SubjectModel, sae: SAE) -> Graph:
    return trace(bundled, {"resid_post.2": sae}, PROMPT, progress=False)


def chain() -> GraphCore:
    """Two features in a row and one target: a gives b 3 of its 4, b gives the target 10, a gives it 5."""
    nodes = Nodes(
        np.array(["feature", "feature", "token", "target"]),
        np.array(["mlp_out.0", "mlp_out.1", "embed", "logits"]),
        np.array([0, 1, -1, 2]),
        np.array([0, 0, 0, 0]),
        np.array([0, 1, 7, 9]),
        np.array([2.0, 4.0, 0.0, 0.0]),
    )
    return GraphCore(
        prompt="a",
        tokens=[7],
        words=["a"],
        model="",
        fingerprint="",
        dictionaries={},
        nodes=nodes,
        targets=[TargetInfo(label="x", probability=1.0, value=15.0, position=0, weight=1.0)],
        values=np.array([2.0, 3.0, 1.0, 5.0, 10.0]),
        columns=np.array([2, 0, 2, 0, 1]),
        offsets=np.array([0, 1, 3, 5]),
        row_total=np.array([2.0, 4.0, 15.0]),
    )


@pytest.mark.parametrize(("factor", "through"), [(0, -3 / 4), (1, 0), (2, 3 / 4), (-1, -1.0)])
def test_a_change_is_handed_on_and_nothing_falls_below_zero(factor: float, through: float) -> None:
    direct, predicted = predict(chain(), {0: factor})
    assert direct[0] == pytest.approx(5 * (factor - 1))
    assert predicted[0] == pytest.approx(5 * (factor - 1) + 10 * through)


def test_what_is_changed_stays_as_it_was_set() -> None:
    direct, predicted = predict(chain(), {0: 0, 1: 1})
    assert direct[0] == predicted[0] == pytest.approx(-5)


def test_measured_is_what_an_edit_of_the_model_does(graph: Graph, bundled: SubjectModel, sae: SAE) -> None:
    node = graph.top(1)[0]
    latent, position = int(graph.nodes.latent[node]), int(graph.nodes.position[node])
    found = change_features(graph, bundled, {"resid_post.2": sae}, {graph.nodes.id(node): 0.25})
    tokens = torch.tensor([graph.tokens])
    with torch.no_grad():
        before = bundled(tokens)[0, -1]
        edit = ms.Scale(sae, latent, 0.25, hook="resid_post.2", where=ms.Where(positions=[position]))
        with bundled.edit([edit]):
            after = bundled(tokens)[0, -1]
    ids = graph.nodes.latent[graph.n_sources :].tolist()
    wanted = (after - after.mean() - before + before.mean())[ids]
    np.testing.assert_allclose(found.measured, wanted.cpu().numpy(), atol=1e-4)
    column = graph.matrix()[graph.n_features :, [node]].toarray()[:, 0]
    np.testing.assert_allclose(found.direct, -0.75 * column, rtol=1e-6)
    assert "measured" in str(found)
    assert np.abs(found.measured).max() > 0.01


def test_a_factor_of_one_changes_nothing(graph: Graph, bundled: SubjectModel, sae: SAE, tmp_path: Path) -> None:
    graph.save(tmp_path / "graph")
    again = Graph.load(tmp_path / "graph")  # without the pass that it was traced in
    found = change_features(again, bundled, {"resid_post.2": sae}, {again.nodes.id(again.top(1)[0]): 1})
    np.testing.assert_allclose(found.measured, 0, atol=1e-4)
    assert not found.direct.any()
    assert not found.predicted.any()


def test_what_cannot_be_changed_is_said(graph: Graph, bundled: SubjectModel, sae: SAE) -> None:
    feature = graph.nodes.id(graph.top(1)[0])
    with pytest.raises(ConfigError, match="no feature 'token:embed@1'"):
        change_features(graph, bundled, sae, {"token:embed@1": 0})
    other = load_sae(Path(__file__).parents[1] / "data/demo_sae")
    with torch.no_grad():
        other.b_enc.sub_(100)  # never on
    with pytest.raises(MismatchError, match="is off at token"):
        change_features(graph, bundled, {"resid_post.2": other}, {feature: 0})
    with pytest.raises(MismatchError, match="no dictionary stands at"):
        change_features(graph, bundled, "neurons", {feature: 0})
