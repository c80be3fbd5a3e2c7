"""ms.positional: which latents say where a token stands, which say what it is; and the error at each position."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from monosem.activations.check import join
from monosem.activations.inputs import open_text
from monosem.activations.reading import Reading, Wanted, positions_wanted
from monosem.analysis.position_shares import PositionSums, beyond_chance, corrected, p_values
from monosem.arguments import NotNegative, Positive, checked
from monosem.data import PackedText
from monosem.data.documents import Text
from monosem.errors import ConfigError, DataError
from monosem.models import SubjectModel
from monosem.sae import SAE
from monosem.work import doing
from monosem.work.progress import as_job

ROWS_AT_ONCE = 8_192
FEWEST = 20
"""Firings below which nothing is said of a latent."""
COUNTED = 200_000
"""Tokens by which the frequency of tokens is known."""


@dataclass
class ErrorByPosition:
    """What a dictionary leaves unexplained at each position, and what of that is the same for every token there."""

    positions: np.ndarray
    fvu: np.ndarray
    """Squared error over variance."""
    by_position: np.ndarray
    """Share of the squared error that is its mean at that position: what position alone could mend."""
    in_positional: np.ndarray
    """Share of that mean's square that lies in the span of the positional latents' decoder rows."""
    in_others: np.ndarray
    """The same of as many other latents, drawn at random; NaN where none are positional."""
    trained_to: int | None
    """The context length that the dictionary was trained with."""


@dataclass
class Positional:
    """Shares of every latent's variance, and what they make of it."""

    hook: str
    exact: bool
    """Whether every token stood at every position, so that shares are exact; else they are of text as it comes."""
    coverage: float
    """Where they are exact: share of the text's tokens that were enumerated."""
    n_rows: int
    position: np.ndarray
    """(n_latents,) share of the variance by position alone, beyond chance where it is of text; NaN: fires rarely."""
    token: np.ndarray
    """The same by token alone."""
    null: np.ndarray
    """Mean share by position with contexts turned about."""
    p: np.ndarray
    q: np.ndarray
    """p corrected for the number of latents."""
    firing: np.ndarray
    """Share of rows on which each fires."""
    profiles: np.ndarray = field(repr=False)
    """(positions, n_latents) mean activation at each position."""
    least: float
    error: ErrorByPosition | None = None
    """Where it is of text."""

    def latents(self, kind: str = "positional") -> np.ndarray:
        """Numbers of the "positional", "semantic" or "mixed" latents, the most so first.

        Of positional ones position explains at least `least` of the variance and more than under the null (q < 0.05);
        semantic ones are those of which the token does; mixed are both.
        """
        by_position = (self.q < 0.05) & (np.nan_to_num(self.position) >= self.least)
        by_token = np.nan_to_num(self.token) >= self.least
        chosen = {
            "positional": (by_position & ~by_token, self.position),
            "semantic": (by_token & ~by_position, self.token),
            "mixed": (by_position & by_token, self.position),
        }
        if kind not in chosen:
            raise ConfigError(f"kind is one of {', '.join(chosen)}, got {kind!r}")
        which, share = chosen[kind]
        found = np.flatnonzero(which)
        return found[np.argsort(-share[found], kind="stable")]

    def __str__(self) -> str:
        said = np.isfinite(self.position)
        how = f"every token at every position ({self.coverage:.0%} of the text's tokens)" if self.exact else "text"
        lines = [f"{self.hook}: {self.n_rows:,} rows, {how}; {said.sum():,} of {len(said):,} latents fire often enough"]
        for kind in ("positional", "semantic", "mixed"):
            found = self.latents(kind)
            first = ", ".join(f"{i} ({self.position[i]:.0%}, {self.token[i]:.0%})" for i in found[:4])
            lines.append(f"{kind:10} {len(found):6,}  {first}")
        lines.append("in brackets: share of the variance by position alone, by token alone")
        if self.error is not None and self.error.trained_to is not None:
            past = self.error.positions >= self.error.trained_to
            if past.any() and (~past).any():
                parts = [f"{name} {self.error.fvu[w].mean():.3f}" for name, w in (("within", ~past), ("past", past))]
                mended = [f"{self.error.by_position[w].mean():.1%}" for w in (~past, past)]
                lines.append(
                    f"error (FVU) {', '.join(parts)} its training context of {self.error.trained_to}; "
                    f"position alone could mend {mended[0]} and {mended[1]} of it"
                )
        return "\n".join(lines)


