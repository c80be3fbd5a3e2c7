"""ms.connections: how features of one place make features of another, whatever the input, and on one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from monosem.arguments import checked
from monosem.circuits.connections.linear import LinearFit, fit_linear
from monosem.circuits.connections.pairs import Pairs, collect, read_pairs, sparse
from monosem.circuits.connections.straight import between, lies_between, through
from monosem.circuits.sites import sites_of
from monosem.data.documents import Text
from monosem.errors import ConfigError
from monosem.interventions.way import Site
from monosem.models import SubjectModel
from monosem.models.blocks import NormWeights
from monosem.sae import SAE
from monosem.work import as_job

MOST = 2**27
"""Weights that are held."""


class Connection(NamedTuple):
    """From a feature to another."""

    source: int
    target: int
    weight: float
    """What a code of 1 adds to the target's pre-activation, where the norm between divides by 1."""
    expected: float
    """What it adds on the mean over tokens, each counted by the target's code; NaN without a text."""
    together: int
    """Tokens on which both are on; -1 without a text."""


@dataclass(frozen=True)
class Connections:
    """The weights between all features of one dictionary and some of another."""

    model: SubjectModel = field(repr=False)
    source: Site = field(repr=False)
    target: Site = field(repr=False)
    norm: NormWeights | None = field(repr=False)
    stream: str | None
    """Where the norm before the target reads."""
    head: tuple[int, int] | None
    """By way of which head of which layer."""
    latents: Int[Tensor, " targets"]
    """The features of the target dictionary."""
    readers: Float[Tensor, "targets d"] = field(repr=False)
    """By what each target's pre-activation grows with the residual stream, where the norm divides by 1."""
    weights: Float[Tensor, "sources targets"]
    pairs: Pairs | None = field(repr=False)
    """Codes of both on a text."""
    expected: Float[Tensor, "sources targets"] | None
    together: Int[Tensor, "sources targets"] | None

    def into(self, latent: int, k: int = 10, corrected: bool = True) -> list[Connection]:
        """The strongest connections into a feature, whatever their sign; by expectation, or by the weight alone."""
        column = self._column(latent)
        by = self.expected if corrected and self.expected is not None else self.weights
        order = by[:, column].abs().topk(min(k, len(by))).indices.tolist()
        return [self._one(source, column) for source in order if by[source, column] != 0]

    def out_of(self, latent: int, k: int = 10, corrected: bool = True) -> list[Connection]:
        """The strongest connections out of a feature."""
        if not 0 <= latent < len(self.weights):
            raise ConfigError(f"there is no latent {latent}: the source has 0 to {len(self.weights) - 1}")
        by = self.expected if corrected and self.expected is not None else self.weights
        order = by[latent].abs().topk(min(k, by.shape[1])).indices.tolist()
        return [self._one(latent, column) for column in order if by[latent, column] != 0]

    @property
    def interference(self) -> float:
        """Of the ten largest weights into each feature that is ever on, the share between features never on together.

        Raises:
            ConfigError: no text was read.
        """
        if self.together is None:
            raise ConfigError("what is interference only a text tells: ms.connections(..., text='bundled')")
        largest = self.weights.abs().topk(min(10, len(self.weights)), dim=0).indices
        alive = self.together.sum(0) > 0
        return float((self.together.gather(0, largest)[:, alive] == 0).double().mean())

    @torch.no_grad()
    def de_embedding(self, latent: int, k: int = 10) -> list[tuple[str, float]]:
        """The tokens whose embeddings alone drive a feature most: of all tokens, the mean subtracted."""
        embedding: Tensor = self.model.module.get_input_embeddings().weight  # type: ignore[operator]
        scores = embedding.to(self.weights) @ self.readers[self._column(latent)].to(self.weights)
        scores = scores - scores.mean()
        top = scores.topk(min(k, len(scores)))
        tokenizer = self.model.tokenizer
        names = [str(t) if tokenizer is None else tokenizer.decode([t]) for t in top.indices.tolist()]
        return list(zip(names, top.values.tolist(), strict=True))

    def on(self, inputs: Any) -> OnInput:
        """What connections do on a prompt: code times weight over the norm's scale, token by token.

        Raises:
            ConfigError: the connections are by way of a head: see `ms.direct_attribution`, `ms.trace`.
            DataError: nothing of it is read.
        """
        if self.head is not None:
            raise ConfigError("by way of a head an input's part needs its pattern: ms.direct_attribution, ms.trace")
        if isinstance(inputs, list | tuple) and all(isinstance(text, str) for text in inputs):
            inputs = self.model.padded(list(inputs))
        pairs, way = read_pairs(self.model, (self.source, self.target), inputs, self.stream, self.norm)
        first, second = (way.sites if way.sites[0].read == self.source.read else way.sites[::-1])[:2]
        both = first.kept & second.kept
        return OnInput(self, pairs, pre_activations(second, both, self.latents), both.nonzero())

    @as_job
    def linear(
        self,
        penalties: Sequence[float] = (0.3, 0.1, 0.03, 0.01),
        *,
        held_out: float = 0.25,
        fewest: int = 50,
        progress: bool = True,
    ) -> LinearFit:
        """Each target feature as a sparse linear sum of source features: which are linear, in spite of what is between?

        Codes are divided by the root of their mean square, so that a penalty means the same for all: minimise
        E|f2 - f1 W|^2 / 2 + penalty |W|, no constant. Fitted on documents of which none is among those held out; there
        the share of variance explained is measured, beside that of the weights (`weights`, one factor for each feature
        fitted) and of the fit on other tokens' codes.

        Source: Sparse features through time and layers: linear connections between SAE features, LessWrong 2024.

        Args:
            penalties: as shares of the largest at which anything is used; the largest first.
            held_out: share of documents.
            fewest: target features that are on so often, in both parts, are fitted.
            progress: show where it is.

        Raises:
            ConfigError: no text was read.
            DataError: no feature is on often enough.
        """
        if self.pairs is None:
            raise ConfigError("a fit needs a text: ms.connections(..., text='bundled')")
        return fit_linear(self.pairs, self.latents, self.weights, penalties, held_out, fewest)

    def _column(self, latent: int) -> int:
        found = (self.latents == latent).nonzero()
        if not len(found):
            raise ConfigError(f"latent {latent} is not among the targets: ms.connections(..., latents=[{latent}])")
        return int(found[0, 0])

    def _one(self, source: int, column: int) -> Connection:
        expected = float("nan") if self.expected is None else float(self.expected[source, column])
        together = -1 if self.together is None else int(self.together[source, column])
        return Connection(source, int(self.latents[column]), float(self.weights[source, column]), expected, together)

    def __str__(self) -> str:
        words = f"{self.source.write} -> {self.target.read}: {len(self.weights):,} x {len(self.latents):,} weights"
        if self.pairs is None:
            return words
        return (
            f"{words}, {len(self.pairs):,} tokens; {self.interference:.0%} of the ten largest weights into a feature "
            "are between features never on together"
        )


