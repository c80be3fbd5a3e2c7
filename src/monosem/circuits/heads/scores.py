"""What attention heads do, measured while the model reads: one pass, nothing kept but sums of each document.

Every document is read as it is, and once more as a probe: some of its tokens, each once, in random order, twice in a
row. In a probe nothing but the repetition tells what comes next, so that a head that attends by it is seen for what it
is.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from monosem.analysis.logit_lens import direction_logits
from monosem.circuits.heads.weights import n_heads, output_matrix
from monosem.data import PackedText
from monosem.models import SubjectModel

MEANING = {
    "induction": "attention, in a repeated random sequence, to the token after this one's earlier occurrence",
    "duplicate": "attention, in a repeated random sequence, to this token's earlier occurrence",
    "previous": "attention to the token before",
    "beginning": "attention to the first position",
    "entropy": "entropy of the pattern, in nats: how widely it attends",
    "copying": "by how many standard deviations over the vocabulary what it writes of a token raises that very token",
    "norm": "length of what it writes, as a share of the length of the residual stream that it reads",
    "successor": "how often, of one, two, ... or Monday, Tuesday, ..., it raises the next most, of all in the row",
}
"""What each score is."""
PROBE = 48
"""Tokens that a probe repeats, at most."""
SAMPLED = 8
"""Tokens of each document that copying is measured on."""
LEAST = 8
"""Different tokens of a document that is worth reading."""


class Example(NamedTuple):
    """Where a head moved most in a document: from a key to a query."""

    strength: float
    """The attention, times the length of what the head would write of the key alone."""
    document: int
    """Number in `texts`."""
    query: int
    key: int
    attention: float


@dataclass
class Reading:
    """Documents and probes that stand in one batch."""

    tokens: Int[Tensor, "contexts pos"]
    mask: Bool[Tensor, "contexts pos"]
    first: int
    """Number of the first document; contexts 0 to n - 1 are documents, n to 2 n - 1 their probes."""
    probe_lengths: list[int]
    begins: int
    """Where the first copy begins in a probe: after the beginning-of-sequence token, if there is one."""

    @property
    def n(self) -> int:
        return len(self.probe_lengths)


@dataclass
class Sums:
    """Of every document and head the mean of each score."""

    n_layers: int
    n_heads: int
    best: int
    values: dict[str, list[np.ndarray]] = field(default_factory=dict[str, list[np.ndarray]])
    """Of each score (layers, heads) for every document."""
    chances: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Of each document what attention alike to all that is visible would give."""
    examples: dict[tuple[int, int], list[Example]] = field(default_factory=dict[tuple[int, int], list[Example]])
    texts: list[list[int]] = field(default_factory=list[list[int]])

    def note(self, score: str, layer: int, values: Float[Tensor, "documents heads"]) -> None:
        """Take in the means of some documents in one layer."""
        every = self.values.setdefault(score, [])
        ready = len(self.texts)
        for number, row in enumerate(values.double().cpu().numpy(), ready - len(values)):
            while len(every) <= number:
                every.append(np.full((self.n_layers, self.n_heads), np.nan))
            every[number][layer] = row

    def note_example(self, layer: int, head: int, example: Example) -> None:
        """Keep it if it is among the strongest of its head."""
        kept = self.examples.setdefault((layer, head), [])
        (heapq.heappush if len(kept) < self.best else heapq.heappushpop)(kept, example)


