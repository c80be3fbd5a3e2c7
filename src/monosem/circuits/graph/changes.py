"""What changing features of a graph does to its targets: as the graph predicts, and as the model then does.

Predicted, with all else held: a feature that is multiplied by a factor gives every node factor times as much. A later
feature's activation moves by what it is given more or less, and no further than to zero, and hands that on. Measured:
the model runs again with so much more or less of the features' decoder rows where they write; attention, norms and
layers without a dictionary answer too, which the graph holds as they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosem.arguments import checked
from monosem.circuits.frozen.frozen import Frozen
from monosem.circuits.frozen.units import Dictionaries, units_of
from monosem.circuits.graph.core import GraphCore
from monosem.circuits.graph.targets import Goal, goals_of
from monosem.errors import ConfigError, MismatchError
from monosem.models import EditContext, SubjectModel

SAFE = 1e-12
LOGIT = "logits"


@dataclass(frozen=True)
class Change:
    """Of each target its value as it was, and by how much it changes: predicted by the edges that lead to it from the
    changed features alone, by all paths through features, and measured.
    """

    labels: list[str]
    before: Float[np.ndarray, " targets"]
    direct: Float[np.ndarray, " targets"]
    predicted: Float[np.ndarray, " targets"]
    measured: Float[np.ndarray, " targets"]

    def __str__(self) -> str:
        rows = zip(self.labels, self.before, self.direct, self.predicted, self.measured, strict=True)
        lines = [f"{label!r:24} {a:+9.3f} {b:+9.3f} {c:+9.3f} {d:+9.3f}" for label, a, b, c, d in rows]
        return "\n".join([f"{'target':24} {'was':>9} {'direct':>9} {'predicted':>9} {'measured':>9}", *lines])


@checked
def change_features(
    graph: GraphCore, model: SubjectModel, dictionaries: Dictionaries, factors: Mapping[str, float]
) -> Change:
    """Multiply activations of features of a graph, and compare what it predicts with what the model does.

    print(ms.change_features(graph, model, sae, {"resid_post.2/123@7": 0}))

    Args:
        graph: the graph; its targets are tokens.
        model: the model that it was traced in.
        dictionaries: those that it was traced with.
        factors: by the id of a feature node; 0 takes it away, 1 changes nothing.

    Raises:
        ConfigError: there is no such feature, or targets are no tokens.
        MismatchError: model or dictionaries are others.
    """
    numbers = feature_numbers(graph, factors)
    direct, predicted = predict(graph, {number: factors[node] for node, number in numbers.items()})
    measured = measure(graph, model, dictionaries, {number: factors[node] for node, number in numbers.items()})
    before = np.array([target["value"] for target in graph.targets])
    return Change([target["label"] for target in graph.targets], before, direct, predicted, measured)


def feature_numbers(graph: GraphCore, ids: Mapping[str, float]) -> dict[str, int]:
    """Numbers of feature nodes by their ids.

    Raises:
        ConfigError: there is no such feature.
    """
    known = {graph.nodes.id(number): number for number in range(graph.n_features)}
    for node in ids:
        if node not in known:
            raise ConfigError(f"the graph has no feature {node[:80]!r}: see graph.nodes.ids()")
    return {node: known[node] for node in ids}


def predict(graph: GraphCore, factors: Mapping[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """By how much each target changes: by edges from the changed features alone, and by all paths through features."""
    matrix, n = graph.matrix(), graph.n_features
    relative = np.zeros(graph.n_sources)
    for number, factor in factors.items():
        relative[number] = factor - 1
    direct = np.asarray(matrix[n:] @ relative).ravel()
    values = np.abs(graph.nodes.activation[:n])
    for number in range(n):  # in the order in which features are read: what comes in is known
        if number in factors or values[number] < SAFE:
            continue
        row = slice(graph.offsets[number], graph.offsets[number + 1])
        moved = float(graph.values[row] @ relative[graph.columns[row]])
        relative[number] = max(-1.0, moved / values[number])
    return direct, np.asarray(matrix[n:] @ relative).ravel()


@torch.no_grad()
def measure(
    graph: GraphCore, model: SubjectModel, dictionaries: Dictionaries, factors: Mapping[int, float]
) -> Float[np.ndarray, " targets"]:
    """By how much each target changes in the model.

    Raises:
        ConfigError: targets are no tokens.
        MismatchError: model or dictionaries are others.
    """
    frozen = traced_again(graph, model, dictionaries)
    tokens, goals = frozen.tokens, goals_of_graph(graph, frozen)
    edits = _edits(graph, frozen, factors)
    hooks = list({frozen.sites[goal.site].name for goal in goals})
    with model.edit({hook: _adding(delta) for hook, delta in edits.items()}):
        after = model.capture(tokens, hooks)
    found: list[float] = []
    for goal in goals:
        site = frozen.sites[goal.site]
        rows = after[site.name][0].to(frozen.dtype)[goal.positions] - site.value[goal.positions]
        found.append(float((rows.double() * goal.vectors.double()).sum()))
    return np.array(found)


def traced_again(graph: GraphCore, model: SubjectModel, dictionaries: Dictionaries) -> Frozen:
    """The pass that a graph was traced in.

    Raises:
        MismatchError: it was another model.
    """
    if graph.fingerprint and graph.fingerprint != model.fingerprint():
        raise MismatchError(f"this graph was traced in {graph.model}, not in {model.name} as it is here")
    return Frozen(model, torch.tensor([graph.tokens], device=model.device), units_of(model, dictionaries))


def goals_of_graph(graph: GraphCore, frozen: Frozen) -> list[Goal]:
    """The targets of a graph.

    Raises:
        ConfigError: one is no token.
    """
    found: list[Goal] = []
    for number, target in enumerate(graph.targets, graph.n_sources):
        if str(graph.nodes.hook[number]) != LOGIT:
            raise ConfigError(f"the target {target['label']!r} is no token: only logits are followed here")
        found += goals_of(frozen, int(graph.nodes.latent[number]), target["position"])
    return found


def feature_entry(graph: GraphCore, frozen: Frozen, number: int) -> tuple[int, int]:
    """The unit of a feature node, and which of its entries it is.

    Raises:
        MismatchError: dictionaries are not those of the graph.
    """
    nodes = graph.nodes
    hook, position, latent = str(nodes.hook[number]), int(nodes.position[number]), int(nodes.latent[number])
    units = [which for which, unit in enumerate(frozen.units) if unit.name == hook]
    if not units:
        raise MismatchError(f"no dictionary stands at {hook}: give those of the graph")
    unit = frozen.units[units[0]]
    entries = ((unit.positions == position) & (unit.latents == latent)).nonzero()[:, 0]
    if len(entries) != 1:
        raise MismatchError(
            f"latent {latent} of {hook} is off at token {position}: this is not the dictionary that the graph was made "
            "with"
        )
    return units[0], int(entries[0])


def _edits(graph: GraphCore, frozen: Frozen, factors: Mapping[int, float]) -> dict[str, Float[Tensor, "pos d"]]:
    """What is added where, all features together."""
    found = dict[str, Tensor]()
    for number, factor in factors.items():
        which, entry = feature_entry(graph, frozen, number)
        unit = frozen.units[which]
        for write, hook in enumerate(unit.writes):
            rows = unit.written(write, torch.tensor([entry], device=frozen.tokens.device))
            delta = found.setdefault(hook, rows.new_zeros(frozen.length, rows.shape[1]))
            delta[int(graph.nodes.position[number])] += (factor - 1) * rows[0]
    return found


def _adding(delta: Float[Tensor, "pos d"]):
    def edit(x: Tensor, _: EditContext) -> Tensor:
        return x + delta.to(x.dtype)

    return edit
