"""A feature's page."""

from __future__ import annotations

from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Histogram, Named, Said
from monosem.explorer.shapes.meta import MadeOf
from monosem.explorer.shapes.notes import Note


class Score(TypedDict):
    """How an explanation did in a test, with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float
    n: int
    judge: str | None
    details: dict[str, float]


class Explanation(Said):
    """The same, and all that is known of it."""

    sure: float | None
    scores: list[Score]
    failure: str | None


class Other(Named):
    """A neighbour (cosine) or a latent that fires on the same tokens (share, lift)."""

    cosine: float | None
    share: float | None
    lift: float | None


class Match(Named):
    """The best match in another dictionary."""

    dictionary: str
    cosine: float
    caution: str | None


class Example(TypedDict):
    """A passage around a token."""

    activation: float
    weight: float
    texts: list[str]
    activations: list[float]
    peak: int
    document: int
    position: int
    text: str
    context: int
    before: list[str]
    after: list[str]
    passage: int
    start: int
    label: str | None


class TokenWeight(TypedDict):
    """A token and its logit weight."""

    token: int
    text: str
    weight: float


class FiringToken(TypedDict):
    """A token that a latent fires on."""

    token: int
    text: str
    share: float
    recall: float
    low: float
    high: float


class SourcePart(TypedDict):
    """What a latent has of one of several sources."""

    source: str
    norm: float
    share: float
    cosines: list[float | None]
    promoted: list[TokenWeight]
    suppressed: list[TokenWeight]


class Interval(TypedDict):
    """A range of activations; examples are indices into `samples`."""

    low: float
    high: float
    count: int
    share: float
    examples: list[int]


class Moments(TypedDict):
    """Of the logit weights over the vocabulary."""

    mean: float
    deviation: float
    skew: float
    kurtosis: float


class MadeImage(TypedDict):
    """What a latent does on the image made for it, at each position, and at most on other images: the controls."""

    activation: float
    activations: list[float]
    peak: int
    start: float
    random: float
    natural: float | None
    n_natural: int
    n_random: int


class Feature(TypedDict):
    """Everything on a feature's page."""

    dictionary: str
    latent: int
    n_latents: int
    n_tokens: int
    name: str | None
    name_piece: list[int] | None
    clarity: float | None
    note: Note
    explanations: list[Explanation]
    count: int
    rate: float
    mean: float | None
    deviation: float | None
    max: float | None
    decoder_norm: float
    encoder_cosine: float | None
    output_score: float | None
    confidence_change: float | None
    histogram: Histogram
    promoted: list[TokenWeight]
    suppressed: list[TokenWeight]
    logits: Moments | None
    firing_tokens: list[FiringToken]
    counted: bool
    counted_tokens: int
    neighbours: list[Other]
    cofiring: list[Other]
    top: list[Example]
    samples: list[Example]
    intervals: list[Interval]
    near_misses: list[Example]
    silent: list[Example]
    matches: list[Match] | None
    parts: list[SourcePart]
    reads: str | None
    made_of: MadeOf | None
    made_image: MadeImage | None


class Preview(Named):
    """What hovering over a feature shows."""

    max: float | None
    passages: list[Example]


class Code(TypedDict):
    """A piece of Python."""

    code: str


class Context(TypedDict):
    """A whole context as the model saw it."""

    texts: list[str]
    activations: list[float]
    document: list[int | None]
    position: list[int | None]


class Map(TypedDict):
    """Features as points."""

    method: str
    kept: float
    points: int
    total: int
    latents: list[int]
    x: list[float]
    y: list[float]
    rates: list[float]
    names: list[str]