@dataclass(frozen=True)
class OnInput:
    """What the connections do on one input."""

    connections: Connections = field(repr=False)
    pairs: Pairs = field(repr=False)
    pre_activations: Float[Tensor, "tokens targets"]
    places: Int[Tensor, "tokens 2"]
    """Context and position of each token."""

    @torch.no_grad()
    def parts(self, latent: int) -> Float[Tensor, "tokens sources"]:
        """What every source feature adds to a target's pre-activation at every token."""
        column = self.connections._column(latent)
        scaled = self.pairs.source.to_dense() / self.pairs.shrunk[:, None]
        return scaled * self.connections.weights[:, column]

    def rest(self, latent: int) -> Float[Tensor, " tokens"]:
        """What of the pre-activation comes otherwise: attention, other layers, tokens, biases, errors."""
        return self.pre_activations[:, self.connections._column(latent)] - self.parts(latent).sum(1)


@torch.no_grad()
def pre_activations(site: Site, chosen: Tensor, latents: Int[Tensor, " m"]) -> Float[Tensor, "rows m"]:
    """Before selection and activation function, of the rows at some places."""
    sae, rows = site.sae, site.rows[chosen[site.kept]]
    W_enc, b_enc, _ = sae.part(latents)
    return sae.centred(sae.transform(rows.to(W_enc.dtype))) @ W_enc.T + b_enc


