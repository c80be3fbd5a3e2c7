"""A state that is known: how well single latents tell its properties, and how much of it they tell together.

A property is a statement about a row that is true or not, such as "a stone of mine stands on c4". Its classifiers are
"latent f is above t times its maximum", t from 0 to 0.9 (Karvonen and others, 2024, arXiv:2408.00113). Maxima, choices
and thresholds are of the training rows alone; what is reported is of the test rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from monosem.codes import SparseCodes
from monosem.errors import DataError, MismatchError
from monosem.intervals import DocumentSums, Interval

THRESHOLDS = np.arange(10) / 10
PRECISION, LEAST_ACTIVE = 0.95, 10
"""What makes a classifier one of high precision, on the training rows; and on how many of them it must be active."""

Told = Bool[np.ndarray, "rows properties"]


class States(NamedTuple):
    """Rows, and what is true of them."""

    truth: Told
    groups: Int[np.ndarray, " rows"]
    """Of each row, the game (document) that it is of: intervals are over these."""

    @classmethod
    def of(cls, truth: Any, groups: Any, rows: int) -> States:
        """Checked.

        Raises:
            MismatchError: other numbers of rows.
        """
        truth, groups = np.asarray(truth, bool), np.asarray(groups, np.int64)
        if truth.ndim != 2 or len(truth) != rows or groups.shape != (rows,):
            raise MismatchError(
                f"{rows:,} rows need a truth (rows, properties) and a group each, got {truth.shape} and {groups.shape}"
            )
        return cls(truth, groups)


@dataclass(frozen=True)
class StateScores:
    """What is known of states, on rows that nothing was chosen on. Intervals: 95 % bootstrap, over groups."""

    coverage: Interval
    """Mean over properties of the F1 of the classifier that was best in training."""
    reconstruction: Interval
    """Mean over rows of the F1 of the state as told by all active classifiers of high precision together."""
    f1: Float[np.ndarray, " properties"]
    """Of each property, its F1; NaN for one that is always or never true in training, which no mean counts."""
    latents: Int[np.ndarray, " properties"] | None = None
    """Of each property, the latent that tells it best; None of a probe."""
    threshold: float | None = None
    """Of the classifiers that reconstruct: times the maximum of each latent; None of a probe."""
    n_classifiers: int | None = None
    """Pairs of a latent and a property that it tells with high precision; None of a probe."""


class _Found(NamedTuple):
    """What the training rows say."""

    maxima: Float[np.ndarray, " n_latents"]
    latents: Int[np.ndarray, " properties"]
    thresholds: Float[np.ndarray, " properties"]
    precise: Bool[np.ndarray, "thresholds n_latents properties"]


def state_scores(
    train: tuple[SparseCodes, Any, Any], test: tuple[SparseCodes, Any, Any], properties: Any = None
) -> StateScores:
    """Coverage and reconstruction of states by the latents of a dictionary.

    Args:
        train: codes, what is true of their rows (rows, properties), and the group of each row: the maxima of latents,
            the best classifier of each property, those of high precision (at least 0.95 on at least 10 rows) and the
            one threshold of the reconstruction, as a multiple of maxima, are chosen on these.
        test: other rows, of other groups; what is reported is of these.
        properties: those that count, as indices or a mask; all if not given.

    Raises:
        MismatchError: codes, truth and groups of different numbers of rows, latents or properties.
        DataError: a group is in both; no property is sometimes true and sometimes not.
    """
    known, unknown, varies = _checked(train, test, properties)
    found = _find(train[0], known.truth[:, varies])
    several, which = np.unique(found.latents, return_inverse=True)
    chosen = test[0].select(torch.from_numpy(several)).to_dense().detach().cpu().numpy()[:, which]
    told = chosen > found.thresholds * found.maxima[found.latents]
    f1, coverage = _coverage(told, unknown, varies)
    every = (_f1_of_rows(_together(train[0], found, t), known.truth[:, varies]).mean() for t in range(len(THRESHOLDS)))
    best = int(np.argmax(list(every)))
    reconstruction = _reconstruction(_together(test[0], found, best), unknown, varies)
    latents = np.full(len(varies), -1)
    latents[varies] = found.latents
    return StateScores(coverage, reconstruction, f1, latents, float(THRESHOLDS[best]), int(found.precise[best].sum()))


def probe_states(
    train: tuple[Float[Tensor, "rows d"], Any], x: Float[Tensor, "others d"], kinds: int, *, weight_decay: float = 1e-4
) -> Bool[np.ndarray, "others properties"]:
    """What linear probes tell of other rows: what a dictionary of these activations could have known.

    Properties come in kinds, one after another: property kind * places + place. For every place a multinomial logistic
    regression on standardised activations says which kind it is.

    Args:
        train: activations, and what is true of them (rows, properties).
        x: other activations.
        kinds: how many kinds exclude each other at a place.
        weight_decay: times half the sum of squared weights, a place.

    Raises:
        MismatchError: other widths, or places at which not exactly one kind is true.
    """
    rows, truth = train[0], np.asarray(train[1], bool)
    if len(truth) != len(rows) or rows.shape[1:] != x.shape[1:] or truth.shape[1] % kinds:
        raise MismatchError(f"cannot probe {tuple(rows.shape)} for {truth.shape} in {kinds} kinds and {tuple(x.shape)}")
    truth = truth.reshape(len(truth), kinds, -1)
    if (truth.sum(1) != 1).any():
        raise MismatchError(f"of {kinds} kinds, exactly one must be true at every place")
    mean, spread = rows.mean(0), rows.std(0).clamp_min(1e-6)
    probe = _fitted((rows - mean) / spread, torch.from_numpy(truth.argmax(1)), kinds, weight_decay)
    likeliest = probe((x - mean) / spread).argmax(1).cpu().numpy()
    return (likeliest[:, None] == np.arange(kinds)[:, None]).reshape(len(likeliest), -1)


def told_scores(told: Told, train: tuple[Any, Any], test: tuple[Any, Any], properties: Any = None) -> StateScores:
    """The same of any guess at the states of the test rows, as that of `probe_states`.

    Args:
        told: what is guessed, (rows, properties).
        train: what is true (rows, properties), and the group of each row: which properties vary.
        test: of the rows that were guessed at.
        properties: those that count; all if not given.

    Raises:
        MismatchError, DataError: as `state_scores`.
    """
    _, unknown, varies = _checked((train[0], *train), (told, *test), properties)
    f1, coverage = _coverage(told[:, varies], unknown, varies)
    return StateScores(coverage, _reconstruction(told[:, varies], unknown, varies), f1)


def floor_scores(train: tuple[Any, Any], test: tuple[Any, Any], properties: Any = None) -> StateScores:
    """The same of what knows nothing: a classifier that is always on, for each property, and the commonest state.

    Args:
        train: what is true (rows, properties), and the group of each row.
        test: other rows.
        properties: those that count; all if not given.

    Raises:
        MismatchError, DataError: as `state_scores`.
    """
    known, unknown, varies = _checked((train[0], *train), (test[0], *test), properties)
    f1, coverage = _coverage(np.ones_like(unknown.truth[:, varies]), unknown, varies)
    common = np.broadcast_to(known.truth[:, varies].mean(0) >= 0.5, (len(unknown.truth), int(varies.sum())))
    return StateScores(coverage, _reconstruction(common, unknown, varies), f1)


def _checked(train: Any, test: Any, properties: Any) -> tuple[States, States, Bool[np.ndarray, " properties"]]:
    """Both halves, and the properties that count and vary."""
    known, unknown = (States.of(truth, groups, rows.shape[0]) for rows, truth, groups in (train, test))
    if train[0].shape[1:] != test[0].shape[1:] or known.truth.shape[1] != unknown.truth.shape[1]:
        sizes = [f"{tuple(rows.shape)} with {truth.shape[1]} properties" for rows, truth, _ in (train, test)]
        raise MismatchError(f"training and test rows are not of one kind: {sizes[0]}, {sizes[1]}")
    both = np.intersect1d(known.groups, unknown.groups)
    if len(both):
        raise DataError(f"{len(both):,} groups are in training and test, such as {both[0]}: what is tested must be new")
    counts = np.ones(known.truth.shape[1], bool)
    if properties is not None:
        counts[:] = False
        counts[np.asarray(properties)] = True
    share = known.truth.mean(0)
    varies = counts & (share > 0) & (share < 1)
    if not varies.any():
        raise DataError("no property is true of some training rows and not of others: nothing can be told")
    return known, unknown, varies


def _levels(codes: SparseCodes, maxima: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every entry its row, its latent, and above how many thresholds it is."""
    values, latents = codes.values.detach().cpu().numpy(), codes.indices.cpu().numpy().astype(np.int64)
    above = values[:, None] > THRESHOLDS * maxima[latents, None]
    return codes.rows().cpu().numpy(), latents, above.sum(1)


