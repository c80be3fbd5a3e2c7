"""Families of features: those of the days, the months, the years; how many there are, and how they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from monosem.analysis.shapes import Shape, require_members, shape_of
from monosem.arguments import NotNegative, Positive, checked
from monosem.errors import ConfigError, MismatchError
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.work import doing
from monosem.work.progress import as_job

TEMPLATES = (
    "It was {}",
    "They met again on {}",
    "We will come back in {}",
    "This is about {}",
    "Before {}",
    "Nobody knew what happened until {}",
    "He had to wait until the end of {}",
    "The next thing they saw was {}",
)
CONTROLS = (
    "table river music window garden paper bread stone money kitchen doctor winter horse letter market road teacher "
    "engine forest silver school church island bottle coffee camera leader planet bridge story colour army blood "
    "computer village nurse ocean palace poem queen rain salt ship song sugar theory tower train valley voice water "
    "wheel wine wood wool yard animal battle castle dinner"
)
AT_ONCE = 64
FIRES, RARELY = 0.5, 0.1
"""Share of the texts of a word on which a feature fires that is of it, and of those of other words at most."""


@dataclass(frozen=True)
class Geometry:
    """A family of features."""

    words: list[str]
    latents: np.ndarray
    """(m,) the features of the family: each fires on half of the texts of some word, and on a tenth of the others'."""
    fires: np.ndarray
    """(m, words) share of the texts of each word on which each fires."""
    by_chance: int
    """Features that are found so for as many unrelated words, against others."""
    vectors: np.ndarray
    """(words, d) what the family's features write for each word, on average."""
    shape: Shape | None
    """How these lie; None where fewer than two features make them."""

    @property
    def of_one(self) -> int:
        """Features of one word alone."""
        return int(((self.fires >= FIRES).sum(1) == 1).sum())

    @property
    def of_several(self) -> int:
        return len(self.latents) - self.of_one


@checked
@as_job
@torch.no_grad()
def geometry(
    sae: SAE,
    model: SubjectModel,
    words: Sequence[str],
    *,
    values: Sequence[float] | None = None,
    hook: str | None = None,
    templates: Sequence[str] = TEMPLATES,
    controls: Sequence[str] | None = None,
    permutations: Positive = 10_000,
    seed: NotNegative = 0,
    progress: bool = True,
) -> Geometry:
    """The features that stand for a family of words, and how what they write lies: a circle, a line.

    Every word is read at the end of some texts, at its last token, and so are unrelated words.

    Args:
        sae: whose features.
        model: what it reads.
        words: the family, in its order, at least 6.
        values: by which they are ordered, such as years; 0, 1, 2, ... if not given.
        hook: where the dictionary reads; its own if not given.
        templates: texts that end in a word's place, "{}".
        controls: unrelated words, at best twice as many as the family has; common nouns if not given.
        permutations: of the order, for the null.
        seed: of permutations.
        progress: whether to show it.

    Raises:
        ConfigError: there are too few words, or a template has no place at its end.
        MismatchError: the dictionary reads several places, or says not where.

    Source: Engels et al., Not all language model features are linear, 2024, for circles.
    """
    require_members(len(words), "words")
    if not templates or not all(each.endswith("{}") and each.count("{") == 1 for each in templates):
        raise ConfigError(
            "every template must end in {}, its only brace: a word is read at its last token; give one or more"
        )
    place = hook or sae.metadata.hook
    if not isinstance(place, str):
        raise MismatchError("the dictionary does not say where it reads: geometry(..., hook='resid_post.2')")
    others = CONTROLS.split()[: max(24, 2 * len(words))] if controls is None else list(controls)
    if len(others) < 2:
        raise ConfigError(f"controls= are {len(others)} words: give some that are not of the family")
    codes = _codes(sae, model, place, [each.format(word) for word in [*words, *others] for each in templates])
    codes = codes.unflatten(0, (-1, len(templates)))
    fired = (codes > 0).float().mean(1).numpy()
    n = len(words)
    own, rest = fired[:n], fired[n:]
    latents = _selective(own, rest)
    half = min(n, len(rest) // 2)
    vectors = codes[:n].mean(1)[:, latents] @ sae.decoder_directions(latents.tolist()).float().cpu()
    found = vectors.double().numpy()
    return Geometry(
        words=list(words),
        latents=latents,
        fires=own[:, latents].T,
        by_chance=len(_selective(rest[:half], rest[half:])),
        vectors=found,
        shape=shape_of(found, values, permutations=permutations, seed=seed) if len(latents) > 1 else None,
    )


def _codes(sae: SAE, model: SubjectModel, place: str, texts: Sequence[str]) -> Tensor:
    """(texts, latents) the codes at the last token of each, those of one length in one pass."""
    tokens = [model.tokens(text)[0] for text in texts]
    lengths = np.array([len(each) for each in tokens])
    found = torch.zeros(len(texts), sae.n_latents)
    with doing("reading words", total=len(texts), unit="texts") as stage:
        for length in np.unique(lengths):
            for at in np.array_split(np.flatnonzero(lengths == length), 1 + (lengths == length).sum() // AT_ONCE):
                rows = model.capture(torch.stack([tokens[i] for i in at]), [place])[place][:, -1]
                found[torch.from_numpy(at)] = sae.encode(rows.to(sae.W_enc.device).float()).to_dense().float().cpu()
                stage.advance(len(at))
    return found


def _selective(own: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """Features that fire on half of the texts of some of these words, and on at most a tenth of all of the others."""
    return np.flatnonzero((own.max(0) >= FIRES) & (rest.mean(0) <= RARELY))
