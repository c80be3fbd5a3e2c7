"""Scores against known truth: does each latent point where a planted feature points, and fire when it fires?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.arguments import NotNegative, Positive, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError, MismatchError
from monosem.evaluation.definitions import DEFINITIONS
from monosem.evaluation.ground_truth import assigned, cosines_with, mean_of
from monosem.intervals import Interval
from monosem.sae import SAE
from monosem.synthetic import PlantedBatch
from monosem.work import doing

AT_ONCE = 2048
"""Rows encoded at a time."""
OWN = 0.5
"""Cosine from which the latent paired with a feature counts as the feature's own."""
ENOUGH = 10
"""Firings of a parent, with a child and without one, below which its absorption is not measured."""


@runtime_checkable
class Planted(Protocol):
    """Data with known truth: `PlantedDictionary`, `SynthSAEBench`, `Compositions`, or one's own."""

    @property
    def features(self) -> Float[Tensor, "n_features d"]: ...
    @property
    def parents(self) -> Int[Tensor, " n_features"]: ...
    def sample(self, rows: int, seed: NotNegative = 0) -> PlantedBatch: ...


@dataclass(frozen=True)
class TruthScore:
    """What `score_truth` found; see `monosem.evaluation.truth.score_truth` for what the keys mean."""

    values: dict[str, Interval]
    """By key; 95 % bootstrap over latents, features or parents."""
    notes: dict[str, str] = field(default_factory=dict)
    """By key, why there is no value."""

    def __getitem__(self, key: str) -> Interval:
        return self.values[key]

    def __str__(self) -> str:
        lines = []
        for key, value in self.values.items():
            interval = "" if value.low is None else f" ({value.low:.3f} - {value.high:.3f})"
            why = f"  {self.notes[key]}" if key in self.notes else ""
            lines.append(f"{DEFINITIONS[key].label:28}{value.value:7.3f}{interval}{why}")
        return "\n".join(lines)


@checked
def score_truth(sae: SAE, planted: Planted, rows: Positive = 50_000, seed: NotNegative = 1_000_003) -> TruthScore:
    """Compare directions and firing of an SAE with the features that its data were made of.

    Directions: `matched_cosine`, pairs of latents and features chosen for the largest sum of absolute cosines (SAELens
    calls it MCC); `feature_cosine` and `latent_cosine`, the mean over features (latents) of the largest cosine with any
    of the others; `uniqueness`, how many features are the nearest of some latent, over the number of latents.

    Firing: each latent is a detector of the feature that is nearest to it: `precision`, `recall` and `f1`, means over
    all latents, one that never fires counting 0 (as SAELens has them); `matched_f1`, over the pairs. Compare f1 with
    `probe_ceiling`, as no linear detector does better.

    Failures: `absorption`, of parents that have a latent of their own (paired, cosine >= 0.5): how much more often it
    is silent while the parent is on with a child on than without, mean over parents; `absorbed_direction`, over the
    children of those: how much of the parent's direction the child's own latent holds for one of the child's;
    `splitting`, latents beyond the first that have the same nearest feature and are right about it more often than not,
    for each feature that has any; `composition`, the share of latents that fire for two features together (the two
    nearest) rather than for either: the F1 with both on is above that with each.

    An SAE that holds the truth has 1 for the first eight, 0 for the last four; `random_truth` says what chance has.

    Args:
        sae: of the width of the planted features, one source.
        planted: the generator.
        rows: fresh rows to encode.
        seed: of those rows; another one than the SAE was trained on.

    Raises:
        MismatchError: another width, or several sources.
        ConfigError: fewer than two rows.
    """
    if sae.in_shape != (planted.features.shape[1],):
        raise MismatchError(
            f"an SAE that reads {sae.in_shape} cannot be compared with features of width {planted.features.shape[1]}"
        )
    if rows < 2:
        raise ConfigError(f"firing is compared on two rows or more, got {rows}")
    fired, on = [], []
    with doing("encoding planted rows", rows, unit="rows") as stage, torch.no_grad():
        batch = planted.sample(rows, seed)
        for start in range(0, rows, AT_ONCE):
            here = slice(start, start + AT_ONCE)
            fired.append(sae.encode(batch.x[here].to(sae.W_enc.device)).to("cpu"))
            stage.advance(len(batch.x[here]))
        on = batch.codes
    return score_codes(sae.decoder_directions().detach().cpu(), SparseCodes.cat(fired), planted, on)


def score_codes(
    directions: Float[Tensor, "n_latents d"], fired: SparseCodes, planted: Planted, on: SparseCodes
) -> TruthScore:
    """The same of decoder rows and codes that are known already, of whatever library."""
    cosines = cosines_with(directions, planted.features)  # (features, latents)
    size = np.abs(cosines)
    features, latents = assigned(size)
    nearest = size.argmax(0)
    found, truth = _firing(fired), _firing(on)
    each = _detection(found, truth[:, nearest])
    pairs = _detection(found[:, latents], truth[:, features])
    values = {
        "matched_cosine": mean_of(size[features, latents]),
        "feature_cosine": mean_of(cosines.max(1)),
        "latent_cosine": mean_of(cosines.max(0)),
        "uniqueness": Interval(len(np.unique(nearest)) / len(nearest)),
        **{key: mean_of(each[key]) for key in ("f1", "precision", "recall")},
        "matched_f1": mean_of(pairs["f1"]),
        "splitting": mean_of(_split(nearest, each["precision"], np.asarray(found.sum(0)).ravel())),
        "composition": mean_of(_composed(cosines, found, truth)),
    }
    owner = np.full(len(cosines), -1)
    own = size[features, latents] >= OWN
    owner[features[own]] = latents[own]
    unit = torch.nn.functional.normalize(directions.double()).numpy()
    values |= _absorption(planted.parents.numpy(), owner, found, truth)
    values["absorbed_direction"] = _leaning(planted.parents.numpy(), owner, unit, planted.features.double().numpy())
    why = {
        "uniqueness": "a count, not a mean",
        "absorption": f"no feature with a latent of its own fires {ENOUGH} times with a child and without",
        "absorbed_direction": "no parent and child that both have a latent of their own",
        "splitting": "no latent is right about its nearest feature more often than not",
        "composition": "no latent fires",
    }
    return TruthScore(values, {key: why[key] for key, value in values.items() if value.low is None and key in why})


