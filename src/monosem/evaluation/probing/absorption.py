"""ms.absorption: are first letters told by one latent each, or do others take words away from it?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich import box
from rich.table import Table

from monosem.arguments import NotNegative, checked
from monosem.errors import ConfigError, DataError
from monosem.evaluation.probing.columns import Columns, chosen, fit_columns
from monosem.evaluation.probing.logistic import Logistic, fit_dense
from monosem.evaluation.probing.pooled import place_of, pooled
from monosem.evaluation.probing.scores import interval_of, weights_of
from monosem.files import write_json
from monosem.intervals import Interval
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.text import printed
from monosem.work import as_job, each

MOST_SPLIT, JUMP = 10, 0.03
"""Latents that a letter may be split into, and what each must add to F1."""
LEAST_F1, LEAST_LETTERS, LEAST_WORDS = 0.6, 5, 8
"""Of a letter's probe; letters that have it; test words of a letter."""
COSINE, ABSORBER_COSINE, SHARE, ABSORBERS = 0.025, 0.1, 0.4, 3
RELIABILITY = (
    "Known of its reliability: it needs a model that can spell (SAEBench: one of 1 to 2 billion parameters) and a "
    "dictionary that has learned; a random one scores well. Its noise is larger than assumed (Chanin, 2026)."
)


class Letter(NamedTuple):
    """What became of one label."""

    label: str
    words: int
    """Test words that its probe tells rightly."""
    f1: float
    """Of the probe on all of x, on test words."""
    split: list[int]
    """The latents that stand for it, chosen on training words."""
    full: Float[np.ndarray, " words"]
    """1 where all of these are off and one other latent carries the label."""
    fraction: Float[np.ndarray, " words"]
    """Which share of the label is carried by others."""
    rows: np.ndarray
    """Which test words these are."""