def _find(codes: SparseCodes, truth: Told) -> _Found:
    from scipy import sparse

    n_rows, n = truth.shape[0], codes.n_latents
    maxima = np.zeros(n, np.float32)
    np.maximum.at(maxima, codes.indices.cpu().numpy(), codes.values.detach().cpu().numpy())
    rows, latents, levels = _levels(codes, maxima)
    on = levels > 0
    place = (levels[on] - 1) * n + latents[on]
    shape = (len(THRESHOLDS) * n, n_rows)
    counted = sparse.csr_matrix((np.ones(on.sum(), np.float32), (place, rows[on])), shape=shape)

    def above(exact: np.ndarray) -> np.ndarray:  # from just one threshold to it and all higher ones
        by_threshold = exact.reshape(len(THRESHOLDS), n, -1)
        return by_threshold[::-1].cumsum(0)[::-1]

    right = above(counted @ truth.astype(np.float32))
    active = above(np.asarray(counted.sum(1)))
    f1 = 2 * right / np.maximum(active + truth.sum(0), 1)
    best = f1.reshape(-1, truth.shape[1]).argmax(0)
    precise = (right >= PRECISION * active) & (active >= LEAST_ACTIVE)
    return _Found(maxima, best % n, THRESHOLDS[best // n], precise)


def _together(codes: SparseCodes, found: _Found, threshold: int) -> Told:
    """What the classifiers of high precision at a threshold say of every row: a property that any of them tells."""
    from scipy import sparse

    rows, latents, levels = _levels(codes, found.maxima)
    on = levels > threshold
    shape = (codes.n_rows, codes.n_latents)
    active = sparse.csr_matrix((np.ones(on.sum(), np.float32), (rows[on], latents[on])), shape=shape)
    return np.asarray(active @ found.precise[threshold].astype(np.float32)) > 0


def _f1_of_rows(told: Told, truth: Told) -> Float[np.ndarray, " rows"]:
    return 2 * (told & truth).sum(1) / np.maximum(told.sum(1) + truth.sum(1), 1)


def _coverage(told: Told, states: States, varies: np.ndarray) -> tuple[np.ndarray, Interval]:
    """F1 of each property, and their mean."""
    truth, sums = states.truth[:, varies], DocumentSums()
    sums.add("rows", states.groups, np.ones(len(told)))
    sums.add("right", states.groups, told & truth)
    sums.add("either", states.groups, told.astype(np.int64) + truth)

    def f1_of(s: dict[str, np.ndarray]) -> np.ndarray:
        return 2 * s["right"] / np.maximum(s["either"], 1)

    f1 = np.full(len(varies), np.nan)
    f1[varies] = f1_of(sums.totals())
    return f1, sums.interval(lambda s: f1_of(s).mean(-1))


def _reconstruction(told: Told, states: States, varies: np.ndarray) -> Interval:
    sums = DocumentSums()
    sums.add("rows", states.groups, np.ones(len(told)))
    sums.add("f1", states.groups, _f1_of_rows(told, states.truth[:, varies]))
    return sums.interval(lambda s: s["f1"] / s["rows"])


def _fitted(x: Tensor, kind: Int[Tensor, "rows places"], kinds: int, decay: float) -> Callable[[Tensor], Tensor]:
    """From rows to logits (rows, kinds, places)."""
    x, places = x.detach().float(), kind.shape[1]
    weight = torch.zeros(kinds * places, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(kinds * places, device=x.device, requires_grad=True)
    kind = kind.to(x.device)

    def logits(rows: Tensor) -> Tensor:
        return F.linear(rows.float(), weight, bias).unflatten(1, (kinds, places))

    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=10, line_search_fn="strong_wolfe")

    @torch.enable_grad()
    def loss() -> float:
        optimizer.zero_grad()
        surprise = F.cross_entropy(logits(x), kind, reduction="none")  # its own mean has no fixed order on a GPU
        value = places * surprise.mean() + decay / 2 * weight.square().sum()
        value.backward()
        return value.item()

    optimizer.step(loss)
    for parameter in (weight, bias):
        parameter.requires_grad_(False)
    return logits
