"""Guess the image: on which of four does a feature fire, of which six others are shown? Passages likewise."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy.stats import binom

from monosem.errors import DataError
from monosem.explorer.card import features_json
from monosem.explorer.dictionary import Dictionary, Unavailable
from monosem.explorer.ratings import share_of
from monosem.explorer.shapes import Example, GuessRound, GuessScore
from monosem.explorer.shapes.guess import ROUNDS

SHOWN, SILENT = 6, 3
STRONG = 0.5
"""Share of the feature's maximum above which it clearly fires."""
READ_AT_ONCE = 24
SIDE = 8
"""Pixels of the image by which the machine guesses."""


class Round(NamedTuple):
    """A feature, where it is shown to fire, and options of which one alone fires."""

    latent: int
    max: float
    shown: list[Example]
    options: list[Example]
    right: int


class Game:
    """The rounds of a seed, always the same: features at random, of those that have enough to show."""

    def __init__(self, dictionary: Dictionary, seed: int) -> None:
        """Draw them.

        Raises:
            Unavailable: no feature has enough to show.
        """
        self.dictionary, self.seed = dictionary, seed
        alive = np.flatnonzero(dictionary.rates > 0)
        order = np.random.default_rng(seed).permutation(alive)
        self.rounds: list[Round] = []
        for start in range(0, len(order), READ_AT_ONCE):
            latents = order[start : start + READ_AT_ONCE].tolist()
            drawn = (self._drawn(feature) for feature in features_json(dictionary, latents))
            self.rounds += [one for one in drawn if one is not None]
            if len(self.rounds) >= ROUNDS:
                break
        self.rounds = self.rounds[:ROUNDS]
        if not self.rounds:
            rows = dictionary.store.rows is not None
            why = "of ready vectors none is kept at which they are off" if rows else "harvest more"
            wanted = f"{SHOWN + 1} places at which it fires and {SILENT} at which it is off"
            raise Unavailable(f"no feature of {dictionary.name} has {wanted}: {why}")

    def _drawn(self, feature: Any) -> Round | None:
        random = np.random.default_rng((self.seed, feature["latent"]))
        shown: list[Example] = feature["top"][:SHOWN]
        seen = {example["passage"] for example in shown}
        strong = STRONG * (feature["max"] or 0.0)
        more = [*feature["top"][SHOWN:], *feature["samples"]]
        firing = [one for one in more if one["activation"] >= strong and one["passage"] not in seen]
        silent = _of_different_passages(feature["silent"], seen)
        if len(shown) < SHOWN or not firing or len(silent) < SILENT:
            return None
        on = firing[random.integers(len(firing))]
        silent = [one for one in silent if one["passage"] != on["passage"]]
        if len(silent) < SILENT:
            return None
        options = [on, *(silent[i] for i in random.permutation(len(silent))[:SILENT])]
        order = random.permutation(len(options)).tolist()
        return Round(feature["latent"], feature["max"], shown, [options[i] for i in order], order.index(0))

    def ask(self, number: int) -> GuessRound:
        """A round, with nothing that tells the answer.

        Raises:
            DataError: there are not so many.
        """
        if not 0 <= number < len(self.rounds):
            raise DataError(f"this game has rounds 0 to {len(self.rounds) - 1}, not {number}")
        one = self.rounds[number]
        return GuessRound(
            seed=self.seed,
            round=number,
            rounds=len(self.rounds),
            chance=1 / len(one.options),
            max=one.max,
            shown=one.shown,
            options=[_hidden(option) for option in one.options],
        )

    def score(self, choices: Sequence[int]) -> GuessScore:
        """The last of the rounds that were played, solved, and the score of all of them.

        Raises:
            DataError: there are not so many rounds, or options.
        """
        if not choices or len(choices) > len(self.rounds):
            raise DataError(f"this game has {len(self.rounds)} rounds, not {len(choices)}")
        if any(not 0 <= choice <= SILENT for choice in choices):
            raise DataError(f"an option is 0 to {SILENT}, got {', '.join(map(str, choices))}")
        played, last = self.rounds[: len(choices)], self.rounds[len(choices) - 1]
        guess = self._by_pixels if self.dictionary.store.pictures is not None else _by_words
        guessed = [guess(one) for one in played]
        hits = sum(choice == one.right for choice, one in zip(choices, played, strict=True))
        by_machine = sum(choice == one.right for choice, one in zip(guessed, played, strict=True))
        chance = 1 / len(last.options)
        return GuessScore(
            right=last.right,
            machine=guessed[-1],
            feature=self.dictionary.named(last.latent),
            options=last.options,
            you=share_of(hits, len(choices)),
            by_machine=share_of(by_machine, len(choices)),
            machine_is="by colours alone" if self.dictionary.store.pictures is not None else "by words in common",
            chance=chance,
            p=float(binom.sf(hits - 1, len(choices), chance)),
        )

    def _by_pixels(self, one: Round) -> int:
        """The option whose few pixels are nearest to those of the images shown, on average."""
        pictures = self.dictionary.store.pictures
        assert pictures is not None

        def pixels(example: Example) -> np.ndarray:
            with Image.open(io.BytesIO(pictures.png(example["document"]))) as image:
                return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), float)

        shown = [pixels(example) for example in one.shown]
        return _least(one, lambda option: float(np.mean([np.square(pixels(option) - of).mean() for of in shown])))


def _by_words(one: Round) -> int:
    """The option that shares most words with the passages shown, of those at whose end the feature is strongest."""
    shown = [_words(example) for example in one.shown]
    return _least(one, lambda option: -float(np.mean([len(_words(option) & of) / max(1, len(of)) for of in shown])))


def _least(one: Round, distance: Callable[[Example], float]) -> int:
    return int(np.argmin([distance(option) for option in one.options]))


def _words(example: Example) -> set[str]:
    return set(re.findall(r"\w+", "".join(example["texts"]).lower()))


def _of_different_passages(examples: Sequence[Example], seen: set[int]) -> list[Example]:
    found: dict[int, Example] = {}
    for example in examples:
        if example["passage"] not in seen:
            found.setdefault(example["passage"], example)
    return list(found.values())


def _hidden(example: Example) -> Example:
    """Without what tells whether the feature fires."""
    return Example(**{**example, "activation": 0.0, "activations": [], "weight": 0.0, "label": None})