@checked
@as_job
def connections(
    model: SubjectModel,
    source: SAE,
    target: SAE,
    text: Text | None = None,
    *,
    head: tuple[int, int] | None = None,
    latents: Sequence[int] | None = None,
    tokens: int = 100_000,
    progress: bool = True,
) -> Connections:
    """The weights from features of one dictionary straight into features of a later one, by the residual stream.

    found = ms.connections(model, transcoder_1, transcoder_2, text="bundled")
    print(found); found.into(12); found.de_embedding(12); found.on("The king").parts(12)

    weight = decoder row . encoder row, through the norm between, whose gain and centring count and whose scale is each
    token's own. It is the same for every input, and much of it is interference: features that share directions and are
    never on together. What is expected of it is weighted by how they are:

        expected = E[source code * target code / scale] / E[target code] * weight

    Sources: Dunefsky et al., Transcoders Find Interpretable LLM Feature Circuits, 2024; Ameisen et al., Circuit
    Tracing, 2025 ("target-weighted expected residual attribution").

    Args:
        model: the model.
        source: a transcoder, or an SAE, that writes to the residual stream.
        target: one that reads it later, or an MLP's input.
        text: what to see them together on; without it there are weights alone.
        head: by way of this head of this layer, (layer, head): from the token that it looks at, where it looks with a
            weight of 1; without it straight on, at the same token.
        latents: target features; all if not given.
        tokens: how much of the text is read.
        progress: show where it is.

    Raises:
        ConfigError: nothing leads from one to the other straight, or there would be too many weights.
        DataError: the text has no token that both read.
        MismatchError: a dictionary does not fit the model.
    """
    first, second = (sites_of(model, [sae])[0] for sae in (source, target))
    stream, norm = between(model, first, second)
    for transform in (first.sae.target_transform, second.sae.transform):
        transform.require_affine()
    chosen = second.sae._numbers(latents)
    if first.sae.n_latents * len(chosen) > MOST:
        raise ConfigError(
            f"{first.sae.n_latents:,} x {len(chosen):,} weights are more than {MOST:,}: choose some with latents="
        )
    readers = second.sae.encoder_directions(chosen)
    readers = readers if norm is None else norm.read_before(readers)
    if head is not None:
        lies_between(model, first.write, second.read, head[0])
        readers = through(model, *head, readers)
        if text is not None:
            raise ConfigError("by way of a head features are on at different tokens: leave the text out")
    weights = first.sae.decoder_directions().to(readers) @ readers.T
    if text is None:
        return Connections(model, first, second, norm, stream, head, chosen, readers, weights, None, None, None)
    pairs = collect(model, first, second, text, tokens, stream, norm)
    theirs = sparse(pairs.target)[:, chosen.cpu().numpy()]
    mine = sparse(pairs.source, 1 / pairs.shrunk)
    common = torch.from_numpy((mine.T @ theirs).toarray()).to(weights)
    counts = torch.from_numpy(((mine > 0).astype("float64").T @ (theirs > 0).astype("float64")).toarray())
    totals = torch.from_numpy(theirs.sum(0)).to(weights)
    expected = weights * common / torch.where(totals > 0, totals, 1)
    together = counts.to(weights.device, torch.int64)
    return Connections(model, first, second, norm, stream, head, chosen, readers, weights, pairs, expected, together)
