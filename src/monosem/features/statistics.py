# pyright: basic, reportAttributeAccessIssue=false
"""What a store says of latents beyond their examples: tokens, neighbours, co-firing, logit weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor

from monosem.analysis import direction_logits, logit_weights, moments
from monosem.features import described, streaming
from monosem.features.described import ByLatent
from monosem.features.log import Logged, as_floats
from monosem.features.ranking import largest_first
from monosem.features.state import Harvest
from monosem.kernels.parallel import parallel
from monosem.models import SubjectModel
from monosem.sae import SAE

TILE_ENTRIES = 2**24
ROW_SALT = 4
STRONGEST = 32
"""Latents of a token that count for co-firing."""


class Ranked(NamedTuple):
    """For every latent up to m others (or tokens), best first: -1 where there are fewer."""

    indices: np.ndarray
    """(n, m)"""
    values: np.ndarray
    """(n, m)"""


class FiringTokens(NamedTuple):
    """The tokens on which every latent fires most, counted in the log."""

    tokens: Ranked
    """And their shares of its firings."""
    recalls: np.ndarray
    """(n, m) share of the token's occurrences on which it fires."""
    logged: np.ndarray
    """(n,) its firings in the log."""


def firing_tokens(harvest: Harvest, logged: Logged, firings: ByLatent, m: int) -> FiringTokens:
    """Count them: of all firings while the log holds every context, else of those of random contexts."""
    size = harvest.vocabulary_size
    tokens, counts = described.firing_tokens(firings, logged.tokens, size, m)
    occurrences = np.bincount(logged.tokens[logged.read], minlength=size)
    shares = counts / np.maximum(1, firings.counts)[:, None]
    recalls = counts / np.maximum(1, occurrences[tokens])
    return FiringTokens(Ranked(tokens, shares.astype(np.float32)), recalls.astype(np.float32), firings.counts)


def cofiring(harvest: Harvest, logged: Logged, m: int, at_least: int = 3) -> tuple[Ranked, np.ndarray]:
    """The latents that fire together with each, by cosine of their firing patterns: share of its firings; and lift.

    Measured on random tokens of the log, on the strongest latents of each.
    """
    places = np.repeat(logged.places, logged.n_tokens)
    starts = np.cumsum(logged.n_tokens, dtype=np.int64) - logged.n_tokens
    places = (places + np.arange(len(places)) - np.repeat(starts, logged.n_tokens))[logged.read]
    keys = streaming.hashes(harvest.settings.seed, np.full(len(places), -ROW_SALT), places)
    n = harvest.settings.cofiring_rows or 8 * harvest.n_latents
    chosen = np.sort(np.argpartition(keys, n)[:n]) if n < len(keys) else np.arange(len(keys))
    offsets = np.concatenate([[0], np.cumsum(logged.fired[logged.read], dtype=np.int64)])
    latents = np.full((len(chosen), STRONGEST), -1, np.int32)
    streaming.strongest(offsets, logged.latents, as_floats(logged.values), chosen, latents)
    rows, ranks = np.nonzero(latents >= 0)
    indices = latents[rows, ranks].astype(np.int64)
    order = np.argsort(indices, kind="stable")
    counts = np.bincount(indices, minlength=harvest.n_latents)
    starts = np.concatenate([[0], np.cumsum(counts)])
    found, together = _together(starts, rows[order], latents, counts, m, at_least)
    shares = together / np.maximum(1, counts)[:, None]
    lifts = shares * len(latents) / np.maximum(1, counts[found])
    return Ranked(found, shares.astype(np.float32)), lifts.astype(np.float32)


