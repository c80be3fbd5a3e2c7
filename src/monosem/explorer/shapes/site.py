"""The dictionaries given, and one of them."""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import TypedDict

from monosem.explorer.shapes.common import ListCount


class Abilities(TypedDict):
    """None: yes. Otherwise why not."""

    prompt: str | None
    map: str | None
    notes: str | None
    context: str | None
    rewards: str | None


class Images(TypedDict):
    """How positions lie on the images of a store: special ones first, then patches row by row."""

    rows: int
    columns: int
    special: list[str]
    classes: list[str] | None


class Sources(TypedDict):
    """The sources that a dictionary predicts and reads, where they are several."""

    predicts: list[str]
    reads: list[str]


class Missing(TypedDict):
    """A path that could not be opened, and what to do."""

    path: str
    words: str


class MeasuredColumn(TypedDict):
    """A metric of the SAE or of a control, with its 95 % interval."""

    name: str
    value: float | None
    """None where it is not defined."""
    low: float | None
    high: float | None


class Summary(TypedDict):
    """A dictionary in a line."""

    name: str
    path: str
    model: str | None
    hook: str | None
    architecture: str
    n_latents: int
    d_in: int
    tokens: int
    alive: int
    dead: int
    can: Abilities
    images: Images | None
    things: str
    sources: Sources | None
    figures: list[MeasuredColumn]


class Site(TypedDict):
    """All dictionaries."""

    monosem_version: str
    static: bool
    dictionaries: list[Summary]
    missing: list[Missing]


class Metric(TypedDict):
    """A metric of the SAE and of its controls, and what it is."""

    key: str
    label: str
    group: str
    """Its family: Reconstruction, Behaviour, Dictionary, Usefulness, Ground truth."""
    formula: str
    unit: str
    direction: Literal["up", "down", "none"]
    """Where better is."""
    note: str
    """Why it has no interval, or what else to know of it; "" where there is nothing."""
    columns: list[MeasuredColumn]


class Evaluation(TypedDict):
    """What evaluation.json says."""

    facts: dict[str, Any]
    metrics: list[Metric]


class ColumnHistogram(TypedDict):
    """Latents by the value of a column."""

    column: str
    log: bool
    edges: list[float]
    counts: list[int]
    total: int
    left_out: int


class Column(TypedDict):
    """A column of the table, and its extent."""

    name: str
    kind: Literal["number", "text"]
    min: float | None
    max: float | None


class Text(TypedDict):
    """A text (or images) that was read, and how many positions of it."""

    text: str
    tokens: int


class Dictionary(Summary):
    """Everything on a dictionary's first page."""

    texts: list[Text]
    context_length: int
    prepend_bos: bool
    special_texts: list[str]
    settings: dict[str, Any]
    evaluation: Evaluation | None
    rate_histogram: ColumnHistogram
    columns: list[Column]
    lists: list[ListCount]
    notable: list[int]


class ModelState(TypedDict):
    """Whether the model is loaded."""

    state: Literal["none", "idle", "loading", "ready", "failed"]
    words: str
    chat: bool | None
    """Whether it has a template for conversations; None while it is not loaded."""
    writes: bool | None
    """Whether it predicts the next token; None while it is not loaded."""
