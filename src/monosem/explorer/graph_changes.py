"""What changing features of a graph does: as the graph predicts, and as the model behind a dictionary then does."""

from __future__ import annotations

from collections.abc import Callable

from monosem.circuits.graph.changes import Change, change_features
from monosem.circuits.graph.edge_heads import EdgeHead, edge_heads
from monosem.circuits.graph.graph import Graph
from monosem.errors import ConfigError
from monosem.explorer import shapes
from monosem.explorer.dictionary import Unavailable
from monosem.explorer.graphs import GraphShelf
from monosem.models import SubjectModel
from monosem.sae import SAE

MOST_HEADS = 24
HELD = (
    "Predicted with attention and norms as they were; measured with all that answers. Both are changes of the logit, "
    "relative to the mean of all."
)


def heads_of_edge(shelf: GraphShelf, name: str, source: str, target: str) -> shapes.GraphEdgeHeads:
    """Through which heads an edge goes.

    Raises:
        IndexError: there is no such graph.
        ConfigError: there is no such node, or it is of another kind.
        Unavailable: a dictionary of the graph or its model is not here.
    """
    graph, dictionaries = _openable(shelf, name)

    def work(_: SAE, model: SubjectModel) -> list[EdgeHead]:
        return edge_heads(graph, model, dictionaries(), source, target)

    found = shelf.site.subjects.ask(shelf.dictionary, work)
    return shapes.GraphEdgeHeads(heads=[shapes.GraphEdgeHead(**head) for head in found[:MOST_HEADS]])


def _openable(shelf: GraphShelf, name: str) -> tuple[Graph, Callable[[], dict[str, SAE]]]:
    """A graph whose model and dictionaries are all here."""
    graph = shelf[name]
    closed = shelf.unchangeable(graph)
    if closed:
        raise Unavailable(f"{name}: {closed}")
    shown = shelf.shown(graph)
    return graph, lambda: {hook: dictionary.sae() for hook, dictionary in shown.items()}


def change_graph(shelf: GraphShelf, name: str, given: shapes.GraphChanges) -> shapes.GraphMeasured:
    """Multiply activations of features of a graph, and measure.

    Raises:
        IndexError: there is no such graph.
        ConfigError: a node is not there, is no feature, or stands in two changes.
        Unavailable: a dictionary of the graph or its model is not here.
    """
    graph, dictionaries = _openable(shelf, name)
    factors = dict[str, float]()
    for each in given.changes:
        for node in each.nodes:
            if node in factors:
                raise ConfigError(f"{node[:80]} is changed twice: give it one factor")
            factors[node] = each.factor

    def work(_: SAE, model: SubjectModel) -> Change:
        return change_features(graph, model, dictionaries(), factors)

    found = shelf.site.subjects.ask(shelf.dictionary, work)
    columns = (found.labels, found.before, found.direct, found.predicted, found.measured)
    return shapes.GraphMeasured(
        targets=[
            shapes.ChangedTarget(label=label, before=float(a), direct=float(b), predicted=float(c), measured=float(d))
            for label, a, b, c, d in zip(*columns, strict=True)
        ],
        words=HELD,
    )
