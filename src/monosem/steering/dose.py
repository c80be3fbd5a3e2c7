"""ms.dose_response: how strong a vector may be, by its effect and by the fluency that it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from monosem.arguments import NotNegative, checked
from monosem.errors import ConfigError, DataError
from monosem.files import replacing
from monosem.interventions import AddVector, Generation, generate
from monosem.interventions.fluency import GRAM, Fluency, as_batch, fluency
from monosem.models import SubjectModel
from monosem.steering.reading import batches, spoken
from monosem.steering.vectors import SteeringVector
from monosem.text import special_tokens, well_formed
from monosem.work import as_job, doing

SHARES = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.1)
"""Lengths that are tried, in the typical length of activations there."""
ROWS = 32
"""Texts that are written at once."""
TOLERANCE = 0.5, 0.1
"""Nats a token by which fluent text may be more surprising than unsteered text, and by how much larger its share of
repetition may be."""

Effect = Callable[[Sequence[str]], Sequence[float]]


class Dose(NamedTuple):
    """What one strength does: of each prompt, and their means."""

    strength: float
    length: float
    """Of what is added, in the typical length of activations there."""
    effects: list[float]
    """Of each prompt."""
    surprises: list[float]
    """Nats a token of each steered text to the unsteered model; NaN of a text that ended at once."""
    repetitions: list[float]
    """Share of each text's runs of four tokens that have stood in it before."""
    texts: list[str]

    @property
    def effect(self) -> float:
        return float(np.mean(self.effects))

    @property
    def surprise(self) -> float:
        """The logarithm of the perplexity of what was written; 0 of nothing."""
        known = [surprise for surprise in self.surprises if not math.isnan(surprise)]
        return float(np.mean(known)) if known else 0.0

    @property
    def repetition(self) -> float:
        return float(np.mean(self.repetitions))

    @property
    def text(self) -> str:
        """The first prompt's."""
        return self.texts[0]

    def of(self, prompts: Sequence[int]) -> Dose:
        """The dose of some of the prompts alone, any of them several times."""
        numbers = (self.effects, self.surprises, self.repetitions)
        effects, surprises, repetitions = ([of[i] for i in prompts] for of in numbers)
        return Dose(self.strength, self.length, effects, surprises, repetitions, [self.texts[i] for i in prompts])

    @property
    def perplexity(self) -> float:
        return Fluency(self.surprise, self.repetition).perplexity


@dataclass(frozen=True)
class DoseResponse:
    """Effect and fluency by strength; the knee is the strongest dose before fluency breaks."""

    vector: SteeringVector
    doses: list[Dose]
    """From the weakest; the first is no steering."""
    effect_name: str
    tolerance: float
    more_repetition: float

    @property
    def knee(self) -> Dose:
        """The last dose, from 0 upwards, whose text is as fluent as that without steering, within the tolerances."""
        last = self.doses[0]
        for dose in self.doses[1:]:
            if not self.fluent(dose):
                break
            last = dose
        return last

    def fluent(self, dose: Dose) -> bool:
        """Whether a dose is within the tolerances."""
        plain = self.doses[0]
        return (
            dose.surprise <= plain.surprise + self.tolerance
            and dose.repetition <= plain.repetition + self.more_repetition
        )

    def at_surprise(self, surprise: float) -> float:
        """The effect where the text first gets so surprising, between doses by straight lines.

        For comparing vectors at equal fluency. Of text that never gets so surprising, that of the strongest dose; of
        text that is so without steering, that without.
        """
        before = self.doses[0]
        if before.surprise >= surprise:
            return before.effect
        for dose in self.doses[1:]:
            if dose.surprise >= surprise:
                share = (surprise - before.surprise) / (dose.surprise - before.surprise)
                return before.effect + share * (dose.effect - before.effect)
            before = dose
        return before.effect

    def of(self, prompts: Sequence[int]) -> DoseResponse:
        """The response of some of the prompts alone, any of them several times: for intervals by drawing them anew."""
        return replace(self, doses=[dose.of(prompts) for dose in self.doses])

    def figure(self, path: str | Path) -> Path:
        """Draw effect, perplexity and repetition by strength, the knee marked; the ending of `path` says the format."""
        from matplotlib.figure import Figure

        strengths = [dose.strength for dose in self.doses]
        panels = (
            ([dose.effect for dose in self.doses], self.effect_name),
            ([dose.perplexity for dose in self.doses], "perplexity, unsteered model"),
            ([dose.repetition for dose in self.doses], f"repeated runs of {GRAM} tokens"),
        )
        figure = Figure(figsize=(10.5, 3.2), layout="constrained")
        axes = figure.subplots(1, 3)
        for axis, (values, name) in zip(axes, panels, strict=True):
            axis.plot(strengths, values, color="#1f6f8b", marker="o", markersize=4)
            axis.axvline(self.knee.strength, color="#b5532a", linewidth=1, linestyle="--")
            axis.set_xlabel("strength")
            axis.set_title(name, fontsize=10, loc="left")
            axis.spines[["top", "right"]].set_visible(False)
        axes[1].set_yscale("log")
        axes[0].annotate(
            "knee", (self.knee.strength, 1), xycoords=("data", "axes fraction"), fontsize=8, color="#b5532a"
        )
        where = Path(path)
        with replacing(where) as temporary:
            figure.savefig(temporary, format=where.suffix.lstrip(".") or "png", dpi=150)
        return where

    def __str__(self) -> str:
        lines = [f"{'strength':>9}{'length':>8}{'effect':>10}{'perplexity':>12}{'repeated':>10}  first text"]
        for dose in self.doses:
            mark = " <- knee" if dose is self.knee else ""
            lines.append(
                f"{dose.strength:>9.4g}{dose.length:>8.2f}{dose.effect:>10.4f}{dose.perplexity:>12.1f}"
                f"{dose.repetition:>10.0%}  {' '.join(dose.text.split())[:56]}{mark}"
            )
        return "\n".join(lines)


