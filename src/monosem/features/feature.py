"""A feature: everything that a store knows of one latent."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from monosem.features.streaming import hashes

if TYPE_CHECKING:
    from monosem.features.labels import Rows
    from monosem.features.pictures import Pictures


@dataclass(frozen=True)
class Example:
    """A passage around a token of interest."""

    activation: float
    """At the peak; of a near miss, its pre-activation."""
    weight: float
    """How many firings it stands for, if it is a random one."""
    tokens: np.ndarray
    """(window,) token ids."""
    texts: list[str]
    """(window,) the text of each; a character of several tokens stands at the last of them."""
    activations: np.ndarray
    """(window,) the latent's activation at each, to within 1/255 of the largest."""
    peak: int
    """Index in the window of the token it is about."""
    document: int
    position: int
    """Of the peak within its document."""
    text: str
    """Name of the text that was read."""
    context: int
    """Number of the context in it."""
    before: list[str]
    """What is stored of the passage before the window."""
    after: list[str]
    passage: int
    """Its number in the store's table of passages."""
    start: int
    """Of the window in the passage."""


class TokenWeight(NamedTuple):
    """A token and what a latent adds to its logit, relative to the vocabulary's mean."""

    token: int
    text: str
    weight: float


class FiringToken(NamedTuple):
    """A token on which a latent fires."""

    token: int
    text: str
    share: float
    """Of the latent's firings."""
    recall: float
    """Share of the token's occurrences on which it fires."""
    low: float
    high: float
    """95 % interval of the share; both the share itself where all firings were counted."""


class Neighbour(NamedTuple):
    """A latent and the cosine of its decoder row."""

    latent: int
    cosine: float


class Cofiring(NamedTuple):
    """A latent that fires on the same tokens."""

    latent: int
    share: float
    """Of this latent's firings, on which the other fires too."""
    lift: float
    """That share over the other's firing rate."""


class SourcePart(NamedTuple):
    """What a latent has of one of several sources: a model or layer of a crosscoder, a layer that is written to."""

    source: str
    norm: float
    """Length of its decoder row for this source, in the activations' own units."""
    share: float
    """Of its decoder norms over all sources, each of the same energy."""
    cosines: list[float | None]
    """With its decoder rows for the sources, in their order; None where one writes nothing."""
    promoted: list[TokenWeight]
    suppressed: list[TokenWeight]


class LogitStatistics(NamedTuple):
    """Moments of a latent's logit weights over the vocabulary."""

    mean: float
    deviation: float
    skew: float
    kurtosis: float


@dataclass(frozen=True)
class Histogram:
    """Firings by activation, in bins of equal ratio."""

    edges: np.ndarray
    """(bins + 1,)"""
    counts: np.ndarray
    """(bins,)"""


@dataclass(frozen=True)
class Interval:
    """A range of activations and what is typical in it."""

    low: float
    high: float
    count: int
    """Firings in it; bins of the histogram that it cuts are shared out by width."""
    share: float
    """Of all firings."""
    examples: list[Example]


