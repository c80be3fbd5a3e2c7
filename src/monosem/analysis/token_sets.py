"""What features do to the logits: statistics, classes, and which sets of tokens each promotes or suppresses."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor

from monosem.analysis.enrichment import Sets, corrected, exact_p, scores, sets_of
from monosem.analysis.logit_lens import direction_logits, logit_weights, moments
from monosem.analysis.word_sets import Set, read_sets, shipped, tokens_of
from monosem.arguments import NotNegative, checked
from monosem.errors import ConfigError
from monosem.files import write_text
from monosem.models import SubjectModel
from monosem.models.vocabulary import Vocabulary
from monosem.sae import SAE
from monosem.work import doing
from monosem.work.progress import as_job

LEVEL = 0.05
"""False discovery rate up to which a set counts as promoted or suppressed."""
SMALLEST = 5
"""Tokens of the smallest set that is tested."""
TILE_ENTRIES = 2**22
FeatureClass = Literal["prediction", "suppression", "partition", "none"]
CLASSES: tuple[FeatureClass, ...] = ("prediction", "suppression", "partition", "none")
DIRECTIONS = 1000
TAIL = 0.005
"""Share of random directions beyond each of the limits by which features are classed."""


class Enriched(NamedTuple):
    """A set that a feature promotes or suppresses."""

    name: str
    score: float
    """From -1 (all of its tokens stand last) to 1 (first)."""
    p: float
    q: float
    """Of p, corrected for all tests."""
    z: float
    """By how many standard deviations of random directions the mean logit of its tokens stands above that of all."""
    q_directions: float
    """Of the p value of z, corrected for all tests."""


@dataclass(frozen=True)
class TokenSets:
    """Sets of tokens against features."""

    latents: np.ndarray
    """(n,)"""
    tokens: dict[str, np.ndarray]
    """Ids of the tokens of each set that was tested."""
    left_out: dict[str, int]
    """Sets with fewer tokens of their own in the vocabulary than are needed for a test, or with all of them."""
    scores: np.ndarray
    """(n, sets)"""
    p: np.ndarray
    """(n, sets) how often random sets of the same size score as far from 0."""
    q: np.ndarray
    """(n, sets) p corrected over all: the least false discovery rate at which a pair is called."""
    z: np.ndarray
    """(n, sets) mean logit of the set's tokens less that of all, in standard deviations of random directions."""
    q_directions: np.ndarray
    """(n, sets) the p value of z, corrected over all."""
    moments: np.ndarray
    """(n, 3) deviation, skew and kurtosis of what the feature does to the logits; deviation for a row of length 1."""
    chance_moments: np.ndarray
    """(directions, 3) of random directions."""
    n_tokens: int
    """Of the vocabulary, special ones apart."""

    @property
    def names(self) -> list[str]:
        return list(self.tokens)

    @functools.cached_property
    def enriched(self) -> np.ndarray:
        """(n, sets) 1 where a feature promotes a set, -1 where it suppresses it, else 0.

        So it is called where both corrected p values are at most 0.05, and score and z have one sign. The second
        matters: tokens of a set have output rows that are alike, so that many a random direction, too, tells them from
        a random set of tokens.
        """
        called = (self.q <= LEVEL) & (self.q_directions <= LEVEL) & (self.scores * self.z > 0)
        return np.where(called, np.sign(self.scores), 0).astype(int)

    @functools.cached_property
    def classes(self) -> list[FeatureClass]:
        """The class of each feature, by what is rare among random directions: beyond 99.5 % of them.

        prediction: skewed to high logits, with heavier tails: it promotes few tokens strongly. suppression: skewed to
        low logits. partition: neither, and it moves the logits further: it raises one part of the vocabulary and lowers
        the other. Source: Gurnee et al., Universal neurons, 2024; Bloom & Lin, 2024, who set the limits by eye.
        """
        return self._classed(self.moments)

    @functools.cached_property
    def classes_by_chance(self) -> dict[FeatureClass, float]:
        """The share of random directions in each class."""
        classes = self._classed(self.chance_moments)
        return {name: classes.count(name) / len(classes) for name in CLASSES}

    def _classed(self, measured: np.ndarray) -> list[FeatureClass]:
        low, high = np.quantile(self.chance_moments, [TAIL, 1 - TAIL], axis=0)
        deviation, skew, kurtosis = measured.T
        prediction = (kurtosis > high[2]) & (skew > high[1])
        suppression = skew < low[1]
        numbers = np.select([prediction, suppression, deviation > high[0]], [0, 1, 2], 3)
        return [CLASSES[number] for number in numbers]

    def of(self, latent: int) -> list[Enriched]:
        """The sets that a feature promotes or suppresses, the furthest from 0 first.

        Raises:
            ConfigError: the feature was not tested.
        """
        rows = np.flatnonzero(self.latents == latent)
        if not len(rows):
            raise ConfigError(f"feature {latent} was not tested: token_sets(..., latents=[{latent}])")
        row = int(rows[0])
        found = np.flatnonzero(self.enriched[row])
        order = found[np.argsort(-np.abs(self.scores[row, found]), kind="stable")]
        return [self._enriched(row, column) for column in order.tolist()]

    def top(self, name: str, n: int = 10, suppressed: bool = False) -> list[tuple[int, Enriched]]:
        """The features that promote a set most (or suppress it), with what was found.

        Raises:
            ConfigError: no such set was tested.
        """
        if name not in self.tokens:
            few = f": it has {self.left_out[name]} tokens in this vocabulary" if name in self.left_out else ""
            raise ConfigError(f"no token set {name!r} was tested{few}")
        column, sign = self.names.index(name), -1 if suppressed else 1
        found = np.flatnonzero(self.enriched[:, column] == sign)
        order = found[np.argsort(-sign * self.scores[found, column], kind="stable")][:n]
        return [(int(self.latents[row]), self._enriched(row, column)) for row in order.tolist()]

    def save(self, path: str | Path) -> None:
        """Write what was found as CSV: feature, class, set, score, p, q, z, q_directions.

        Raises:
            FileError: it cannot be written.
        """
        lines, classes = ["latent,class,set,score,p,q,z,q_directions"], self.classes
        for row, latent in enumerate(self.latents.tolist()):
            for each in self.of(latent):
                quoted = '"' + each.name.replace('"', '""') + '"'
                numbers = f"{each.score:.4f},{each.p:.3g},{each.q:.3g},{each.z:.2f},{each.q_directions:.3g}"
                lines.append(f"{latent},{classes[row]},{quoted},{numbers}")
        write_text(path, "\n".join(lines) + "\n")

    def _enriched(self, row: int, column: int) -> Enriched:
        values = (float(table[row, column]) for table in (self.scores, self.p, self.q, self.z, self.q_directions))
        return Enriched(self.names[column], *values)