@checked
@as_job
def dose_response(
    model: SubjectModel,
    vector: SteeringVector,
    prompts: Sequence[str],
    effect: Sequence[str] | Effect,
    *,
    strengths: Sequence[float] | None = None,
    max_new_tokens: int = 30,
    temperature: float = 0.9,
    seed: NotNegative = 0,
    tolerance: float = TOLERANCE[0],
    more_repetition: float = TOLERANCE[1],
    progress: bool = True,
) -> DoseResponse:
    """Steer with growing strength, and measure effect and fluency.

    The texts are written with the vector added at every position, prompt included, from the same seeds at every
    strength. Their surprise is measured with the plain model, as is right: the steered one finds its own text likely.

    Args:
        model: a causal language model with a tokenizer.
        vector: of `ms.steering_vector`.
        prompts: to continue.
        effect: words, whose probability at each next token of its own text the steered model gives, in all (first
            tokens are looked at); or a function that scores texts without their prompts.
        strengths: multiples of the vector, 0 put before them; if not given, such that 0.1 to 1.1 times the typical
            length of an activation is added.
        max_new_tokens: of each text.
        temperature: of the texts.
        seed: of the first prompt's text; the next has the next.
        tolerance: nats a token by which fluent text may be more surprising than unsteered text.
        more_repetition: by how much larger its share of repetition may be.
        progress: show it.

    Raises:
        ConfigError: a setting is wrong.
        DataError: there are no prompts or no words.
    """
    asked = _Asked(model, vector, prompts, effect, strengths, max_new_tokens, temperature, seed)
    made: list[Dose] = []
    with doing("steering", len(asked.strengths) * len(prompts), unit="texts") as stage:
        for dose in asked.doses(ROWS):
            made.append(dose)
            stage.advance(len(prompts))
    return DoseResponse(vector, made, asked.name, tolerance, more_repetition)


def each_dose(
    model: SubjectModel,
    vector: SteeringVector,
    prompts: Sequence[str],
    effect: Sequence[str] | Effect,
    *,
    strengths: Sequence[float] | None = None,
    max_new_tokens: int = 30,
    temperature: float = 0.9,
    seed: NotNegative = 0,
) -> tuple[list[float], Iterator[Dose]]:
    """The strengths of `dose_response`, and its doses one by one, each measured when it is asked for.

    Arguments and errors are those of `dose_response`; what is wrong is said at once.
    """
    asked = _Asked(model, vector, prompts, effect, strengths, max_new_tokens, temperature, seed)
    return asked.strengths, asked.doses(len(prompts))


