"""Of the activations or of the model? Rows that keep some of what activations have, and what latents do with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.activations.check import join
from monosem.analysis.position_shares import PositionSums, beyond_chance
from monosem.arguments import NotNegative, checked
from monosem.errors import ConfigError, DataError, MismatchError
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.work import each

KINDS = ("shuffled", "gaussian", "whitened")


@checked
def surrogates(x: Float[Tensor, "rows d"], seed: NotNegative = 0) -> dict[str, Float[Tensor, "rows d"]]:
    """Rows like activations in some respects, to train dictionaries on: what these have too is not of the model.

    - "shuffled": every coordinate has its values in another order, by itself: their distributions are as they were, and
      what coordinates have to do with each other is gone.
    - "gaussian": random rows with exactly the mean and covariance of the sample: spectrum and directions are as they
      were, and nothing is sparse.
    - "whitened": the rows themselves with all directions of their spectrum made equally large (mean 0, covariance 1):
      what is left is not of the spectrum.

    Raises:
        DataError: fewer rows than twice the width, or rows that are not finite.
    """
    if x.ndim != 2 or len(x) < 2 * x.shape[1]:
        raise DataError(f"surrogates need at least twice as many rows as columns, got {tuple(x.shape)}")
    if not bool(x.isfinite().all()):
        raise DataError("the rows have numbers that are not finite")
    generator = torch.Generator().manual_seed(seed)
    rows = x.double().cpu()
    orders = torch.rand(rows.shape, generator=generator).argsort(0)
    mean = rows.mean(0)
    forward, backward = _whitening(rows - mean)
    noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    noise = noise - noise.mean(0)
    even, _ = _whitening(noise)
    found = {
        "shuffled": rows.gather(0, orders),
        "gaussian": mean + noise @ even @ backward,
        "whitened": (rows - mean) @ forward,
    }
    return {name: each.to(x) for name, each in found.items()}


def _whitening(centred: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric matrices that make the covariance of rows 1, and that undo it."""
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    values = values.clamp_min(1e-12 * values.max()).sqrt()
    return (vectors / values) @ vectors.T, (vectors * values) @ vectors.T


@dataclass(frozen=True)
class LatentProperties:
    """What latents of a dictionary are like on some rows. All but `fvu` are means over latents that fire."""

    fvu: float
    l0: float
    dead: float
    """Share of latents that never fire."""
    dense: float
    """Share of those that fire which do so on more than 10 % of the rows."""
    kurtosis: float
    """Excess kurtosis of activations over all rows, the median: how seldom and how strongly they fire."""
    stability: float
    """Cosine to the most similar decoder row of a dictionary of another seed; NaN without one."""
    token: float
    """Share of the variance by the token alone, beyond chance; NaN where rows are of no tokens."""


@checked
@torch.no_grad()
def latent_properties(
    sae: SAE,
    x: Float[Tensor, "rows d"],
    *,
    other: SAE | None = None,
    tokens: Int[Tensor, " rows"] | None = None,
) -> LatentProperties:
    """Measure them.

    Args:
        sae: a dictionary.
        x: rows that it was not trained on.
        other: one of another seed, trained on rows of the same kind.
        tokens: of each row, where it has one.

    Raises:
        DataError: fewer than two rows that differ, or of another width.
        MismatchError: the other dictionary is of another width.
    """
    if len(x) < 2 or x.shape[1] != sae.d_in:
        raise DataError(f"properties of latents are of two rows or more of width {sae.d_in}, got {tuple(x.shape)}")
    if other is not None and other.d_out != sae.d_out:
        raise MismatchError(f"one dictionary writes width {sae.d_out}, the other {other.d_out}")
    x = x.to(sae.W_enc)
    sums, moments, error = PositionSums(1, sae.n_latents), torch.zeros(4, sae.n_latents, dtype=torch.float64), 0.0
    total = float((x - x.mean(0)).double().pow(2).sum())
    if not total:
        raise DataError("the rows are all alike: nothing is to be explained")
    n, zero = len(x), torch.zeros(len(x), dtype=torch.int64)
    for part in torch.arange(n).split(8192):
        codes = sae.encode(x[part])
        error += float((x[part] - sae.decode(codes, x[part])).double().pow(2).sum())
        values, latents = codes.values.double().cpu(), codes.indices.long().cpu()
        for power in range(4):
            moments[power].index_add_(0, latents, values ** (power + 1))
        own = zero[part] if tokens is None else tokens[part].cpu()
        sums.add(codes, part, zero[part], own, torch.ones(len(part)))
    fires = sums.firings > 0
    firing = sums.firings[fires].double() / n
    first, second, third, fourth = moments[:, fires] / n
    variance = (second - first**2).clamp_min(1e-300)
    fourth = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    share = beyond_chance(sums.token_share(), len(sums.token_weights), n)[sums.firings >= 20]
    alike = _alike(sae, other)[fires] if other is not None else torch.full((1,), torch.nan)
    return LatentProperties(
        fvu=error / total,
        l0=float(firing.sum()),
        dead=1 - float(fires.double().mean()),
        dense=float((firing > 0.1).double().mean()),
        kurtosis=float((fourth / variance**2 - 3).median()),
        stability=float(alike.mean()),
        token=float(share.mean()) if tokens is not None else float("nan"),
    )


