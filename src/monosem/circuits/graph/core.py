"""What a graph holds: nodes, targets, edges, influence; and what is read off these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from scipy.sparse import csr_matrix
from typing_extensions import TypedDict

from monosem.arguments import Positive, checked
from monosem.circuits.graph.influence import influence_of, scores_of
from monosem.errors import ConfigError

Kind = Literal["feature", "error", "token", "position", "bias", "beginning", "remainder", "target"]
KINDS: tuple[Kind, ...] = get_args(Kind)
OWN = "target"
"""The place of the constant that a target adds itself: an encoder's bias, the head's."""


@dataclass
class Nodes:
    """The columns of a table with a row a node: features, other sources, then targets."""

    kind: np.ndarray
    """Of strings, `KINDS`."""
    hook: np.ndarray
    """Of strings: where it stands; "" of the beginning and the remainder."""
    layer: np.ndarray
    """-1 of embeddings and of what has none."""
    position: np.ndarray
    """-1 of what has none."""
    latent: np.ndarray
    """Of a feature; a token's id of tokens and logits; else -1."""
    activation: np.ndarray
    """Of a feature; of others 0."""

    def __len__(self) -> int:
        return len(self.kind)

    def take(self, chosen: np.ndarray) -> Nodes:
        """Some of them."""
        return Nodes(**{name: column[chosen] for name, column in vars(self).items()})

    def ids(self) -> list[str]:
        """The same node has the same name in every graph."""
        return [self.id(number) for number in range(len(self))]

    def id(self, number: int) -> str:
        kind, hook = str(self.kind[number]), str(self.hook[number])
        position, latent = int(self.position[number]), int(self.latent[number])
        if kind == "feature":
            return f"{hook}/{latent}@{position}"
        if kind == "target":
            return f"target:{hook}/{latent}@{position}"
        place = "" if position < 0 else f"@{position}"
        return f"{kind}:{hook}{place}" if hook else kind


class Supernode(TypedDict):
    """Nodes under one name."""

    name: str
    nodes: list[str]


class EdgeHead(TypedDict):
    """What of an edge passes one head."""

    layer: int
    head: int
    value: float
    reads: int
    """The position from which it brings most of that ..."""
    writes: int
    """... and the one to which it brings it."""


class TargetInfo(TypedDict):
    """What one of the last rows is of."""

    label: str
    probability: float | None
    value: float
    position: int
    weight: float


@dataclass
class GraphCore:
    """A graph as data; `Graph` is one that is pruned, tested, shown and saved.

    Row r of `matrix()` holds, for feature or target `rows[r]`, what every source adds to its value (of a feature: to
    what its activation function reads; of a logit: to its distance from the mean logit). Rows sum to `row_total`.
    """

    prompt: str
    tokens: list[int]
    words: list[str]
    """Of each token its text."""
    model: str
    fingerprint: str
    dictionaries: dict[str, dict[str, Any]]
    """By hook point: name, hash, kind and number of latents of what stands there."""
    nodes: Nodes
    targets: list[TargetInfo]
    values: np.ndarray
    columns: np.ndarray
    offsets: np.ndarray
    """Edges, row after row: values, source nodes, and where each row begins."""
    row_total: np.ndarray
    """(F + K,) what each row adds up to, measured in the pass."""
    influence: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """(N,) of sources: how much of what is explained passes each."""
    replacement_score: float = 0.0
    completeness_score: float = 0.0
    supernodes: list[Supernode] = field(default_factory=list[Supernode])
    labels: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])
    heads: dict[tuple[str, str], list[EdgeHead]] = field(default_factory=dict[tuple[str, str], list[EdgeHead]])
    """Of some edges, by the ids of source and target, the heads that they go through: see `keep_heads`."""
    settings: dict[str, Any] = field(default_factory=dict[str, Any])
    traced: Any = field(default=None, repr=False, compare=False)
    """The pass that it was traced in, while it is there: for `verify`."""

    def __post_init__(self) -> None:
        if not len(self.influence):
            self.count()

    @property
    def n_features(self) -> int:
        """F: features come first among nodes."""
        return int((self.nodes.kind == "feature").sum())

    @property
    def n_sources(self) -> int:
        """N: all nodes but the targets, which come last."""
        return len(self.nodes) - len(self.targets)

    @property
    def rows(self) -> np.ndarray:
        """The node of every row: features, then targets."""
        return np.concatenate([np.arange(self.n_features), np.arange(self.n_sources, len(self.nodes))])

    @property
    def weights(self) -> np.ndarray:
        """(K,) how much each target counts."""
        return np.array([target["weight"] for target in self.targets])

    def matrix(self) -> csr_matrix:
        """Edges, (F + K, N)."""
        return csr_matrix((self.values, self.columns, self.offsets), shape=(len(self.offsets) - 1, self.n_sources))

    @checked
    def edge(self, source: int, target: int) -> float:
        """What one node adds to another, by their numbers; 0 where there is no edge.

        Raises:
            ConfigError: the second is no node that has sources.
        """
        part = self._edges_of(target)
        return float(self.values[part][self.columns[part] == source].sum())

    def _edges_of(self, target: int) -> slice:
        found = np.flatnonzero(self.rows == target)
        if not len(found):
            raise ConfigError(
                f"node {target} has no sources: features have, and targets (graph.rows are their numbers)"
            )
        return slice(self.offsets[found[0]], self.offsets[found[0] + 1])

    def count(self) -> None:
        """Influence and scores anew, from the edges."""
        matrix, kinds, n_features = self.matrix(), self.nodes.kind[: self.n_sources], self.n_features
        weights = self.weights
        self.influence = influence_of(matrix, kinds, n_features, weights)
        found = scores_of(matrix, kinds, n_features, weights, self.influence)
        self.replacement_score, self.completeness_score = found

    @checked
    def top(self, k: Positive = 10, kind: Kind = "feature") -> list[int]:
        """The numbers of the most influential nodes of a kind."""
        of_kind = np.flatnonzero(self.nodes.kind[: self.n_sources] == kind)
        return of_kind[np.argsort(-self.influence[of_kind], kind="stable")[:k]].tolist()

    @checked
    def sources_of(self, target: int, k: Positive = 10) -> list[tuple[int, float]]:
        """The strongest edges to a node, by their size: source and what it adds.

        Raises:
            ConfigError: it is no node that has sources.
        """
        part = self._edges_of(target)
        order = np.argsort(-np.abs(self.values[part]), kind="stable")[:k]
        return [(int(self.columns[part][i]), float(self.values[part][i])) for i in order]