class _Asked:
    """What is to be measured, once it was checked."""

    def __init__(
        self,
        model: SubjectModel,
        vector: SteeringVector,
        prompts: Sequence[str],
        effect: Sequence[str] | Effect,
        strengths: Sequence[float] | None,
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> None:
        if not prompts or isinstance(prompts, str):
            raise DataError("give a list of prompts to continue")
        if max_new_tokens <= GRAM:
            raise ConfigError(f"max_new_tokens must be more than {GRAM}: repetition is counted in runs of {GRAM}")
        self.model, self.vector, self.prompts, self.seed = model, vector, list(prompts), seed
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.effect = effect if callable(effect) else None
        self.words = None if callable(effect) else first_tokens(model, effect)
        self.name = "effect" if callable(effect) else "probability of the words"
        self.typical = typical_length(model, vector.hook, prompts)
        given = [share * self.typical / vector.norm for share in SHARES] if strengths is None else [0.0, *strengths]
        self.strengths = sorted(set(given))
        if self.strengths[0] < 0 or not all(map(math.isfinite, self.strengths)):
            raise ConfigError("strengths must be finite and at least 0: turn the vector round to steer the other way")

    def doses(self, at_once: int) -> Iterator[Dose]:
        """From the weakest, so many texts being written at once."""
        rows = [(strength, i) for strength in self.strengths for i in range(len(self.prompts))]
        found: list[tuple[float, float, float, str]] = []
        strengths = iter(self.strengths)
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            edit = self.vector.edit(torch.tensor([[strength] for strength, _ in part]))
            written = generate(
                self.model,
                [self.prompts[i] for _, i in part],
                edits=[edit],
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=[self.seed + i for _, i in part],
            )
            found += _measured(self.model, written, edit, self.words, self.effect)
            while len(found) >= len(self.prompts):
                yield self._dose(next(strengths), found[: len(self.prompts)])
                del found[: len(self.prompts)]

    def _dose(self, strength: float, texts: list[tuple[float, float, float, str]]) -> Dose:
        effects, surprises, repetitions, written = zip(*texts, strict=True)
        length = strength * self.vector.norm / self.typical
        return Dose(strength, length, list(effects), list(surprises), list(repetitions), list(written))


@torch.no_grad()
def typical_length(model: SubjectModel, hook: str, texts: Sequence[str]) -> float:
    """The median length of activations at a hook point, special tokens and sinks of attention left out."""
    special = torch.tensor(sorted(special_tokens(model.tokenizer)), dtype=torch.int64)
    norms: list[Tensor] = []
    for batch in batches(model, texts):
        x = model.capture(batch, [hook])[hook].float()
        norms.append(x[spoken(x, batch, special)].norm(dim=-1))
    return float(torch.cat(norms).median())


def first_tokens(model: SubjectModel, words: Sequence[str]) -> list[int]:
    """The tokens with which words begin, in a sentence and at its start.

    Raises:
        DataError: there are none.
    """
    if isinstance(words, str) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise DataError("give a list of words, or a function of texts, as effect")
    spelled = [prefix + word.strip() for word in words for prefix in (" ", "")]
    return sorted({model.tokenizer(well_formed(text), add_special_tokens=False)["input_ids"][0] for text in spelled})


@torch.no_grad()
def _measured(
    model: SubjectModel, written: list[Generation], edit: AddVector, words: list[int] | None, effect: Effect | None
) -> list[tuple[float, float, float, str]]:
    """Of each text: effect, surprise, repetition, itself."""
    fluent = fluency(model, written)
    if effect is not None:
        effects = [float(value) for value in effect([one.text for one in written])]
    else:
        batch, is_new = as_batch(model, written)
        with model.edit([edit]):
            p = model(batch)[:, :-1].float().softmax(-1)[..., words].sum(-1)
        effects = ((p * is_new).sum(1) / is_new.sum(1).clamp_min(1)).tolist()
    if len(effects) != len(written):
        raise ConfigError(f"the effect gave {len(effects)} numbers for {len(written)} texts")
    return [
        (value, one.surprise, one.repetition, text.text)
        for value, one, text in zip(effects, fluent, written, strict=True)
    ]