def _alike(sae: SAE, other: SAE) -> Float[Tensor, " latents"]:
    one, two = (torch.nn.functional.normalize(each.W_dec.float(), dim=-1) for each in (sae, other))
    return (one @ two.T).amax(1).cpu().double()


@dataclass(frozen=True)
class Importance:
    """What each of some latents is worth: to the reconstruction, and to the model."""

    latents: np.ndarray
    variance: np.ndarray
    """Share of the rows' variance by which the error grows without it."""
    kl: np.ndarray
    """KL of next tokens from the model with the whole reconstruction put in, without it; nats, mean over positions."""

    @property
    def correlation(self) -> float:
        """Rank correlation of both."""
        from scipy.stats import spearmanr

        found: Any = spearmanr(self.variance, self.kl)
        return float(found.statistic)


@checked
@torch.no_grad()
def causal_importance(
    sae: SAE,
    model: SubjectModel,
    tokens: Int[Tensor, "contexts pos"],
    latents: Sequence[int],
    hook: str | None = None,
) -> Importance:
    """Take latents out of the reconstruction, one by one: what of the variance goes, what of the predictions.

    A direction may be large and never be read, or small and decide a token: of two dictionaries that explain as much,
    one may be of what the model uses.

    Args:
        sae: a dictionary of one hook point.
        model: its model, a language model.
        tokens: what it reads. The first position is left as it is.
        latents: which.
        hook: the hook point; what the dictionary knows if not given.

    Raises:
        ConfigError: the dictionary does not know its hook point, predicts another, or has no such latent.
        MismatchError: dictionary and model do not fit.
    """
    hook = hook or sae.metadata.hook
    chosen = np.asarray(list(latents), dtype=np.int64)
    if hook is None or not sae.autoencodes:
        raise ConfigError("causal importance needs an SAE of one hook point: give hook=")
    if not len(chosen) or chosen.min() < 0 or chosen.max() >= sae.n_latents:
        raise ConfigError(f"latents are 0 to {sae.n_latents - 1}, one at least, got {list(latents)[:5]}")
    join(sae, model, hook)
    tokens = tokens.to(model.device)
    x = model.capture(tokens, [hook])[hook][:, 1:]
    rows = x.flatten(0, 1).to(sae.W_enc)
    codes = sae.encode(rows)
    rebuilt, own = sae.decode(codes, rows), codes.select(chosen.tolist()).to_dense()
    error, total = rows - rebuilt, float((rows - rows.mean(0)).pow(2).sum())
    directions = sae.decoder_directions(chosen.tolist()).to(rows)

    def predicted(put_in: Tensor) -> Tensor:
        whole = put_in.view_as(x).to(x)
        with model.edit({hook: lambda given, _: torch.cat([given[:, :1], whole], dim=1)}):
            return model(tokens)[:, 1:].float().log_softmax(-1)

    reference = predicted(rebuilt)
    variance, kl = np.zeros(len(chosen)), np.zeros(len(chosen))
    for number in each("taking latents out", range(len(chosen)), unit="latents"):
        part = own[:, number, None] * directions[number]
        variance[number] = float((2 * (part * error).sum() + part.pow(2).sum()) / total)
        if bool(part.any()):
            without = predicted(rebuilt - part)
            kl[number] = float((reference.exp() * (reference - without)).sum(-1).mean())
    return Importance(chosen, variance, kl)