@checked
@as_job
@torch.no_grad()
def token_sets(
    sae: SAE,
    model: SubjectModel,
    sets: Mapping[str, Set] | str | Path | None = None,
    *,
    latents: Sequence[int] | None = None,
    permutations: int | None = None,
    seed: NotNegative = 0,
    progress: bool = True,
) -> TokenSets:
    """Which sets of tokens each feature promotes or suppresses, by its logit lens.

    For every feature the vocabulary is ranked by what the feature adds to the logits (`logit_weights`); a set scores by
    where its tokens stand: 1 if they are the first, -1 if they are the last. Two nulls: of the score, random sets of
    the same size (p); of the mean logit of the set's tokens, random directions, normal with the second moments of the
    decoder's rows (z). Both are corrected for all tests (Benjamini-Hochberg).

    Args:
        sae: whose features; it must write where the output embeddings read.
        model: whose logits.
        sets: by name, words with spaces between them, a list of words, an expression between slashes, or a test of a
            token's text; or a file of them; those that come with monosem if not given.
        latents: which features; all if not given.
        permutations: of the tokens, for p; if not given, all of them: the distribution is known exactly.
        seed: of permutations, and of the random directions by which features are classed.
        progress: whether to show it.

    Raises:
        ConfigError: no set has enough tokens, or there is no logit lens.
        FileError: the file cannot be read.

    Source: Bloom & Lin, Understanding SAE features with the logit lens, 2024, for the method, without a sign or a null.
    """
    if model.tokenizer is None:
        raise ConfigError(f"{model.name} has no tokenizer to tell tokens by: load_model(module, tokenizer=...)")
    chosen = np.arange(sae.n_latents) if latents is None else np.array(latents, np.int64)
    if not len(chosen):
        raise ConfigError("latents= names no feature: there is nothing to test")
    if permutations is not None and permutations < 1:
        raise ConfigError(f"permutations={permutations}: give at least 1, or none for the exact distribution")
    width = logit_weights(sae, model, chosen[:1].tolist()).shape[1]
    vocabulary = Vocabulary.of(model.tokenizer)
    known = np.array([token for token in vocabulary.known if token < width and token not in vocabulary.special])
    named = read_sets(sets) if isinstance(sets, str | Path) else shipped() if sets is None else sets
    places, left_out = _testable(tokens_of(named, [vocabulary.text(token) for token in known.tolist()]), len(known))
    packed = sets_of(list(places.values()), len(known))
    columns = torch.from_numpy(known)

    def logits(directions: Tensor) -> Tensor:
        return direction_logits(directions, model).float().cpu()[:, columns]

    rows = sae.decoder_directions().float()
    rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    mine = rows[torch.from_numpy(chosen).to(rows.device)]
    means = _set_means(logits(torch.eye(rows.shape[1], device=rows.device)), places).to(rows)
    z = (mine @ means / (rows @ means).square().mean(0).sqrt().clamp_min(1e-30)).double().cpu().numpy()
    with doing("token sets", total=len(chosen), unit="features") as stage:
        found, of_features = _ranked(mine, logits, packed, stage.advance)
    if permutations is None:
        p = exact_p(found, packed.sizes, len(known))
    else:
        p = permuted_p(found, packed, len(known), permutations, seed)
    return TokenSets(
        latents=chosen,
        tokens={name: known[each] for name, each in places.items()},
        left_out=left_out,
        scores=found,
        p=p,
        q=corrected(p),
        z=z,
        q_directions=corrected(2 * ndtr(-np.abs(z))),
        moments=of_features,
        chance_moments=moments(logits(_random_directions(rows, seed)))[:, 1:].numpy(),
        n_tokens=len(known),
    )