@checked
@torch.no_grad()
@as_job
def positional(
    sae: SAE,
    model: SubjectModel,
    hook: str | None = None,
    *,
    text: Text = "bundled:held_out",
    tokens: int = 100_000,
    context_length: Positive | None = None,
    exact: bool | None = None,
    most_rows: Positive = 2_000_000,
    turns: int = 100,
    least: float = 0.1,
    seed: NotNegative = 0,
    progress: bool = True,
) -> Positional:
    """Which latents say where a token stands, and which say what it is.

    found = ms.positional(sae, model)
    print(found)                                  # how many of each kind
    found.latents("positional"), found.profiles   # which, and their mean activation by position

    The score of a latent is the share of its variance that the position alone explains. Where the hook point comes
    before attention, an activation is a function of token and position: every token is put at every position, each
    counting as often as it is in the text, and the shares by position, by token and by both together are exact and add
    up to 1. Elsewhere they are of text. The null turns contexts about, each group by itself, so that what is alike
    in neighbouring positions stays and what is bound to a position goes.

    Sources: Chughtai & Lau, Understanding positional features in layer 0 SAEs, 2024.

    Args:
        sae: the dictionary.
        model: its model.
        hook: its hook point; what it knows if not given.
        text: what `ms.activations` takes.
        tokens: rows to read of it.
        context_length: tokens in a context; the dictionary's own if not given. A longer one shows what happens past it.
        exact: enumerate, or do not; if not given, wherever the hook point allows it.
        most_rows: of an enumeration; where there are more tokens times positions, the most frequent tokens are taken.
        turns: how often the null is drawn.
        least: share of the variance from which a latent is called positional, or semantic.
        seed: of the null.
        progress: show how far it is.

    Raises:
        ConfigError: the hook point does not allow what is asked, or the dictionary reads several places.
        DataError: there is too little text.
        MismatchError: dictionary and model do not fit.
    """
    hook = hook or sae.metadata.hook
    if hook is None or len(sae.in_shape) > 1:
        raise ConfigError("positional needs a dictionary of one hook point: positional(sae, model, 'resid_pre.0')")
    if tokens < 1 or turns < 2 or not 0 < least < 1:
        raise ConfigError(f"tokens >= 1, turns >= 2 and 0 < least < 1, got {tokens}, {turns} and {least}")
    hook = model.hook_point(hook).name
    join(sae, model, hook)
    known = sae.metadata
    contexts, _ = open_text(
        model,
        text,
        context_length=context_length or _fitting(known.context_length, model),
        prepend_bos=known.prepend_bos,
        packing=known.packing,
    )
    before_attention = of_token_and_position(model, hook, contexts)
    if exact and not before_attention:
        raise ConfigError(f"what stands at {hook} depends on other tokens too: leave exact out, to read text")
    if before_attention and exact is not False:
        sums, coverage = _enumerated(sae, model, hook, contexts, most_rows)
        errors = None
    else:
        sums, errors = _read(sae, model, hook, contexts, tokens)
        coverage = 1.0
    return _put_together(sae, hook, sums, errors, coverage, turns, least, seed)


def _fitting(length: int | None, model: SubjectModel) -> int | None:
    return length if length is None or model.context_length is None else min(length, model.context_length)


