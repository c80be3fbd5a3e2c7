"""Attribution graphs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Words

NodeId = Annotated[str, Field(min_length=1, max_length=300)]
Finite = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]


class GraphSummary(TypedDict):
    """A graph in a line."""

    id: str
    prompt: str
    words: list[str]
    model: str | None
    targets: list[str]
    nodes: int
    features: int
    replacement_score: float | None
    completeness_score: float | None
    groups: int


class GraphMissing(TypedDict):
    """A graph that cannot be opened, and why."""

    id: str
    words: str


class Graphs(TypedDict):
    """The graphs that stand beside a dictionary."""

    graphs: list[GraphSummary]
    closed: str | None
    """None: a prompt can be traced; otherwise why not."""
    missing: list[GraphMissing]


class GraphNode(TypedDict):
    """A node, and what is known of it."""

    id: str
    kind: Literal["feature", "error", "token", "position", "bias", "beginning", "remainder", "target"]
    hook: str | None
    layer: int
    position: int | None
    latent: int | None
    activation: float | None
    influence: float
    rank: float
    """Share of all influence that is held by the nodes at least as influential as this."""
    label: str | None
    value: float | None
    probability: float | None


class GraphEdges(TypedDict):
    """Numbers of nodes, and what the source adds to the target's value; strongest first."""

    source: list[int]
    target: list[int]
    value: list[float]


class GraphGroup(TypedDict):
    """Nodes that stand for one thing."""

    name: str
    nodes: list[str]


class GraphSize(TypedDict):
    """Of the whole graph, and what share of its influence is held by the nodes shown."""

    nodes: int
    edges: int
    held: float


class GraphDictionary(TypedDict):
    """A dictionary of a graph; `shown` is its name on this server."""

    kind: str
    n_latents: int | None
    shown: str | None


class GraphEdgeHead(TypedDict):
    """What of an edge passes a head, and the positions from which and to which it brings most of that."""

    layer: int
    head: int
    value: float
    reads: int
    writes: int


class GraphKeptHeads(TypedDict):
    """An edge and the heads that it passes."""

    source: str
    target: str
    heads: list[GraphEdgeHead]


class GraphView(TypedDict):
    """A graph's most influential nodes and the edges between them."""

    id: str
    prompt: str
    words: list[str]
    model: str | None
    nodes: list[GraphNode]
    edges: GraphEdges
    groups: list[GraphGroup]
    all: GraphSize
    heads: list[GraphKeptHeads]
    """Of edges of which it was kept."""
    replacement_score: float | None
    completeness_score: float | None
    dictionaries: dict[str, GraphDictionary]
    closed: str | None
    """None: nodes can be changed and the model measured; otherwise why not."""


class GraphEdgeHeads(TypedDict):
    """The heads that an edge passes, the strongest first."""

    heads: list[GraphEdgeHead]


class Traced(TypedDict):
    """A graph that was made."""

    id: str


class AskedTrace(BaseModel):
    """A prompt, and the next token to trace; the likeliest ones if none."""

    model_config = ConfigDict(extra="forbid")

    text: Words = Field(min_length=1, max_length=20_000)
    target: Words | None = Field(default=None, min_length=1, max_length=200)


class KeptGroup(BaseModel):
    """A group to be kept."""

    model_config = ConfigDict(extra="forbid")

    name: Words = Field(min_length=1, max_length=200)
    nodes: list[NodeId] = Field(min_length=1, max_length=10_000)


class GraphGroups(TypedDict):
    """Groups."""

    groups: list[GraphGroup]


class KeptGroups(BaseModel):
    """All groups of a graph."""

    model_config = ConfigDict(extra="forbid")

    groups: list[KeptGroup] = Field(max_length=1_000)


class GraphChange(BaseModel):
    """Nodes whose activations are multiplied."""

    model_config = ConfigDict(extra="forbid")

    nodes: list[NodeId] = Field(min_length=1, max_length=10_000)
    factor: Finite


class GraphChanges(BaseModel):
    """What is changed, all at once."""

    model_config = ConfigDict(extra="forbid")

    changes: list[GraphChange] = Field(min_length=1, max_length=100)


class ChangedTarget(TypedDict):
    """A target's value as it was, and its changes: by edges alone, by all paths through features, in the model."""

    label: str
    before: float
    direct: float
    predicted: float | None
    measured: float


class GraphMeasured(TypedDict):
    """What changes of features do to every target."""

    targets: list[ChangedTarget]
    words: str | None