@dataclass(frozen=True)
class Feature:
    """What one latent does on the text that was read."""

    latent: int
    name: str | None
    """A short name: the word that it fires on, part of one, or up to three; of images the commonest class. None if
    nothing describes it."""
    name_piece: tuple[int, int] | None
    """The characters of the name at which it fires, if not on all of it: "Lut·her", "let 's"."""
    clarity: float | None
    """How far the name describes it, 0 to 1: of text the share of its strong firings, by weight, that it holds for; of
    images and rows the share of its strongest examples, times the activation of the weakest over that of the strongest.
    None if it never fired."""
    n_tokens: int
    """Tokens that were read."""
    count: int
    """On how many of them it fired."""
    rate: float
    mean: float | None
    """Of its activation where it fires; None if it never did."""
    deviation: float | None
    max: float | None
    histogram: Histogram
    promoted: list[TokenWeight]
    suppressed: list[TokenWeight]
    logits: LogitStatistics | None
    firing_tokens: list[FiringToken]
    counted_tokens: int
    """In how many tokens those were counted: all that were read, or random ones."""
    neighbours: list[Neighbour]
    cofiring: list[Cofiring]
    decoder_norm: float
    encoder_cosine: float | None
    output_score: float | None
    """Steering worth: by how much the probability of the tokens that it promotes rises when it is raised to its
    maximum. None if it never fired, or where it was not measured."""
    confidence_change: float | None
    """By how much the probability of the likeliest next token changes then."""
    top: list[Example]
    """Strongest places, one per text: of equal documents, or passages that are alike, the strongest."""
    samples: list[Example]
    """A stratified random sample of its firings, with weights."""
    near_misses: list[Example]
    silent: list[Example]
    parts: list[SourcePart] = field(default_factory=list)
    """Of a dictionary of several sources: what it has of each. Layers to which it writes nothing are left out."""
    reads: str | None = None
    """The layer that a latent of a cross-layer transcoder reads."""
    pictures: Pictures | None = field(default=None, repr=False, compare=False)
    """The images that the examples are of, each by its `document`; None for others."""
    rows: Rows | None = field(default=None, repr=False, compare=False)
    """Of ready vectors, the rows that the examples are, each by its `document`; None for others."""

    as_text: ClassVar[Callable[[Feature], str]]
    as_card: ClassVar[Callable[[Feature], str]]
    """How features are shown: show.py and card.py, which know this class, say it here."""

    @property
    def things(self) -> str:
        """What it fires on."""
        return "patches" if self.pictures is not None else "rows" if self.rows is not None else "tokens"

    @property
    def one_per(self) -> str:
        """Of what each of the strongest examples is another one."""
        return "image" if self.pictures is not None else "row" if self.rows is not None else "text"

    @property
    def title(self) -> str:
        """What to write where a name should stand."""
        return self.name or "no clear name"

    def intervals(self, n: int = 5, examples: int = 5) -> list[Interval]:
        """Equal ranges of activation from 0 to the maximum, strongest first, each with a random sample by weight."""
        if not self.max:
            return []
        bounds = np.linspace(self.max, 0, n + 1)
        at = np.array([e.activation for e in self.samples])
        intervals: list[Interval] = []
        for i in range(n):
            high, low = float(bounds[i]), float(bounds[i + 1])
            inside = (at > low) & (at <= high) if i else at > low
            chosen = self._draw(np.flatnonzero(inside), examples)
            count = self._count_between(low, np.inf if i == 0 else high)
            members = sorted((self.samples[j] for j in chosen), key=lambda e: -e.activation)
            intervals.append(Interval(low, high, round(count), count / self.count, members))
        return intervals

    def _draw(self, candidates: np.ndarray, n: int) -> list[int]:
        """Without replacement, with chances by weight; always the same (Efraimidis & Spirakis, 2006)."""
        places = np.array([(self.samples[i].document << 32) + self.samples[i].position for i in candidates], np.int64)
        random = hashes(0, np.full(len(places), self.latent), places).astype(float) / 2.0**64
        weights = np.array([self.samples[i].weight for i in candidates])
        keys = np.log(np.maximum(random, 1e-18)) / np.maximum(weights, 1e-9)
        return candidates[np.argsort(-keys)[:n]].tolist()

    def _count_between(self, low: float, high: float) -> float:
        edges, counts = self.histogram.edges, self.histogram.counts
        widths = np.diff(edges)
        covered = np.clip((np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1])) / widths, 0, 1)
        if len(covered) and low <= 0:
            covered[0] = max(covered[0], 1.0 if high >= edges[1] else covered[0])
        if len(covered):  # the maximum stands somewhere in the last bin
            top = float(self.max or 0)
            last = np.clip((min(high, top) - max(low, edges[-2])) / max(top - edges[-2], 1e-30), 0, 1)
            covered[-1] = last
        return float((covered * counts).sum())

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        plain = dataclasses.asdict(dataclasses.replace(self, pictures=None, rows=None))
        del plain["pictures"], plain["rows"]
        return _plain(plain)

    def __repr__(self) -> str:
        return Feature.as_text(self)

    def _repr_html_(self) -> str:
        return Feature.as_card(self)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {k: _plain(v) for k, v in value._asdict().items()}  # pyright: ignore
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value
