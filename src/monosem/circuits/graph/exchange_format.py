"""The JSON in which attribution graphs are exchanged: that of Neuronpedia and circuit-tracer, both ways.

Written files keep to Neuronpedia's published `graph-schema.json` (version 1.0.0); what it has no word for stands under
`monosem`, which other readers pass over, so that a graph of ours comes back as it was. Files of others are read
strictly: types and sizes are checked, links must join nodes that are there, and their texts stay text.

Where theirs differ from ours:

- `influence` in a file is a rank: the share of all influence that is held by the nodes at least as influential. A graph
  counts its own anew, from its edges.
- Rows do not balance in a file of others, which hold no biases, no positions and no beginning of text: the total of a
  row is the sum of what is there.
- circuit-tracer gives the error of layer L at position P the name `0_L_P`, which is that of feature L of layer 0 too.
  Where both have a link to one node, the feature's is written first. A single one that may be either is counted as
  unexplained: as the error's.
"""

from __future__ import annotations

from math import isqrt
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from monosem.circuits.graph.core import Kind, TargetInfo

SCHEMA_VERSION = 1
FEATURE, ERROR, TOKEN, TARGET = "cross layer transcoder", "mlp reconstruction error", "embedding", "logit"
ATTENTION_FEATURE, ATTENTION_ERROR = "lorsa", "lorsa error"


STRICT = with_config(ConfigDict(strict=True, allow_inf_nan=False))
"""A text is no number, and a number is finite."""


@STRICT
class OwnNode(TypedDict):
    """What a node of ours has beside."""

    kind: Kind
    hook: str
    layer: int
    position: int
    latent: int
    total: NotRequired[float]
    """Of a row: what it sums to."""
    target: NotRequired[TargetInfo]


@STRICT
class OwnMetadata(TypedDict):
    """What a graph of ours has beside."""

    format_version: Literal[1]
    model: str
    fingerprint: str
    tokens: list[int]
    dictionaries: dict[str, dict[str, Any]]
    settings: dict[str, Any]


@STRICT
class Metadata(TypedDict):
    """What a graph is of."""

    slug: str
    scan: str
    prompt_tokens: list[str]
    prompt: str
    transcoder_list: NotRequired[list[str]]
    node_threshold: NotRequired[float | None]
    info: NotRequired[dict[str, Any]]
    monosem: NotRequired[OwnMetadata]


@STRICT
class QParams(TypedDict):
    """What a viewer was left with."""

    pinnedIds: NotRequired[list[str]]
    supernodes: NotRequired[list[list[str]]]
    linkType: NotRequired[str | None]
    clickedId: NotRequired[str | None]
    sg_pos: NotRequired[str | None]


@STRICT
class Node(TypedDict):
    """A node."""

    node_id: str
    feature: int | None
    layer: str | int
    ctx_idx: int
    feature_type: str
    jsNodeId: str
    clerp: str | None
    influence: NotRequired[float | None]
    activation: NotRequired[float | None]
    token_prob: NotRequired[float | None]
    is_target_logit: NotRequired[bool]
    monosem: NotRequired[OwnNode]


@STRICT
class Link(TypedDict):
    """An edge."""

    source: str
    target: str
    weight: float


@STRICT
class Exchanged(TypedDict):
    """A whole file."""

    metadata: Metadata
    qParams: QParams
    nodes: list[Node]
    links: list[Link]


def paired(layer: int, latent: int) -> int:
    """One number for two, by Cantor's pairing, as these files number features."""
    return (layer + latent) * (layer + latent + 1) // 2 + latent


def unpaired(number: int) -> tuple[int, int]:
    """Layer and latent of such a number."""
    diagonal = (isqrt(8 * number + 1) - 1) // 2
    latent = number - diagonal * (diagonal + 1) // 2
    return diagonal - latent, latent