@torch.no_grad()
def of_token_and_position(model: SubjectModel, hook: str, contexts: PackedText) -> bool:
    """Whether what stands at a hook point is a function of token and position alone, by what the model does."""
    batch = contexts.read(0, 1).tokens.to(model.device)
    length = batch.shape[1]
    x = model.capture(batch, [hook])[hook][0]
    for position in sorted({length // 3, length - 1}):
        filled = torch.full_like(batch, int(batch[0, position]))
        alone = model.capture(filled, [hook])[hook][0]
        if not torch.allclose(alone[position], x[position], rtol=1e-3, atol=1e-4 * float(x.abs().max())):
            return False
    return True


def _enumerated(
    sae: SAE, model: SubjectModel, hook: str, contexts: PackedText, most_rows: int
) -> tuple[PositionSums, float]:
    """Every token at every position that the text has them at."""
    length, counts = contexts.context_length, Counter[int]()
    batch = contexts.read(0, max(1, COUNTED // length))
    kept = positions_wanted(sae.metadata, batch)
    for token, n in zip(*(each.tolist() for each in batch.tokens[kept].unique(return_counts=True)), strict=True):
        counts[token] = n
    places = torch.nonzero(kept.any(0)).flatten()
    if not len(places):
        raise DataError("the text has nothing that the dictionary reads")
    chosen = counts.most_common(max(1, most_rows // len(places)))
    sums, total = PositionSums(length, sae.n_latents), sum(counts.values())
    at_once = max(1, ROWS_AT_ONCE // length)
    with doing("putting every token at every position", len(chosen) * len(places), unit="rows") as work:
        for start in range(0, len(chosen), at_once):
            ids = torch.tensor([token for token, _ in chosen[start : start + at_once]])
            x = model.capture(ids[:, None].expand(-1, length), [hook])[hook][:, places.to(model.device)]
            weights = torch.tensor([counts[token] / total / len(places) for token in ids.tolist()])
            numbers = torch.arange(start, start + len(ids))
            context, token, weight = (each.repeat_interleave(len(places)) for each in (numbers, ids, weights))
            codes = sae.encode(x.flatten(0, 1).to(sae.W_enc.dtype))
            sums.add(codes, context, places.repeat(len(ids)), token, weight)
            work.advance(len(ids) * len(places))
    return sums, sum(n for _, n in chosen) / total


class _Errors:
    """Sums of reconstruction errors by position."""

    def __init__(self, positions: int, width: int) -> None:
        self.count = torch.zeros(positions, dtype=torch.float64)
        self.squared, self.own = torch.zeros_like(self.count), torch.zeros_like(self.count)
        self.error = torch.zeros(positions, width, dtype=torch.float64)
        self.row = torch.zeros(width, dtype=torch.float64)

    def add(self, x: Float[Tensor, "rows d"], rebuilt: Float[Tensor, "rows d"], positions: Tensor) -> None:
        error = (x - rebuilt).cpu().double()
        self.count.index_add_(0, positions, torch.ones(len(x), dtype=torch.float64))
        self.squared.index_add_(0, positions, error.pow(2).sum(1))
        self.own.index_add_(0, positions, x.cpu().double().pow(2).sum(1))
        self.error.index_add_(0, positions, error)
        self.row += x.cpu().double().sum(0)

    def mean(self) -> Float[Tensor, "positions d"]:
        return self.error / self.count.clamp_min(1)[:, None]


def _read(sae: SAE, model: SubjectModel, hook: str, contexts: PackedText, tokens: int) -> tuple[PositionSums, _Errors]:
    sums, errors = PositionSums(contexts.context_length, sae.n_latents), _Errors(contexts.context_length, sae.d_out)
    reading = Reading(model, contexts, [Wanted(sae.metadata, [hook])], tokens)
    with doing("reading", tokens, unit="tokens") as work:
        for piece in reading:
            kept, x = piece.found[0].kept, piece.found[0].rows[hook]
            context, position = torch.nonzero(kept, as_tuple=True)
            x = x.to(sae.W_enc)
            codes = sae.encode(x)
            sums.add(codes, context + piece.start, position, piece.batch.tokens[kept], torch.ones(len(x)))
            if sae.autoencodes:
                errors.add(x, sae.decode(codes, x), position)
            work.advance(len(x))
    if sums.rows < 2 * contexts.context_length:
        raise DataError(
            f"the text gave {sums.rows:,} rows, too few for {contexts.context_length} positions: give more tokens"
        )
    return sums, errors


def _put_together(
    sae: SAE,
    hook: str,
    sums: PositionSums,
    errors: _Errors | None,
    coverage: float,
    turns: int,
    least: float,
    seed: int,
) -> Positional:
    share, token = sums.position_share(), sums.token_share()
    with doing("turning contexts about"):
        null = sums.null(turns, seed)
    p = p_values(share, null)
    if errors is not None:
        read = int((sums.weights.sum(0) > 0).sum())
        share = beyond_chance(share, read, sums.rows)
        token = beyond_chance(token, len(sums.token_weights), sums.rows)
    rare = (sums.firings < FEWEST).numpy()
    p = np.where(rare, 1.0, p)
    q = np.ones_like(p)
    q[~rare] = corrected(p[~rare])
    position, by_token = (np.where(rare, np.nan, each.numpy()) for each in (share, token))
    firing = sums.firings.numpy() / sums.rows
    found = Positional(
        hook,
        errors is None,
        coverage,
        sums.rows,
        position,
        by_token,
        null.mean(0).numpy(),
        p,
        q,
        firing,
        sums.profiles().numpy(),
        least,
    )
    if errors is not None and sae.autoencodes:
        found.error = _error(sae, errors, found.latents("positional"), seed)
    return found


def _error(sae: SAE, errors: _Errors, latents: np.ndarray, seed: int) -> ErrorByPosition:
    there = errors.count > 1
    n = errors.count[there]
    squared = errors.squared[there] / n
    centre = errors.row / errors.count.sum()
    variance = errors.own.sum() / errors.count.sum() - centre.pow(2).sum()
    mean = errors.mean()[there]
    bound = mean.pow(2).sum(1)
    alone = ((bound - (squared - bound) / (n - 1)) / squared).clamp(0, 1)  # less what chance leaves of a mean of n
    others = np.setdiff1d(np.arange(sae.n_latents), latents)
    drawn = np.random.default_rng(seed).permutation(others)[: len(latents)]
    spans = [in_span(mean, sae, each).pow(2).sum(1) / bound.clamp_min(1e-300) for each in (latents, drawn)]
    positions = torch.nonzero(there).flatten().numpy()
    fvu, by_position, *inside = (part.numpy() for part in (squared / variance, alone, *spans))
    return ErrorByPosition(positions, fvu, by_position, inside[0], inside[1], sae.metadata.context_length)


def in_span(rows: Float[Tensor, "rows d"], sae: SAE, latents: np.ndarray) -> Float[Tensor, "rows d"]:
    """The part of rows that lies in the span of some latents' decoder rows; zero of none."""
    if not len(latents):
        return torch.zeros_like(rows)
    directions = sae.decoder_directions([int(i) for i in latents]).to(rows)
    _, sizes, basis = torch.linalg.svd(directions, full_matrices=False)
    basis = basis[sizes > 1e-6 * sizes[0]]
    return rows @ basis.T @ basis