@parallel()
def _together(starts, rows, latents, counts, m, at_least):
    n = len(counts)
    found, together = np.full((n, m), -1), np.zeros((n, m), np.int64)
    for latent in prange(n):
        if counts[latent] < at_least:
            continue
        beside = np.zeros(n, np.int64)
        for e in range(starts[latent], starts[latent + 1]):
            for other in latents[rows[e]]:
                if other < 0:
                    break
                beside[other] += 1
        beside[latent] = 0
        candidates = np.flatnonzero(beside >= at_least)
        scores = beside[candidates] / np.sqrt(counts[candidates])
        best = largest_first(scores, candidates, m)
        for i in range(len(best)):
            found[latent, i], together[latent, i] = candidates[best[i]], beside[candidates[best[i]]]
    return found, together


@torch.no_grad()
def decoder_neighbours(sae: SAE, m: int) -> Ranked:
    """The decoder rows closest to each by cosine, in raw units."""
    rows = sae.decoder_directions().float().flatten(1)
    rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    n, m = len(rows), min(m, len(rows) - 1)
    found: list[Tensor] = []
    cosines: list[Tensor] = []
    for tile in torch.arange(n, device=rows.device).split(max(1, TILE_ENTRIES // n)):
        products = rows[tile] @ rows.T
        products[torch.arange(len(tile)), tile] = -2
        best = products.topk(m, dim=-1)
        found.append(best.indices.cpu())
        cosines.append(best.values.cpu())
    return Ranked(torch.cat(found).numpy(), torch.cat(cosines).clamp(-1, 1).numpy())


@torch.no_grad()
def encoder_cosines(sae: SAE) -> np.ndarray | None:
    """Cosine between every latent's encoder and decoder rows in raw units; None where they live in different spaces."""
    if sae.in_shape != sae.out_shape:
        return None
    encoder, decoder = (rows.float().flatten(1) for rows in (sae.encoder_directions(), sae.decoder_directions()))
    return torch.cosine_similarity(encoder, decoder, dim=-1).cpu().numpy()


class LogitEffects(NamedTuple):
    """What every latent does to the logits of the vocabulary, if its direction reaches the output unchanged."""

    promoted: Ranked
    suppressed: Ranked
    moments: np.ndarray
    """(n, 4): mean, deviation, skew, kurtosis of its weights over the vocabulary."""


def logit_effects(sae: SAE, model: SubjectModel, m: int, tokens: np.ndarray) -> LogitEffects:
    """What the latents of a dictionary of one place do to the logits, as `logits_of`."""
    return _effects(lambda tile: logit_weights(sae, model, tile.tolist()), sae.n_latents, m, tokens)


def logits_of(
    directions: Callable[[Tensor], Tensor], n: int, model: SubjectModel, m: int, tokens: np.ndarray
) -> LogitEffects:
    """Promoted and suppressed tokens of directions (latents, d_model) in the residual stream, given tile by tile.

    Raises:
        ConfigError: the model has no output embeddings, or they read another width.
    """
    return _effects(lambda tile: direction_logits(directions(tile), model), n, m, tokens)


@torch.no_grad()
def _effects(logits: Callable[[Tensor], Tensor], n: int, m: int, tokens: np.ndarray) -> LogitEffects:
    """Promoted and suppressed tokens, with weights relative to the vocabulary's mean, and the weights' moments.

    Only `tokens` count, which ascend: models have output rows (padding, holes between ids) that stand for none.
    """
    parts: list[tuple[Tensor, ...]] = []
    m = min(m, len(tokens))
    for tile in torch.arange(n).split(max(1, TILE_ENTRIES // max(1, len(tokens)))):
        weights = logits(tile).float()
        if len(tokens) < weights.shape[1]:
            weights = weights[:, torch.from_numpy(tokens).to(weights.device)]
        of_rows = moments(weights)
        weights = weights - of_rows[:, :1]
        high, low = weights.topk(m), weights.topk(m, largest=False)
        parts.append((high.indices, high.values, low.indices, low.values, of_rows))
    high, weights, low, low_weights, of_rows = (torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True))
    return LogitEffects(Ranked(tokens[high], weights), Ranked(tokens[low], low_weights), of_rows)