def permuted_p(found: np.ndarray, sets: Sets, n_tokens: int, permutations: int, seed: NotNegative = 0) -> np.ndarray:
    """As `exact_p`, counted in random orders of the tokens, the same for all: (1 + further ones) / (1 + all)."""
    draw = np.random.default_rng(seed)
    orders = np.stack([draw.permutation(n_tokens) for _ in range(permutations)])
    descending = np.broadcast_to(np.arange(n_tokens, 0, -1, dtype=np.float32), orders.shape)
    null = np.sort(np.abs(scores(descending, orders, sets)), axis=0)
    p = np.empty(found.shape)
    for column in range(found.shape[1]):
        below = np.searchsorted(null[:, column], np.abs(found[:, column]) * (1 - 1e-6))
        p[:, column] = (1 + permutations - below) / (1 + permutations)
    return p


def _testable(found: dict[str, np.ndarray], n_tokens: int) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The sets that can be tested, each of different tokens, and the sizes of those that cannot."""
    places: dict[str, np.ndarray] = {}
    left_out: dict[str, int] = {}
    seen: set[bytes] = set()
    for name, tokens in found.items():
        if not SMALLEST <= len(tokens) <= n_tokens - SMALLEST:
            left_out[name] = len(tokens)
        elif tokens.tobytes() not in seen:
            seen.add(tokens.tobytes())
            places[name] = tokens
    if not places:
        most = ", ".join(f"{name} {n}" for name, n in sorted(left_out.items(), key=lambda each: -each[1])[:3])
        raise ConfigError(
            f"no token set has at least {SMALLEST} tokens of this vocabulary of {n_tokens:,}, and leaves as many out "
            f"({most or 'none was given'}): words must be whole tokens"
        )
    return places, left_out


def _set_means(logits: Tensor, places: Mapping[str, np.ndarray]) -> Tensor:
    """(d, sets) the mean logit of each set's tokens less that of all, of one unit along each axis: it is linear."""
    means = [logits[:, torch.from_numpy(tokens)].mean(1) for tokens in places.values()]
    return torch.stack(means, 1) - logits.mean(1, keepdim=True)


def _random_directions(rows: Tensor, seed: int) -> Tensor:
    """(DIRECTIONS, d) normal, with the second moments of the rows, and of length 1."""
    drawn = torch.randn(DIRECTIONS, len(rows), generator=torch.Generator().manual_seed(seed)).to(rows) @ rows
    return drawn / drawn.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def _ranked(
    rows: Tensor, logits: Callable[[Tensor], Tensor], sets: Sets, advance: Callable[[float], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the sets, (rows, sets), and deviation, skew and kurtosis, (rows, 3), in chunks of rows."""
    found: list[np.ndarray] = []
    of_rows: list[np.ndarray] = []
    for tile in rows.split(max(1, TILE_ENTRIES // (len(sets.starts) - 1))):
        weights = logits(tile)
        of_rows.append(moments(weights)[:, 1:].numpy())
        ranked = weights.sort(descending=True)
        found.append(scores(ranked.values.numpy(), ranked.indices.numpy(), sets))
        advance(len(tile))
    return np.concatenate(found), np.concatenate(of_rows)
