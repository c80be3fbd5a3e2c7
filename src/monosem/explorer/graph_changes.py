"""What changing features of a graph does: as the graph predicts, and as the model behind a dictionary then does."""

from __future__ import annotations

from monosem.circuits.changes import Change, change_features
from monosem.errors import ConfigError
from monosem.explorer import shapes
from monosem.explorer.dictionary import Unavailable
from monosem.explorer.graphs import GraphShelf
from monosem.models import SubjectModel
from monosem.sae import SAE

HELD = (
    "Predicted with attention and norms as they were; measured with all that answers. Both are changes of the logit, "
    "relative to the mean of all."
)


def change_graph(shelf: GraphShelf, name: str, given: shapes.GraphChanges) -> shapes.GraphMeasured:
    """Multiply activations of features of a graph, and measure.

    Raises:
        IndexError: there is no such graph.
        ConfigError: a node is not there, is no feature, or stands in two changes.
        Unavailable: a dictionary of the graph or its model is not here.
    """
    graph = shelf[name]
    closed = shelf.unchangeable(graph)
    if closed:
        raise Unavailable(f"{name}: {closed}")
    factors = dict[str, float]()
    for each in given.changes:
        for node in each.nodes:
            if node in factors:
                raise ConfigError(f"{node[:80]} is changed twice: give it one factor")
            factors[node] = each.factor
    shown = shelf.shown(graph)

    def work(_: SAE, model: SubjectModel) -> Change:
        return change_features(graph, model, {hook: dictionary.sae() for hook, dictionary in shown.items()}, factors)

    found = shelf.site.subjects.ask(shelf.dictionary, work)
    columns = (found.labels, found.before, found.direct, found.predicted, found.measured)
    return shapes.GraphMeasured(
        targets=[
            shapes.ChangedTarget(label=label, before=float(a), direct=float(b), predicted=float(c), measured=float(d))
            for label, a, b, c, d in zip(*columns, strict=True)
        ],
        words=HELD,
    )