@dataclass(frozen=True)
class Absorption:
    """Absorption and splitting over first letters; lower is better."""

    facts: dict[str, str | int | float]
    letters: list[Letter] = field(repr=False)
    metrics: dict[str, Interval]
    """absorption_full, absorption_fraction, split_latents; means over letters, intervals over words."""

    def table(self) -> Table:
        """A row for each letter."""
        table = Table(title="First letters: absorption and splitting", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.title_justify = table.caption_justify = "left"
        for name in ("letter", "words", "probe F1", "latents", "full", "fraction"):
            table.add_column(name, justify="left" if name == "latents" else "right")
        for one in self.letters:
            shares = [f"{values.mean():.2f}" for values in (one.full, one.fraction)]
            table.add_row(one.label, str(one.words), f"{one.f1:.2f}", " ".join(map(str, one.split)), *shares)
        return table

    def said(self) -> list[str]:
        """The metrics in words, and what is known of their reliability."""
        f = self.facts
        found = ", ".join(
            f"{name} {one.value:.3f}" + ("" if one.low is None else f" ({one.low:.3f} to {one.high:.3f})")
            for name, one in self.metrics.items()
        )
        where = f"{f['hook']} of {f['model']}, {f['train']:,} words to learn from, {f['test']:,} to be tried on."
        return [where, f"{found}.", RELIABILITY]

    def __str__(self) -> str:
        return printed(self.table(), *self.said(), width=100)

    def save(self, path: str | Path) -> None:
        """Write JSON."""
        letters = [
            one._replace(full=one.full.tolist(), fraction=one.fraction.tolist(), rows=one.rows.tolist())._asdict()  # type: ignore[arg-type]
            for one in self.letters
        ]
        metrics = {name: one._asdict() for name, one in self.metrics.items()}
        write_json(path, {"facts": self.facts, "metrics": metrics, "letters": letters})


@checked
@as_job
@torch.no_grad()
def absorption(
    sae: SAE,
    *,
    model: SubjectModel | None = None,
    hook: str | None = None,
    words: Sequence[str] | None = None,
    n_words: int = 2_000,
    shots: int = 3,
    seed: NotNegative = 0,
    progress: bool = True,
) -> Absorption:
    """Absorption and feature splitting of first letters, as SAEBench means them, by other code.

    The model reads a few words with their first letters, then one more word; what it has at that word's token says the
    letter to a probe on all of x. On training words each letter gets the latents that tell it (another one as long as
    F1 on held-out training words grows by 0.03: splitting). On test words that the probe tells rightly: *full
    absorption* is where all of these are off and another latent, along the probe's direction, makes up 0.4 of it; the
    *fraction* is what up to three such latents carry of the direction beside the letter's own.

    Otherwise than SAEBench: splitting is decided on training words, not on test words; decoder rows may have any
    length; projections are of x less its mean over training words; latents are chosen greedily, not by an L1 probe.

    Args:
        sae: the SAE.
        model: its model; the SAE's own if not given.
        hook: what it reads; the SAE's own if not given.
        words: which words; those of the vocabulary that are one token with a space before it if not given.
        n_words: so many of them, drawn by the seed.
        shots: words with their letters that stand before each.
        seed: of the draw.
        progress: show where it is.

    Raises:
        ConfigError: model or hook are not known.
        DataError: there are too few words, or too few letters that the model's activations tell.

    Source: Chanin et al., A is for Absorption, 2024; Karvonen et al., SAEBench, 2025.
    """
    place = place_of({"the SAE": sae}, model, hook)
    every = sorted(set(words)) if words is not None else vocabulary_words(place.model)
    rng = np.random.default_rng(seed)
    drawn = [every[i] for i in rng.permutation(len(every))[: n_words + shots]]
    if len(drawn) < 100 + shots:
        raise DataError(f"there are {len(drawn)} words to be spelled, fewer than {100 + shots}: give words=[...]")
    before = "".join(f" {word} has the first letter: {word[0].upper()}\n" for word in drawn[:shots])
    drawn = drawn[shots:]
    texts = [f"{before} {word}" for word in drawn]
    read = pooled(place, texts, {"SAE": sae.encode}, {"SAE": sae.n_latents}, {"x": place.hook}, "last")
    labels = np.array([word[0].lower() for word in drawn])
    letters = letters_of(
        read.columns["SAE"], read.columns["x"], labels, sae.decoder_directions().double().cpu().numpy()
    )
    n_train = len(drawn) - len(drawn) // 5
    if len(letters) < LEAST_LETTERS:
        raise DataError(
            f"only {len(letters)} letters are told by {place.hook} of {place.model.name} (F1 above {LEAST_F1} and "
            f"{LEAST_WORDS} test words), fewer than {LEAST_LETTERS}: it cannot spell well enough; try more words "
            "(n_words=...), another hook or a larger model"
        )
    facts: dict[str, str | int | float] = {
        "model": place.model.name,
        "hook": place.hook,
        "train": n_train,
        "test": len(drawn) - n_train,
        "letters": len(letters),
        "seed": seed,
    }
    return Absorption(facts, letters, metrics_of_letters(letters, len(drawn) - n_train))


def vocabulary_words(model: SubjectModel) -> list[str]:
    """The words of a vocabulary: tokens of letters with a space before them.

    Raises:
        ConfigError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise ConfigError(f"{model.name} has no tokenizer: there are no words to spell")
    tokens = sorted(model.tokenizer.get_vocab().values())
    spelled = (model.tokenizer.decode([token]) for token in tokens)
    return sorted({text[1:] for text in spelled if re.fullmatch(r" [A-Za-z]{2,}", text)})


def letters_of(
    codes: Columns, x: Columns, labels: np.ndarray, directions: Float[np.ndarray, "n_latents d"]
) -> list[Letter]:
    """Every label that its probe tells, with what becomes of it; the last fifth of the rows is for the test.

    Args:
        codes: (words, n_latents).
        x: (words, d), what the codes are of.
        labels: (words,).
        directions: what each latent writes, in the units of x.
    """
    n = len(labels)
    train, test = np.arange(n - n // 5), np.arange(n - n // 5, n)
    own, rest = train[len(train) // 5 :], train[: len(train) // 5]
    found: list[Letter] = []
    for label in each("letters", np.unique(labels).tolist(), unit="letters"):
        positive = labels == label
        if positive[test].sum() < LEAST_WORDS or positive[own].sum() < LEAST_WORDS:
            continue
        dense = x.rows(train).read(np.arange(x.shape[1]))
        probe = fit_dense(dense, positive[train])
        tried = x.rows(test).read(np.arange(x.shape[1]))
        f1 = f1_of(probe(tried) > 0, positive[test])
        if f1 < LEAST_F1:
            continue
        split = _split(codes, positive, own, rest)
        right = np.flatnonzero((probe(tried) > 0) & positive[test])
        along = _Along(probe, directions, split)
        pairs = [along.absorbed(tried[i], codes.rows(test[i : i + 1]).read(along.every)[0]) for i in right]
        full, fraction = np.array(pairs, float).reshape(-1, 2).T
        found.append(Letter(label, len(right), f1, split.tolist(), full, fraction, right))
    return found


def _split(codes: Columns, positive: Bool[np.ndarray, " words"], own: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The latents that stand for a label: another one as long as F1 grows."""
    train, held = codes.rows(own), codes.rows(rest)
    order = chosen(train, positive[own], MOST_SPLIT, "greedy", speaks_for=True)
    best = 0.0
    for k in range(1, len(order) + 1):
        f1 = f1_of(fit_columns(train, positive[own], order[:k])(held.read(order[:k])) > 0, positive[rest])
        if k > 1 and f1 <= best + JUMP:
            return order[: k - 1]
        best = f1
    return order


class _Along:
    """Codes along the direction of a probe."""

    def __init__(self, probe: Logistic, directions: np.ndarray, split: np.ndarray) -> None:
        direction = probe.weights / probe.scale
        self.direction, self.mean = direction / np.linalg.norm(direction), probe.mean
        self.along = directions @ self.direction
        with np.errstate(invalid="ignore", divide="ignore"):
            self.cosines = np.nan_to_num(self.along / np.linalg.norm(directions, axis=1))
        self.every = np.arange(len(directions))
        self.split = np.isin(self.every, split)

    def absorbed(self, x: Float[np.ndarray, " d"], codes: Float[np.ndarray, " n_latents"]) -> tuple[float, float]:
        """Whether a word is fully absorbed, and which share of it is."""
        parts, whole = codes * self.along, float((x - self.mean) @ self.direction)
        off = bool((np.abs(codes[self.split]) < 1e-8).all())
        others = np.where(self.split, -np.inf, parts)
        top = int(others.argmax())
        full = off and whole > 0 and self.cosines[top] >= COSINE and others[top] / whole >= SHARE
        carried = others[(others > 0) & (self.cosines >= ABSORBER_COSINE)]
        a, main = float(np.sort(carried)[::-1][:ABSORBERS].sum()), float(parts[self.split].sum())
        if whole <= 0 or main >= whole or a / whole < SHARE:
            return float(full), 0.0
        if main <= 0:
            return float(full), 1.0
        m = min(a, whole - main)
        return float(full), m / (main + m)


def f1_of(said: Bool[np.ndarray, " words"], positive: Bool[np.ndarray, " words"]) -> float:
    """F1 of what was said; 0 where nothing was said rightly."""
    hits = int((said & positive).sum())
    return 2 * hits / max(1, int(said.sum()) + int(positive.sum()))


def metrics_of_letters(letters: Sequence[Letter], n_test: int) -> dict[str, Interval]:
    """Means over letters, with intervals over so many test words."""
    weights = weights_of(n_test)

    def mean(values: Any) -> Interval:
        drawn: list[np.ndarray] = []
        for letter in letters:
            w = weights[letter.rows]
            with np.errstate(invalid="ignore", divide="ignore"):
                drawn.append((w * values(letter)[:, None]).sum(0, dtype=np.float64) / w.sum(0, dtype=np.float64))
        return interval_of(np.nanmean(np.stack(drawn), axis=0))

    split = np.array([len(letter.split) for letter in letters], float)
    return {
        "absorption_full": mean(lambda letter: letter.full),
        "absorption_fraction": mean(lambda letter: letter.fraction),
        "split_latents": Interval(float(split.mean())),
    }
