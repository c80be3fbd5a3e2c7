"""Blind ratings: which of several explanations fits a feature, said by people who do not see whose they are."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from monosem.errors import ConfigError
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.shapes import Agreement, ExplainerRated, Rated, Share
from monosem.features import Explanation
from monosem.features.word_table import wilson
from monosem.files import read_json, write_json

NONE = "none"
"""The choice that no explanation fits."""
AWAY = "move the file away"
MOST = 2**27


class Rating(BaseModel):
    """What one person says of one feature."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rater: str = Field(min_length=1, max_length=100)
    latent: int = Field(ge=0)
    choice: list[str]
    """The explainers that wrote the chosen text; empty: none fits."""
    options: list[str]
    """All explainers whose texts were shown."""
    monosemantic: Literal["yes", "no", "unsure"]
    at: str


class RatingFile(BaseModel):
    """The file of ratings."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["monosem ratings"] = "monosem ratings"
    format_version: Literal[1] = 1
    dictionary: str
    """Hash of the weights."""
    ratings: list[Rating] = []


class Option(NamedTuple):
    """A text to choose, and who wrote it."""

    text: str
    explainers: list[str]


class Ratings:
    """The ratings of one dictionary, in a file of JSON beside its store. May be used by several threads."""

    def __init__(self, dictionary: Dictionary) -> None:
        self.dictionary = dictionary
        folder = dictionary.store.path.resolve()
        self.path: Path = folder.with_name(f"{folder.name}.ratings.json")
        self._lock = threading.Lock()

    def all(self) -> list[Rating]:
        """Every rating.

        Raises:
            FileError: the file is damaged.
            Unavailable: it is of another dictionary.
        """
        return self._file().ratings

    def _file(self) -> RatingFile:
        own = self.dictionary.index.get("dictionary") or ""
        if not self.path.exists():
            return RatingFile(dictionary=own)
        found = read_json(self.path, RatingFile, MOST, AWAY)
        if found.dictionary != own:
            raise Unavailable(f"the ratings in {self.path} are of another dictionary: {AWAY}")
        return found

    def plan(self, n: int) -> list[int]:
        """The features to rate, drawn once for all raters from those that have explanations; those of most first.

        Raises:
            Unavailable: nothing is explained.
        """
        made: Counter[int] = Counter()
        for maker in self.dictionary.explainers():
            made.update({item.latents[0] for item in self.dictionary.explanations(maker) if len(item.latents) == 1})
        if not made:
            raise Unavailable(
                f"no feature of {self.dictionary.name} is explained yet: `monosem explain {self.dictionary.path}`"
            )
        return sorted(made, key=lambda latent: (-made[latent], _draw("plan", latent)))[:n]

    def options(self, rater: str, latent: int) -> list[Option]:
        """The texts of a feature, each once, in an order that differs from rater to rater."""
        of_text: dict[str, list[str]] = {}
        for maker in self.dictionary.explainers():
            for item in self.dictionary.explanations(maker).of(latent)[:1]:
                of_text.setdefault(item.text.strip(), []).append(item.explainer)
        return [Option(*pair) for pair in sorted(of_text.items(), key=lambda pair: _draw(rater, latent, pair[0]))]

    def next(self, rater: str, n: int) -> tuple[int | None, int, int]:
        """The feature that a rater has still to rate, None at the end; how many are rated; of how many."""
        plan = self.plan(n)
        done = {rating.latent for rating in self.all() if rating.rater == rater}
        left = [latent for latent in plan if latent not in done]
        return (left[0] if left else None), len(plan) - len(left), len(plan)

    def add(self, rater: str, latent: int, choice: int | None, monosemantic: Literal["yes", "no", "unsure"]) -> None:
        """Keep a rating, in place of what this rater has said of the feature before.

        Args:
            rater: any name.
            latent: the feature.
            choice: which of its options; None: none fits.
            monosemantic: whether it fires on one thing.

        Raises:
            ConfigError: there is no such option.
            FileError: it cannot be written.
        """
        options = self.options(rater, latent)
        if choice is not None and not 0 <= choice < len(options):
            raise ConfigError(f"feature {latent} has {len(options)} explanations to choose from: there is no {choice}")
        rating = Rating(
            rater=rater,
            latent=latent,
            choice=[] if choice is None else options[choice].explainers,
            options=[maker for option in options for maker in option.explainers],
            monosemantic=monosemantic,
            at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        with self._lock:
            file = self._file()
            file.ratings = [one for one in file.ratings if (one.rater, one.latent) != (rater, latent)] + [rating]
            write_json(self.path, file.model_dump(), indent=1)

    def results(self) -> Rated:
        """Who was chosen how often, how raters agree, and what automatic scores say of the same features."""
        ratings = self.all()
        shown, won = Counter[str](), Counter[str]()
        for rating in ratings:
            shown.update(rating.options)
            won.update(rating.choice)
        scored = self._scores({rating.latent for rating in ratings})
        explainers = [
            ExplainerRated(
                explainer=maker,
                chosen=share_of(won[maker], shown[maker]),
                score=float(np.mean(scored[maker])) if scored[maker] else None,
                scored=len(scored[maker]),
            )
            for maker in sorted(shown, key=lambda maker: -won[maker] / shown[maker])
        ]
        choices = _by_feature(ratings, lambda rating: tuple(rating.choice) or (NONE,))
        kinds = _by_feature(ratings, lambda rating: (rating.monosemantic,))
        return Rated(
            file=str(self.path),
            raters=sorted({rating.rater for rating in ratings}),
            ratings=len(ratings),
            explainers=explainers,
            none=share_of(sum(not rating.choice for rating in ratings), len(ratings)),
            monosemantic=share_of(sum(rating.monosemantic == "yes" for rating in ratings), len(ratings)),
            agreement=[_agreement("choice", choices), _agreement("monosemantic", kinds)],
        )

    def _scores(self, latents: set[int]) -> dict[str, list[float]]:
        found: dict[str, list[float]] = defaultdict(list)
        for maker in self.dictionary.explainers():
            explanations = self.dictionary.explanations(maker)
            items: list[Explanation | None] = [explanations.get(latent) for latent in latents]
            found[maker] += [item.value for item in items if item is not None and item.value is not None]
        return found


def share_of(hits: int, n: int) -> Share:
    """Some of several, with the 95 % interval."""
    low, high = wilson(hits, n)
    return Share(hits=hits, n=n, share=hits / n if n else 0.0, low=low, high=high)


Answers = dict[int, list[tuple[str, ...]]]


def _by_feature(ratings: Sequence[Rating], answer: Callable[[Rating], tuple[str, ...]]) -> Answers:
    found: Answers = defaultdict(list)
    for rating in ratings:
        found[rating.latent].append(answer(rating))
    return found


def _agreement(of: str, answers: Answers) -> Agreement:
    """Of pairs of raters of one feature, how many say the same; and how many would by chance."""
    pairs = [pair for given in answers.values() for pair in combinations(given, 2)]
    pooled = Counter(answer for given in answers.values() if len(given) > 1 for answer in given)
    total = sum(pooled.values())
    chance = sum((n / total) ** 2 for n in pooled.values()) if total else 0.0
    return Agreement(of=of, same=share_of(sum(a == b for a, b in pairs), len(pairs)), chance=chance)


def _draw(*of: object) -> str:
    """A place in a random order that is the same each time."""
    return hashlib.sha256(repr(of).encode(errors="replace")).hexdigest()
