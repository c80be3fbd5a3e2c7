"""Sets of tokens that features promote or suppress."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from monosem.explorer.shapes.common import Named

FeatureClass = Literal["prediction", "suppression", "partition", "none"]


class SetScore(TypedDict):
    """What a feature does to a set."""

    set: str
    score: float
    """-1 to 1."""
    q: float
    """Against random sets of tokens, corrected."""
    z: float
    """In standard deviations of random directions."""
    q_directions: float


class FeatureSets(TypedDict):
    """The sets that a feature promotes or suppresses, the furthest from 0 first."""

    feature_class: FeatureClass
    sets: list[SetScore]


class OwnSets(TypedDict):
    """Of one feature."""

    found: FeatureSets | None
    """Null until all have been tested."""


class TestedSet(TypedDict):
    """A set, and how many features do something to it."""

    name: str
    tokens: int
    examples: list[str]
    promoted: int
    suppressed: int


class ClassShare(TypedDict):
    """A class of features."""

    name: FeatureClass
    count: int
    share: float
    chance: float
    """The share of random directions in it."""


class TestedSets(TypedDict):
    """All sets and classes."""

    n_tokens: int
    called: int
    """Features that promote or suppress a set."""
    sets: list[TestedSet]
    left_out: int
    """Sets with too few tokens in this vocabulary."""
    classes: list[ClassShare]


class TokenSetsView(TypedDict):
    """Sets of tokens against the features of a dictionary."""

    model: str
    why_not: str | None
    tested: TestedSets | None
    """Null until somebody asks for it."""
    testing: str | None
    """How far a test is that is under way, and how long it will take, in words."""


class SetFeature(Named):
    """A feature of a set or class; of a class, with the set that it does most to, if it does to any."""

    score: SetScore | None


class SetFeatures(TypedDict):
    """Features of a set, the furthest from 0 first, or of a class, by rate."""

    total: int
    features: list[SetFeature]
