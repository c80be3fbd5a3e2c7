"""The ceiling of detection: what a logistic probe, trained on the truth itself, reaches for each planted feature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.arguments import NotNegative, Positive, checked
from monosem.codes import SparseCodes
from monosem.errors import ConfigError
from monosem.evaluation.ground_truth import mean_of
from monosem.evaluation.truth import Planted
from monosem.intervals import Interval
from monosem.work import doing

BATCH = 4096
STEP = 512
"""Rows drawn at a time, and those of a step."""
RATE = 0.02
"""Adam's rate on whitened activations; it falls to 0 over the run, along a cosine."""
FEATURES_AT_ONCE = 64


@dataclass(frozen=True)
class ProbeCeiling:
    """How well logistic probes detect features. Intervals: 95 % bootstrap, over features."""

    f1: Interval
    precision: Interval
    recall: Interval
    features: Int[Tensor, " probes"]
    each: Float[Tensor, " probes"]
    """F1 of each of them."""


@checked
def probe_ceiling(
    planted: Planted,
    features: Positive | Int[Tensor, " probes"],
    *,
    rows: int = 1_000_000,
    test_rows: int = 50_000,
    seed: NotNegative = 2_000_003,
) -> ProbeCeiling:
    """Train one logistic regression for each feature on fresh rows with the truth as labels, and test it on others.

    The threshold of each is the one with the largest F1 on other rows; nothing is chosen on the rows of the test. An
    SAE's latent sees the same activations through one linear map and one threshold, so its mean F1 over the same
    features cannot be expected above.

    Args:
        planted: the generator.
        features: which ones to detect, or so many of the first (the commonest of SynthSAEBench).
        rows: to train on, each seen once.
        test_rows: to choose thresholds on, and as many others to test.
        seed: of all of them.

    Raises:
        ConfigError: no features, or fewer than 2 rows.
    """
    chosen = torch.arange(features) if isinstance(features, int) else features
    known = len(planted.features)
    if (
        not len(chosen)
        or len(chosen) > known
        or int(chosen.min()) < 0
        or int(chosen.max()) >= known
        or min(rows, test_rows) < 2
    ):
        raise ConfigError(
            f"cannot probe {len(chosen)} of {len(planted.features)} features on {rows} rows, tested on {test_rows}"
        )
    x, on = planted.sample(max(test_rows, BATCH), seed)
    whiten = _whitening(x)
    labels = _labels(on, chosen, len(planted.features))
    start = _discriminant(whiten(x), labels.float())
    weight, bias = _fit(_rows(planted, chosen, rows, seed + 1), whiten, *start, rows)
    thresholds = _best_thresholds(torch.addmm(bias, whiten(x), weight), labels)
    x, on = planted.sample(test_rows, seed + 2)
    labels = _labels(on, chosen, len(planted.features))
    said = torch.addmm(bias, whiten(x), weight) > thresholds
    hits, fires, are = ((part).sum(0).double() for part in (said & labels, said, labels))
    f1 = 2 * hits / (fires + are).clamp_min(1)
    means = [mean_of(part.numpy()) for part in (f1, hits / fires.clamp_min(1), hits / are.clamp_min(1))]
    return ProbeCeiling(means[0], means[1], means[2], chosen, f1.float())


def _rows(planted: Planted, chosen: Tensor, rows: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of activations and labels; each batch of a seed of its own."""
    for number, start in enumerate(range(0, rows, BATCH)):
        x, on = planted.sample(min(BATCH, rows - start), seed * 1_000_003 + number)
        yield x, _labels(on, chosen, len(planted.features))


def _labels(on: SparseCodes, chosen: Tensor, n_features: int) -> Bool[Tensor, "rows probes"]:
    """Which of the chosen features are on."""
    place = torch.full((n_features,), -1)
    place[chosen] = torch.arange(len(chosen))
    columns = place[on.indices.long()]
    rows = torch.repeat_interleave(torch.arange(on.n_rows), on.offsets.diff())
    kept = (columns >= 0) & (on.values != 0)
    labels = torch.zeros(on.n_rows, len(chosen), dtype=torch.bool)
    labels[rows[kept], columns[kept]] = True
    return labels


def _whitening(x: Float[Tensor, "rows d"]) -> Callable[[Tensor], Tensor]:
    """What gives activations mean 0 and the identity as covariance."""
    middle = x.mean(0)
    covariance = torch.cov(x.T).double() + 1e-6 * x.var() * torch.eye(x.shape[1], dtype=torch.float64)
    root = torch.linalg.inv(torch.linalg.cholesky(covariance)).T.float()
    return lambda rows: (rows - middle) @ root


def _discriminant(
    x: Float[Tensor, "rows d"], labels: Float[Tensor, "rows probes"]
) -> tuple[Float[Tensor, "d probes"], Float[Tensor, " probes"]]:
    """Of whitened rows, the logistic regression of two normal distributions of one covariance: a good beginning."""
    share = labels.mean(0).clamp(1 / len(x), 1 - 1 / len(x))
    means = (x.T @ labels) / (share * len(x))
    apart = means / (1 - share)  # mean where on less mean where off, as the mean of all is 0
    inside = (1 - share * (1 - share) * apart.square().sum(0)).clamp_min(0.05)
    weight = apart / inside
    middle = means - apart / 2
    return weight, torch.logit(share) - (weight * middle).sum(0)


def _fit(
    batches: Iterator[tuple[Tensor, Tensor]],
    whiten: Callable[[Tensor], Tensor],
    weight: Float[Tensor, "d probes"],
    bias: Float[Tensor, " probes"],
    rows: int,
) -> tuple[Float[Tensor, "d probes"], Float[Tensor, " probes"]]:
    """All probes at once, by Adam on the mean cross-entropy of each: they share nothing but the rows."""
    moments = [torch.zeros_like(part) for part in (weight, weight, bias, bias)]
    step, n_steps = 0, -(-rows // STEP)
    with doing("training probes", rows, unit="rows") as stage:
        for x, labels in batches:
            for part, wanted in zip(whiten(x).split(STEP), labels.float().split(STEP), strict=True):
                step += 1
                error = (torch.sigmoid(torch.addmm(bias, part, weight)) - wanted) / len(part)
                rate = RATE * 0.5 * (1 + math.cos(math.pi * min(1.0, step / n_steps)))
                for parameter, gradient, first, second in (
                    (weight, part.T @ error, *moments[:2]),
                    (bias, error.sum(0), *moments[2:]),
                ):
                    first.lerp_(gradient, 0.1)
                    second.lerp_(gradient.square(), 0.001)
                    parameter -= rate * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            stage.advance(len(x))
    return weight, bias


def _best_thresholds(
    scores: Float[Tensor, "rows probes"], labels: Bool[Tensor, "rows probes"]
) -> Float[Tensor, " probes"]:
    """For each probe the score above which to say yes, so that F1 is largest."""
    thresholds = torch.empty(scores.shape[1])
    said = torch.arange(1, len(scores) + 1)[:, None]
    for start in range(0, scores.shape[1], FEATURES_AT_ONCE):
        here = slice(start, start + FEATURES_AT_ONCE)
        ordered, order = scores[:, here].sort(0, descending=True)
        hits = labels[:, here].gather(0, order).cumsum(0)
        best = (2 * hits / (said + hits[-1])).argmax(0, keepdim=True)
        below = (best + 1).clamp_max(len(scores) - 1)
        thresholds[here] = (ordered.gather(0, best) + ordered.gather(0, below))[0] / 2
    return thresholds