def readings(contexts: PackedText, begins: int, documents: int, at_once: int, seed: int) -> Iterator[Reading]:
    """Documents, each with its probe, a few at a time: the beginning of each, until there are so many or no more."""
    rng = np.random.default_rng(seed)
    texts = itertools.islice(_texts(contexts, begins), documents)
    first = 0
    while some := list(itertools.islice(texts, at_once)):
        yield _reading(some, begins, first, (contexts.context_length - begins) // 2, rng)
        first += len(some)


def _texts(contexts: PackedText, begins: int) -> Iterator[list[int]]:
    """The first context of every document, once each."""
    seen = set[int]()
    for batch in contexts.in_batches(32):
        columns = zip(batch.tokens, batch.document, batch.position, batch.padding, strict=True)
        for tokens, numbers, places, padding in columns:
            real = numbers >= 0
            if not bool(real.any()) or int(places[real][0]) != 0:
                continue
            if int(numbers[real][0]) in seen:  # all have been read, and they begin anew
                return
            seen.add(int(numbers[real][0]))
            text = tokens[~padding].tolist()
            if len(set(text[begins:])) >= LEAST:
                yield text


def _reading(texts: list[list[int]], begins: int, first: int, most: int, rng: np.random.Generator) -> Reading:
    probes = [rng.permutation(np.unique(text[begins:]))[: min(PROBE, most)].tolist() for text in texts]
    rows = texts + [text[:begins] + probe + probe for text, probe in zip(texts, probes, strict=True)]
    length = max(map(len, rows))
    tokens = torch.tensor([row + [row[-1]] * (length - len(row)) for row in rows])
    mask = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    return Reading(tokens, mask, first, [len(probe) for probe in probes], begins)


class Watch:
    """Functions for all hook points of attention, which add to the sums what a reading shows."""

    def __init__(self, model: SubjectModel, sums: Sums, seed: int) -> None:
        self.model, self.sums, self.heads = model, sums, n_heads(model)
        self.generator = torch.Generator().manual_seed(seed)
        identity = torch.eye(model.d_model, device=model.device)
        read = direction_logits(identity, model).T.float()
        self._unembedding = read
        self._mean = read.mean(0)
        centred = read - self._mean
        self._covariance = centred.T @ centred / len(read)

    def functions(self, reading: Reading, tokens: Tensor) -> dict[str, Callable[[Tensor, Any], Tensor]]:
        """By hook point. They change nothing."""
        found: dict[str, Callable[[Tensor, Any], Tensor]] = {}
        length = torch.arange(reading.tokens.shape[1], device=tokens.device)
        mask = reading.mask.to(tokens.device)
        inner = mask & (length >= 1)
        chosen = self._chosen(inner[: reading.n] & (length >= reading.begins))
        for layer in range(self.model.n_layers):
            look = _Layer(self, layer, reading, tokens, inner, chosen)
            found |= {
                f"resid_pre.{layer}": look.stream,
                f"attn_v.{layer}": look.values,
                f"attn_pattern.{layer}": look.pattern,
                f"attn_z.{layer}": look.result,
            }
        return found

    def _chosen(self, possible: Bool[Tensor, "documents pos"]) -> Int[Tensor, "documents sampled"]:
        weights = possible.float().cpu()
        return torch.multinomial(weights, SAMPLED, replacement=True, generator=self.generator).to(possible.device)

    def raised(self, rows: Float[Tensor, "*some d"], tokens: Int[Tensor, "*some"]) -> Float[Tensor, "*some"]:
        """By how many standard deviations over the vocabulary directions raise a token's logit each."""
        rows = rows.float()
        spread = (rows @ self._covariance * rows).sum(-1).clamp(min=1e-30).sqrt()
        return ((self._unembedding[tokens] - self._mean) * rows).sum(-1) / spread

    def logits(self, rows: Float[Tensor, "*some d"], tokens: Int[Tensor, " n"]) -> Float[Tensor, "*some n"]:
        return rows.float() @ self._unembedding[tokens].T


class _Layer:
    """What is seen of one layer in one reading."""

    def __init__(
        self, watch: Watch, layer: int, reading: Reading, tokens: Tensor, inner: Tensor, chosen: Tensor
    ) -> None:
        self.watch, self.layer, self.reading, self.tokens = watch, layer, reading, tokens
        self.inner, self.chosen = inner, chosen
        self.n = reading.n
        self.W_O = output_matrix(watch.model, layer).float()
        self.gram = self.W_O.transpose(1, 2) @ self.W_O

    def note(self, score: str, values: Float[Tensor, "documents heads"]) -> None:
        self.watch.sums.note(score, self.layer, values)

    def mean(self, x: Float[Tensor, "documents heads pos"], which: Bool[Tensor, "documents pos"]) -> Tensor:
        """Over some positions of each document."""
        chosen = which[:, None]
        return torch.where(chosen, x, 0).sum(-1) / chosen.sum(-1).clamp(min=1)

    def length(self, x: Float[Tensor, "batch heads pos d_head"]) -> Float[Tensor, "batch heads pos"]:
        """Of what is written of it."""
        return torch.einsum("bhpd,hde,bhpe->bhp", x, self.gram, x).clamp(min=0).sqrt()

    def by_head(self, x: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch heads pos d_head"]:
        x = x.unflatten(-1, (-1, self.W_O.shape[-1])).transpose(1, 2).float()
        return x.repeat_interleave(self.watch.heads // x.shape[1], dim=1)

    def stream(self, x: Tensor, _: object) -> Tensor:
        self.stream_length = x[: self.n].float().norm(dim=-1)
        return x

    def values(self, x: Tensor, _: object) -> Tensor:
        values = self.by_head(x[: self.n])
        self.value_length = self.length(values)
        places = self.chosen[:, None, :, None].expand(-1, values.shape[1], -1, values.shape[-1])
        written = torch.einsum("bhsd,hed->bhse", values.gather(2, places), self.W_O)
        tokens = self.tokens[: self.n].gather(1, self.chosen)[:, None].expand(written.shape[:-1])
        self.note("copying", self.watch.raised(written, tokens).mean(-1))
        return x

    def result(self, x: Tensor, _: object) -> Tensor:
        share = self.length(self.by_head(x[: self.n])) / self.stream_length.clamp(min=1e-30)[:, None]
        self.note("norm", self.mean(share, self.inner[: self.n]))
        return x

    def pattern(self, x: Float[Tensor, "batch heads query key"], _: object) -> Tensor:
        plain, inner = x[: self.n].float(), self.inner[: self.n]
        self.note("beginning", self.mean(plain[..., 0], inner))
        before = plain.diagonal(offset=-1, dim1=-2, dim2=-1)  # of queries 1, 2, ...
        self.note("previous", self.mean(before[..., 1:], inner[:, 2:]))
        self.note("entropy", self.mean(torch.special.entr(plain).sum(-1), inner))
        self._probes(x[self.n :].float())
        self._examples(plain, inner)
        return x

    def _probes(self, patterns: Float[Tensor, "documents heads query key"]) -> None:
        earlier, after = [], []
        for pattern, length in zip(patterns, self.reading.probe_lengths, strict=True):
            keys = torch.arange(length - 1, device=pattern.device) + self.reading.begins
            queries = keys + length
            earlier.append(pattern[:, queries, keys].mean(-1))
            after.append(pattern[:, queries, keys + 1].mean(-1))
        self.note("duplicate", torch.stack(earlier))
        self.note("induction", torch.stack(after))

    def _examples(
        self, plain: Float[Tensor, "documents heads query key"], inner: Bool[Tensor, "documents pos"]
    ) -> None:
        """Of each document and head the strongest pair, apart from the first position and the query itself."""
        moved = plain * self.value_length[:, :, None]
        moved = moved * inner[:, None, :, None]
        moved[..., 0] = 0
        moved.diagonal(dim1=-2, dim2=-1).zero_()
        best, place = moved.flatten(2).max(-1)
        width = plain.shape[-1]
        attention = plain.flatten(2).gather(2, place[..., None])[..., 0]
        rows = zip(best.tolist(), place.tolist(), attention.tolist(), strict=True)
        for number, (strengths, places, attentions) in enumerate(rows, self.reading.first):
            for head, (strength, at, share) in enumerate(zip(strengths, places, attentions, strict=True)):
                if strength > 0:
                    example = Example(strength, number, at // width, at % width, share)
                    self.watch.sums.note_example(self.layer, head, example)


def read(model: SubjectModel, watch: Watch, reading: Reading) -> None:
    """One pass of the model; all scores of these documents are noted."""
    sums, device = watch.sums, model.device
    tokens = reading.tokens.to(device)
    for row, mask in zip(reading.tokens[: reading.n], reading.mask[: reading.n], strict=True):
        sums.texts.append(row[mask].tolist())
    _note_chances(sums, reading)
    inputs = {"input_ids": tokens, "attention_mask": reading.mask.long().to(device)}
    with model.edit(watch.functions(reading, tokens)):
        model.capture(inputs, [f"attn_out.{model.n_layers - 1}"])


def _note_chances(sums: Sums, reading: Reading) -> None:
    for text, length in zip(sums.texts[-reading.n :], reading.probe_lengths, strict=True):
        seen = np.arange(2, len(text) + 1)
        repeated = np.arange(length - 1) + length + reading.begins + 1
        chances = {"beginning": (1 / seen).mean(), "previous": (1 / seen[1:]).mean(), "entropy": np.log(seen).mean()}
        chances |= dict.fromkeys(("induction", "duplicate"), (1 / repeated).mean())
        for score, chance in chances.items():
            sums.chances.setdefault(score, []).append(float(chance))