def _firing(codes: SparseCodes) -> Any:
    """(rows, latents) a sparse matrix of ones where a latent is on."""
    from scipy.sparse import csr_array

    on = (codes.values.detach() != 0).numpy().astype(np.int32)
    matrix = csr_array((on, codes.indices.numpy(), codes.offsets.numpy()), shape=(codes.n_rows, codes.n_latents))
    matrix.eliminate_zeros()
    return matrix


def _count(matrix: Any) -> np.ndarray:
    return np.asarray(matrix.sum(0), dtype=np.float64).ravel()


def _detection(found: Any, truth: Any) -> dict[str, np.ndarray]:
    """Precision, recall and F1, column by column; 0 where they have no denominator."""
    hits, said, are = _count(found.multiply(truth)), _count(found), _count(truth)
    return {
        "precision": hits / np.maximum(said, 1),
        "recall": hits / np.maximum(are, 1),
        "f1": 2 * hits / np.maximum(said + are, 1),
    }


def _split(nearest: np.ndarray, precision: np.ndarray, fired: np.ndarray) -> np.ndarray:
    """For each feature that has a latent which is right about it, how many more it has."""
    right = nearest[(precision > 0.5) & (fired > 0)]
    return np.unique(right, return_counts=True)[1] - 1.0


def _composed(cosines: np.ndarray, found: Any, truth: Any) -> np.ndarray:
    """For each latent that fires, whether it fires for its two nearest features together rather than for either."""
    alive = np.flatnonzero(_count(found))
    if not len(alive) or len(cosines) < 2:
        return np.zeros(0)
    first, second = np.argpartition(-cosines[:, alive], 1, axis=0)[:2]
    ones, others, mine = truth[:, first], truth[:, second], found[:, alive]
    alone = np.maximum(_detection(mine, ones)["f1"], _detection(mine, others)["f1"])
    return (_detection(mine, ones.multiply(others).tocsr())["f1"] > alone).astype(float)


def _absorption(parents: np.ndarray, owner: np.ndarray, found: Any, truth: Any) -> dict[str, Interval]:
    """How much more often a parent's own latent is silent when one of its children is on."""
    from scipy.sparse import csr_array

    children = np.flatnonzero(parents >= 0)
    heads = np.unique(parents[children])
    heads = heads[owner[heads] >= 0]
    if not len(heads):
        return {"absorption": Interval(float("nan"))}
    place = np.searchsorted(heads, parents[children])
    known = (place < len(heads)) & (heads[np.minimum(place, len(heads) - 1)] == parents[children])
    belongs = csr_array(
        (np.ones(known.sum(), dtype=np.int32), (children[known], place[known])), shape=(len(parents), len(heads))
    )
    with_child = (truth @ belongs).sign()
    parent, latent = truth[:, heads], found[:, owner[heads]]
    with_child = with_child.multiply(parent).tocsr()
    without = (parent - with_child).tocsr()
    missed = []
    for rows in (with_child, without):
        missed.append(1 - _count(rows.multiply(latent)) / np.maximum(_count(rows), 1))
    enough = (_count(with_child) >= ENOUGH) & (_count(without) >= ENOUGH)
    return {"absorption": mean_of((missed[0] - missed[1])[enough])}


def _leaning(parents: np.ndarray, owner: np.ndarray, directions: np.ndarray, features: np.ndarray) -> Interval:
    """Of the children's own latents: the parent's share of the direction over the child's, by least squares."""
    children = np.flatnonzero((parents >= 0) & (owner >= 0))
    children = children[owner[parents[children]] >= 0]
    rows, child, parent = directions[owner[children]], features[children], features[parents[children]]
    between = (child * parent).sum(1)
    along_child, along_parent = (rows * child).sum(1), (rows * parent).sum(1)
    of_child, of_parent = along_child - between * along_parent, along_parent - between * along_child
    return mean_of(of_parent / np.where(of_child == 0, np.nan, of_child))


@checked
def random_truth(n_latents: Positive, planted: Planted, rows: Positive = 50_000, seed: NotNegative = 0) -> TruthScore:
    """What chance has: random directions, each of which fires at random as often as its nearest feature does."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(n_latents, planted.features.shape[1], generator=generator)
    on = planted.sample(rows, seed).codes
    nearest = np.abs(cosines_with(directions, planted.features)).argmax(0)
    rates = (on.firing_counts() / on.n_rows)[torch.from_numpy(nearest)]
    parts = []
    for start in range(0, rows, AT_ONCE):
        draws = torch.rand(min(AT_ONCE, rows - start), n_latents, generator=generator)
        parts.append(SparseCodes.from_dense((draws < rates).float()))
    return score_codes(directions, SparseCodes.cat(parts), planted, on)
